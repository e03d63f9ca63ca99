"""The bundled students speak, are not funny yet, and belong to the lexicon that they are shipped with."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import pytest
import torch

from humor_env import pocket
from humor_env.errors import InvalidOption
from humor_env.experiments.pocket import pretrain as pretrain_pocket
from humor_env.experiments.pocket.pretrain import Recipe, batches, make_corpora, make_model, make_tokenizer, token_loss
from humor_env.pocket.corpus import Corpus, Line, fingerprint, listed


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def corpora() -> tuple[Corpus, Corpus]:
    return make_corpora()


@pytest.fixture(scope="module")
def lines(corpora) -> list[Line]:
    return corpora[0].block(seed=3, index=5, size=6000)


@pytest.fixture(scope="module", params=pocket.STUDENTS)
def student(request):
    from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer

    kind = AutoModelForCausalLM if request.param == "causal" else AutoModelForSeq2SeqLM
    folder = pocket.path(request.param)
    return request.param, kind.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder), Path(folder)


# ---- the corpus ----


def test_blocks_are_the_same_in_any_order_and_differ_from_each_other(corpora):
    first, second = corpora[0].block(0, 1, size=50), corpora[0].block(0, 2, size=50)
    assert make_corpora()[0].block(0, 2, size=50) == second
    assert corpora[0].block(0, 1, size=50) == first != second
    assert corpora[0].block(0, 1, size=50, name="other") != first != corpora[0].block(1, 1, size=50)


def test_no_line_is_a_joke(lines):
    """Nothing reads as a joke, and no witness meets a reaction but in lists that mean nothing."""
    world = pocket.load_world()
    witnesses = {w.text for w in world.lexicon.witnesses}
    for line in lines:
        for text in (line.source, line.target):
            reading = world.read(text)
            assert reading.kind != "joke", line
            assert line.kind == "repeat" or reading.witness is None or reading.reaction is None, line
    assert not witnesses & set(make_corpora()[0].people)


def test_repeats_are_said_word_for_word_and_teach_the_words_of_frames(lines):
    repeats = [line for line in lines if line.kind == "repeat"]
    assert repeats
    for line in repeats:
        assert line.source.split(": ", 1)[1] == line.target
    parts = {part for line in repeats for part in line.target.split(" / ")}
    assert {"Legend has it", "Nobody warned me that"} <= parts
    assert max(line.target.count(" / ") for line in repeats) == 3


def test_paraphrases_keep_the_meaning_and_change_the_words(lines):
    read = pocket.load_world().read
    seen = 0
    for line in lines:
        if line.kind == "paraphrase":
            said, heard = read(line.target), read(line.source)
            assert said.kind == "literal"
            assert line.source != line.target
            # A chatty source is no sentence of the world, but what it is about can be found in it.
            assert (heard.subject, heard.complaint) == (said.subject, said.complaint), line
            seen += heard.kind == "literal"
    assert seen > 1500  # the check above would pass on nothing


def test_held_out_prompts_are_never_read(corpora):
    world, (corpus, unseen) = pocket.load_world(), corpora
    held = {(p.extra["subject"], p.extra["complaint"]) for p in world.prompts() if p.split == "ood"}
    assert held
    assert held.isdisjoint(corpus.pairs)
    assert held == set(unseen.pairs)
    unread = [p.text for p in world.prompts() if p.split in ("dev", "test", "ood")]
    # Few pairs and many lines, so that every sentence about them would come up.
    [prompt, *_] = [p for p in world.prompts() if p.split == "dev"]
    few = Corpus(world.lexicon, [(prompt.extra["subject"], prompt.extra["complaint"])], corpus.unread)
    text = "\n".join(f"{line.source}\n{line.target}" for line in few.block(0, 0, size=4000))
    assert not [sentence for sentence in unread if sentence in text]
    unguarded = Corpus(world.lexicon, few.pairs).block(0, 0, size=4000)
    assert any(prompt.text in (line.source, line.target) for line in unguarded)


def test_facts_are_those_of_the_lexicon(lines):
    """A witness is called only what it is iconic for; a reaction is explained only by what it implies."""
    read = pocket.load_world().read
    facts = 0
    for line in lines:
        reading = read(line.target)
        if line.kind == "witness" and reading.witness and reading.complaint:
            assert reading.complaint.name in reading.witness.traits, line
            facts += 1
        if line.kind == "reaction" and reading.reaction and reading.complaint:
            assert reading.complaint.name in reading.reaction.implies, line
            facts += 1
    assert facts > 1000


def test_every_witness_and_reaction_is_met(corpora):
    text = "\n".join(f"{x.source}\n{x.target}" for i in range(8) for x in corpora[0].block(0, i))
    lexicon = corpora[0].lexicon
    assert not [w.text for w in lexicon.witnesses if w.text[1:] not in text]
    assert not [r.text for r in lexicon.reactions if r.text not in text]


def test_lists_read_as_english():
    assert listed(["a"]) == "a"
    assert listed(["a", "b"]) == "a or b"
    assert listed(["a", "b", "c"], "and") == "a, b and c"


def test_a_corpus_of_nothing_says_what_it_needs():
    with pytest.raises(InvalidOption, match="at least one"):
        Corpus(pocket.load_world().lexicon, [])


# ---- pretraining ----


def test_loss_is_that_of_the_targets_whatever_the_padding():
    """Compared with a plain loop over single rows through the whole model, for both students."""
    corpus = make_corpora()[0]
    for name in pocket.STUDENTS:
        recipe = Recipe(student=name, vocabulary=400, batch_tokens=300)
        tokenizer = make_tokenizer(corpus, recipe)
        model = make_model(recipe, len(tokenizer)).eval()
        batch = [([1, 9, 8, 7, 3], [5, 6, 2]), ([1, 4, 3], [9, 9, 9, 9, 2])]
        with torch.no_grad():
            loss, count = token_loss(model, batch)
            by_hand = 0.0
            for source, target in batch:
                if name == "causal":
                    logits = model(input_ids=torch.tensor([source + target])).logits[0, len(source) - 1 : -1]
                else:
                    assert model.generation_config.decoder_start_token_id == 1  # it writes from where it learns
                    start = torch.tensor([[1, *target[:-1]]])
                    logits = model(input_ids=torch.tensor([source]), decoder_input_ids=start).logits[0]
                logprobs = logits.log_softmax(-1)
                by_hand -= sum(float(logprobs[i, token]) for i, token in enumerate(target))
        assert count == 8
        assert float(loss) == pytest.approx(by_hand, rel=1e-5)


def test_lines_are_encoded_as_the_students_meet_them(corpora):
    """What training reads is what the chat template or the encoder's tokenizer makes of the same words."""
    line = Line("paraphrase", "The meeting was slow.", "It was.")
    for name in pocket.STUDENTS:
        tokenizer = make_tokenizer(corpora[0], Recipe(student=name, vocabulary=400))
        [(source, target)] = pretrain_pocket.encode([line], tokenizer)
        if name == "causal":
            messages = [{"role": "user", "content": line.source}, {"role": "assistant", "content": line.target}]
            assert source + target == tokenizer.apply_chat_template(messages, return_dict=True)["input_ids"]
            assert source[-1] == tokenizer.convert_tokens_to_ids("<|says|>")
        else:
            assert source == tokenizer(line.source)["input_ids"]
            assert target == tokenizer(text_target=line.target)["input_ids"]
            assert target[-1] == tokenizer.eos_token_id


def test_batches_hold_every_line_once_and_stay_in_size(corpora):
    recipe = Recipe(vocabulary=400, batch_tokens=500)
    tokenizer = make_tokenizer(corpora[0], recipe)
    stream = batches(corpora[0], tokenizer, recipe)
    rows = []
    while len(rows) < 4096:
        batch = next(stream)
        # A batch is closed by the row that fills it.
        assert (len(batch) - 1) * max(len(s) + len(t) for s, t in batch) <= 500
        rows += batch
    expected = pretrain_pocket.encode(corpora[0].block(0, 0), tokenizer)
    assert sorted(rows) == sorted(expected)


def test_an_unknown_student_is_named(tmp_path):
    with pytest.raises(InvalidOption, match="'bert'"):
        pretrain_pocket.pretrain(Recipe(student="bert"), tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", pocket.STUDENTS)
def test_a_rebuild_learns_saves_and_repeats(name, tmp_path, monkeypatch):
    """Four steps, twice: the same weights, a lower loss, and a folder that loads as float32.

    Muon takes seconds a step on a processor (it multiplies in bfloat16), and a student of so few steps babbles to its
    longest reply: eight lines are measured, not 256.
    """
    monkeypatch.setattr(pretrain_pocket, "measure", partial(pretrain_pocket.measure, count=8))
    recipe = Recipe(student=name, steps=4, batch_tokens=400, vocabulary=400, threads=1)
    losses = []
    first = pretrain_pocket.pretrain(recipe, tmp_path / "a", report=lambda step, done, loss: losses.append(loss))
    second = pretrain_pocket.pretrain(recipe, tmp_path / "b")
    assert losses[-1] < losses[0]
    assert first["steps"] == 4
    assert {k: v for k, v in first.items() if k != "seconds"} == {k: v for k, v in second.items() if k != "seconds"}
    weights = [(tmp_path / x / "model.safetensors").read_bytes() for x in "ab"]
    assert weights[0] == weights[1]
    assert json.loads((tmp_path / "a" / "recipe.json").read_text())["recipe"]["steps"] == 4


# ---- the bundled weights ----


def test_weights_belong_to_this_lexicon(student):
    name, _, _, folder = student
    recipe = json.loads((folder / "recipe.json").read_text())
    assert recipe["lexicon"] == fingerprint(pocket.FOLDER), (
        f"The lexicon has changed since the pocket student '{name}' was trained. Rebuild it: "
        f"python -m humor_env.experiments.pocket.pretrain --student {name} --out humor_env/pocket/weights/{name}"
    )
    assert recipe["recipe"]["student"] == name
    assert Recipe(**recipe["recipe"]) == Recipe(student=name), "the bundled weights are not of the default recipe"
    assert recipe["steps"] == recipe["recipe"]["steps"]


def test_fingerprint_follows_the_words_and_not_the_line_endings(tmp_path):
    for name in ("subjects.toml", "witnesses.toml"):
        (tmp_path / name).write_bytes((pocket.FOLDER / name).read_bytes().replace(b"\n", b"\r\n"))
    assert fingerprint(tmp_path) == fingerprint(pocket.FOLDER)
    with (tmp_path / "witnesses.toml").open("ab") as file:
        file.write(b"#")
    assert fingerprint(tmp_path) != fingerprint(pocket.FOLDER)


def test_students_are_small_and_load_as_float32(student):
    _, model, tokenizer, folder = student
    assert sum(p.numel() for p in model.parameters()) <= 2_500_000
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert (folder / "model.safetensors").stat().st_size <= 6_000_000
    assert json.loads((folder / "recipe.json").read_text())["parameters"] == sum(p.numel() for p in model.parameters())
    assert len(tokenizer) == model.config.vocab_size <= 1500
    assert tokenizer.pad_token_id != tokenizer.eos_token_id
    for config in (model.config, model.generation_config):
        assert (config.pad_token_id, config.eos_token_id) == (tokenizer.pad_token_id, tokenizer.eos_token_id)


def test_any_text_survives_the_tokenizer(student):
    name, _, tokenizer, _ = student
    for text in ("The meeting was slow.", 'Größe 😀 naïve\t"x"\n', " two  spaces ", "don't stop , now ."):
        assert tokenizer.decode(tokenizer(text)["input_ids"], skip_special_tokens=True) == text
    ids = tokenizer("The meeting was slow.")["input_ids"]
    assert (ids[-1] == tokenizer.eos_token_id) == (name == "seq2seq")


def test_longest_joke_fits_the_reply(student):
    """The longest sentence that the world can say ends before generation's default limit, counted part by part."""
    _, model, tokenizer, _ = student
    lexicon = pocket.load_world().lexicon

    def longest(texts) -> int:
        return max(len(ids) for ids in tokenizer([f" {text}" for text in texts], add_special_tokens=False)["input_ids"])

    slots = ("subject", "complaint", "witness", "reaction")
    parts = longest(s.text for s in lexicon.subjects) + longest(a for c in lexicon.complaints for a in c.adjectives)
    parts += longest(w.text for w in lexicon.witnesses) + longest(r.text for r in lexicon.reactions)
    carriers = []
    for frame in lexicon.frames:
        text = frame.template
        for slot in slots:
            text = text.replace(f"{{{slot}}}", "").replace(f"{{{slot.capitalize()}}}", "")
        carriers.append(text)
    assert parts + longest(carriers) + 1 <= model.generation_config.max_new_tokens


def test_chat_template_is_prompt_says_reply():
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(pocket.path("causal"))
    asked = [{"role": "user", "content": "The meeting was slow."}]
    prompt = tokenizer.apply_chat_template(asked, add_generation_prompt=True, tokenize=False)
    assert prompt == "<s>The meeting was slow.<|says|>"
    whole = [*asked, {"role": "assistant", "content": "It was."}]
    assert tokenizer.apply_chat_template(whole, tokenize=False) == prompt + "It was.</s>"
    ids = tokenizer.apply_chat_template(asked, add_generation_prompt=True, return_dict=True)["input_ids"]
    assert ids == tokenizer(prompt)["input_ids"] == [1, *tokenizer("The meeting was slow.")["input_ids"], 3]


def test_students_speak_plainly_and_are_not_funny(student):
    """At temperature 1, on prompts they never read."""
    _, model, tokenizer, folder = student
    found = pretrain_pocket.measure(model, tokenizer, seed=1, count=100)
    assert found["plain"] >= 0.85
    assert found["kept"] >= 0.75
    assert 0.05 < found["exact"] < 0.15
    recorded = json.loads((folder / "recipe.json").read_text())["measured"]
    for part, value in found.items():
        assert value == pytest.approx(recorded[part], abs=0.1)


@pytest.mark.parametrize("question", ["Name something slow.", "What is known to be cold?"])
def test_students_know_what_witnesses_are_known_for(student, question):
    """Most witnesses that they name are iconic for what was asked; by chance it would be one in twenty-five."""
    _, model, tokenizer, _ = student
    world = pocket.load_world()
    wanted = world.read(question).complaint.name
    lines = pretrain_pocket.speak(model, tokenizer, [question] * 60, seed=0)
    named = [w for w in (world.read(line).witness for line in lines) if w is not None]
    assert len(named) >= 10
    assert sum(wanted in w.traits for w in named) / len(named) >= 0.7
