"""The recipe of the bundled students, part by part: words, weights, batches, the loss, its schedule, and the record."""

import json
import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import tiny
import torch
from torch.nn import functional as F
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer

from humor_env import pocket
from humor_env.errors import InvalidOption
from humor_env.experiments.pocket import pretrain as module
from humor_env.experiments.pocket.pretrain import Recipe
from humor_env.pocket.corpus import Line, fingerprint
from humor_env.shared.streams import generator

RECIPE = {student: json.loads(Path(pocket.path(student), "recipe.json").read_text()) for student in pocket.STUDENTS}


@pytest.fixture(scope="module")
def corpora():
    return module.make_corpora()


def test_the_recipe_is_that_of_the_bundled_students():
    for student, record in RECIPE.items():
        assert record["recipe"] == json.loads(json.dumps(Recipe(student).__dict__))
        assert record["steps"] == Recipe().steps
        assert record["lexicon"] == fingerprint(pocket.FOLDER)


@pytest.mark.parametrize("student", pocket.STUDENTS)
def test_the_tokenizer_is_the_bundled_one(corpora, student):
    made = module.make_tokenizer(corpora[0], Recipe(student))
    bundled = AutoTokenizer.from_pretrained(pocket.path(student))
    assert made.get_vocab() == bundled.get_vocab()
    text = "The meeting was slow, 😂."
    assert made(text)["input_ids"] == bundled(text)["input_ids"]
    assert made.decode(made(text, add_special_tokens=False)["input_ids"]) == text
    assert made.convert_tokens_to_ids(["<pad>", "<s>", "</s>", "<|says|>"]) == [0, 1, 2, 3]
    assert (made.padding_side, made.model_max_length) == ("left" if student == "causal" else "right", 256)
    assert (made.chat_template is None) == (student == "seq2seq")
    assert (made(text)["input_ids"][-1] == 2) == (student == "seq2seq")


def test_the_chat_ends_a_persons_turn_and_the_students(corpora):
    words = module.make_tokenizer(corpora[0], Recipe())
    turns = [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "So"},
        {"role": "user", "content": "?"},
    ]
    assert words.apply_chat_template(turns, tokenize=False) == "<s>Hi<|says|>So</s>?<|says|>"


@pytest.mark.parametrize("student", pocket.STUDENTS)
def test_an_untrained_student_has_the_bundled_ones_shape(student):
    state = torch.get_rng_state()
    first, again, other = (module.make_model(Recipe(student, seed), 64).state_dict() for seed in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), state)  # nobody else's draws change
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)
    model = module.make_model(Recipe(student), 1472)
    assert sum(p.numel() for p in model.parameters()) == RECIPE[student]["parameters"]
    ours, bundled = (c.to_dict() for c in (model.config, AutoConfig.from_pretrained(pocket.path(student))))
    free = {"_name_or_path", "architectures", "dtype", "torch_dtype", "transformers_version"}
    assert {k: v for k, v in ours.items() if k not in free} == {k: v for k, v in bundled.items() if k not in free}
    how = model.generation_config
    assert (how.bos_token_id, how.eos_token_id, how.pad_token_id, how.max_new_tokens) == (1, 2, 0, 64)
    assert how.decoder_start_token_id == (None if student == "causal" else 1)


def test_the_corpora_have_pairs_of_their_own(corpora):
    """Training pairs against those of out-of-distribution prompts; and no dev or test sentence is a target."""
    training, unseen = corpora
    prompts = pocket.load_world().prompts()
    pairs = {s: {(p.extra["subject"], p.extra["complaint"]) for p in prompts if p.split == s} for s in ("train", "ood")}
    assert set(training.pairs) == pairs["train"]
    assert set(unseen.pairs) == pairs["ood"]
    unread = {p.text for p in prompts if p.split != "train"}
    lines = [text for line in training.block(0, 0) for text in (line.source, line.target)]
    assert not unread & set(lines)


class Pages:
    """A corpus of two blocks."""

    BLOCKS = (
        [Line("x", "a" * n, "b" * m) for n, m in ((1, 9), (2, 0), (7, 1), (1, 1), (3, 1))],
        [Line("x", "c" * n, "d") for n in (1, 2)],
    )

    def __init__(self):
        self.asked = []

    def block(self, seed, index, *, name):
        self.asked.append((seed, index, name))
        return self.BLOCKS[index % 2]


class Letters:
    """A token a letter, from 10; it refuses special tokens."""

    def __init__(self, chat):
        self.chat_template = chat

    def __call__(self, texts, add_special_tokens):
        assert not add_special_tokens
        return {"input_ids": [[10 + ord(c) - ord("a") for c in text] for text in texts]}


def test_a_line_is_encoded_as_its_student_sees_it():
    lines = [Line("x", "ab", "c"), Line("x", "", "de")]
    assert module.encode(lines, Letters("chat")) == [([1, 10, 11, 3], [12, 2]), ([1, 3], [13, 14, 2])]
    assert module.encode(lines, Letters(None)) == [([10, 11, 2], [12, 2]), ([2], [13, 14, 2])]


def test_batches_have_rows_of_like_length_and_go_through_block_after_block():
    """With two end tokens rows of the first block have 4, 4, 6, 10 and 12 tokens. The third row makes three of at most
    6, beside two that would be 12; the fourth makes 3 x 10, too many. The next block has 4 and 5."""
    corpus = Pages()
    cut = module.batches(corpus, Letters(None), Recipe(seed=3, batch_tokens=12), "pages")
    sizes = [[len(source + target) for source, target in next(cut)] for _ in range(3)]
    order = generator(3, "pages-order", 0).permutation(2)
    assert sizes == [*([[4, 4, 6], [10, 12]][place] for place in order), [4, 5]]
    assert corpus.asked == [(3, 0, "pages"), (3, 1, "pages")]
    assert next(module.batches(corpus, Letters(None), Recipe(), start=1))
    assert corpus.asked[-1] == (0, 1, "pocket-corpus")


def test_rows_are_padded_to_the_longest():
    assert module._padded([[5], [6, 7, 8], [9, 1]]).tolist() == [[5, 0, 0], [6, 7, 8], [9, 1, 0]]


BATCH = [([1, 10, 11, 3], [12, 2]), ([1, 3], [13, 14, 15, 2])]


@pytest.mark.parametrize("family", ["llama", "bart"])
def test_the_loss_is_of_the_targets_tokens_alone(family):
    model = getattr(tiny, family)().eval()
    found, count = module.token_loss(model, BATCH)
    expected = 0.0
    with torch.no_grad():
        for source, target in BATCH:
            if family == "bart":
                start = torch.tensor([[1, *target[:-1]]])
                logits = model(input_ids=torch.tensor([source]), decoder_input_ids=start).logits[0]
            else:
                logits = model(torch.tensor([source + target])).logits[0, len(source) - 1 : -1]
            # The head has no bias here, so the logits are those of the full model.
            expected += float(F.cross_entropy(logits, torch.tensor(target), reduction="sum"))
    assert count == 6
    assert float(found.detach()) == pytest.approx(expected, rel=1e-5)
    assert found.requires_grad


def test_the_dev_loss_is_over_the_tokens_of_24_batches(monkeypatch):
    asked = []

    def losses(model, batch):
        assert not torch.is_grad_enabled()
        return torch.tensor(float(batch)), batch + 1

    def endless(corpus, words, recipe, name):
        asked.append((corpus, words, name))
        yield from range(100)

    monkeypatch.setattr(module, "token_loss", losses)
    monkeypatch.setattr(module, "batches", endless)
    total = sum(range(24))
    assert module.dev_loss(None, "corpus", "words", Recipe()) == pytest.approx(total / (total + 24))
    assert asked == [("corpus", "words", "pocket-corpus-dev")]


@pytest.mark.parametrize("student", pocket.STUDENTS)
def test_matrices_inside_the_layers_have_an_optimiser_of_their_own(student):
    model = module.make_model(Recipe(student), 64)
    muon, adam = module.make_optimisers(model, Recipe(student, lr=0.5, matrix_lr=0.25, weight_decay=0.125))
    names = {id(p): name for name, p in model.named_parameters()}
    inside, outside = ({names[id(p)] for g in o.param_groups for p in g["params"]} for o in (muon, adam))
    assert inside | outside == set(names.values()) and not inside & outside
    assert all("layers" in name and name.endswith("weight") and "norm" not in name for name in inside)
    assert {name for name in outside if model.get_parameter(name).ndim == 2} == {
        name for name in names.values() if "embed" in name or "shared" in name
    } - {name for name in names.values() if "norm" in name}
    assert (muon.defaults["lr"], muon.defaults["weight_decay"]) == (0.25, 0.125)
    assert (adam.defaults["lr"], adam.defaults["weight_decay"], adam.defaults["betas"]) == (0.5, 0.0, (0.9, 0.98))


class Rates:
    """An optimiser that notes its rate and the gradient's norm at each step."""

    def __init__(self, model, rate):
        self.model, self.param_groups, self.seen, self.norms = model, [{"lr": rate}], [], []

    def step(self):
        self.seen.append(self.param_groups[0]["lr"])
        self.norms.append(math.sqrt(sum(float(p.grad.square().sum()) for p in self.model.parameters())))


@pytest.fixture
def quick(monkeypatch):
    """Pretraining with one weight, whose loss is told, and a clock that is told."""
    made = SimpleNamespace(losses=iter(()), now=0.0, tick=0.0, saved=[], threads=[], optimisers=())

    class One(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(3))

    model = One()
    made.optimisers = Rates(model, 2.0), Rates(model, 4.0)

    def loss(model, batch):
        made.threads.append(torch.get_num_threads())
        made.training = model.training
        value = next(made.losses)
        return (model.weight.sum() * 100 + value) * batch, batch  # the mean over tokens is the value

    def clock():
        made.now += made.tick
        return made.now

    monkeypatch.setattr(module, "make_corpora", lambda: ("seen", "unseen"))
    monkeypatch.setattr(module, "make_tokenizer", lambda corpus, recipe: [corpus])
    monkeypatch.setattr(module, "make_model", lambda recipe, size: model)
    monkeypatch.setattr(module, "make_optimisers", lambda model, recipe: list(made.optimisers))
    monkeypatch.setattr(module, "batches", lambda *_: iter([5] * 100))
    monkeypatch.setattr(module, "token_loss", loss)
    monkeypatch.setattr(module, "dev_loss", lambda model, corpus, *_: 0.123456 if corpus == "unseen" else 9.0)
    monkeypatch.setattr(module, "measure", lambda model, words, seed: {"plain": float(seed), "on": model.training})
    monkeypatch.setattr(module, "save", lambda *given: made.saved.append(given))
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=clock))
    monkeypatch.setattr(module, "keep_freed_memory", lambda: None)
    return made


def test_rates_rise_and_then_fall_to_zero(quick, tmp_path):
    """Of 8 steps a quarter rises: 1/2, then 2/2, times the share that is left, 8/8, 7/8 and so on."""
    quick.losses = iter([4.0] + [2.0] * 7)
    told = []
    record = module.pretrain(Recipe(steps=8, warmup=0.25, seed=3), tmp_path, report=lambda *seen: told.append(seen))
    shares = [0.5, *(n / 8 for n in range(7, 0, -1))]
    first, second = quick.optimisers
    assert first.seen == pytest.approx([2 * share for share in shares])
    assert second.seen == pytest.approx([4 * share for share in shares])
    assert first.norms == pytest.approx([1.0] * 8, rel=1e-4)  # clipped, and not summed over steps
    means = [4.0]
    for _ in range(7):
        means.append(0.98 * means[-1] + 0.02 * 2.0)
    assert [step for step, _, _ in told] == list(range(1, 9))
    assert [progress for _, progress, _ in told] == [n / 8 for n in range(8)]
    assert [mean for _, _, mean in told] == pytest.approx(means, rel=1e-6)
    assert (record["steps"], record["final_loss"], record["dev_loss"]) == (8, round(means[-1], 4), 0.1235)
    assert (record["parameters"], record["measured"]) == (3, {"plain": 3.0, "on": False})
    assert quick.training
    assert record["command"].endswith("--student causal --out DIR --seed 3")
    assert record["recipe"]["steps"] == 8 and "+" not in record["torch"]
    assert record["lexicon"] == fingerprint(pocket.FOLDER)
    [(_, words, out, saved)] = quick.saved
    assert (words, out, saved) == (["seen"], tmp_path, record)


def test_a_limit_of_seconds_ends_it_sooner_at_rate_zero(quick, tmp_path):
    """The clock says 1 at the start and a second more at each look: 1/4, 2/4 and 3/4 of four seconds, then the end."""
    quick.losses, quick.tick = iter([1.0] * 9), 1.0
    record = module.pretrain(Recipe(steps=1000, warmup=0.0001), tmp_path, seconds=4.0)
    assert quick.optimisers[0].seen == pytest.approx([2 * 0.75, 2 * 0.5, 2 * 0.25])
    assert (record["steps"], record["seconds"]) == (3, 5.0)
    assert record["command"].endswith("--out DIR")
    quick.losses, quick.tick = iter([1.0] * 9), 0.0
    assert module.pretrain(Recipe(steps=4), tmp_path, seconds=1e9)["steps"] == 4


def test_the_threads_are_the_recipes_and_then_as_before(quick, tmp_path):
    before = torch.get_num_threads()
    quick.losses = iter([1.0, math.nan])
    with pytest.raises(InvalidOption, match=r"The loss became nan at step 1\. Lower the learning rate \(0\.015\)\."):
        module.pretrain(Recipe(steps=4, threads=before + 1), tmp_path)
    assert quick.threads == [before + 1] * 2
    assert torch.get_num_threads() == before and quick.saved == []


def test_an_unknown_student_is_told(tmp_path):
    with pytest.raises(InvalidOption, match="one of causal, seq2seq; found 'both'"):
        module.pretrain(Recipe("both"), tmp_path)


def test_weights_are_saved_in_half_and_load_as_float32(tmp_path):
    model, words = tiny.llama(), tiny.tokenizer()
    module.save(model, words, tmp_path / "new" / "out", {"a": 1})
    assert (tmp_path / "new" / "out" / "recipe.json").read_text() == '{\n  "a": 1\n}\n'
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "new" / "out")
    assert loaded.dtype == torch.float32
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor.half().float())
    size = (tmp_path / "new" / "out" / "model.safetensors").stat().st_size
    assert size < 2.2 * sum(p.numel() for p in model.parameters()) + 4000
    assert AutoTokenizer.from_pretrained(tmp_path / "new" / "out").get_vocab() == words.get_vocab()


@pytest.mark.parametrize("student", pocket.STUDENTS)
def test_the_bundled_students_speak(student):
    words = AutoTokenizer.from_pretrained(pocket.path(student))
    family = AutoModelForCausalLM if student == "causal" else AutoModelForSeq2SeqLM
    model = family.from_pretrained(pocket.path(student)).eval()
    texts = ["The meeting was slow.", "The soup was cold.", "My neighbor was loud."]
    state = torch.get_rng_state()
    lines = module.speak(model, words, texts, seed=0, batch=2)
    assert torch.equal(torch.get_rng_state(), state)
    assert lines == module.speak(model, words, texts, seed=0, batch=2) != module.speak(model, words, texts, seed=1)
    assert len(lines) == 3
    assert all(line.endswith(".") and "<" not in line for line in lines)
    assert not any(line.startswith(text) for line, text in zip(lines, texts, strict=True))  # not the prompt again


def test_what_a_student_is_measured_by(monkeypatch):
    """Of four dev sentences: one kept, one of another subject, one a joke, and one no sentence at all."""
    world = pocket.load_world()
    asked = []

    def said(model, words, texts, seed):
        asked.append((texts, seed))
        prompts = {p.text: p for p in world.prompts()}
        about = [(p.extra["subject"], p.extra["complaint"]) for p in (prompts[text] for text in texts[:2])]
        plain = [((p.extra["subject"], p.extra["complaint"]), p.text) for p in world.prompts() if p.split == "train"]
        kept = next(text for pair, text in plain if pair == about[0])
        other = next(text for pair, text in plain if pair[0] != about[1][0])
        return [kept, other, world.best(prompts[texts[2]]), "Blah blah."]

    monkeypatch.setattr(module, "speak", said)
    found = module.measure(None, None, 5, count=4)
    prompts = [next(p for p in world.prompts() if p.text == text and p.split == "dev") for text in asked[0][0]]
    scores = [world.judge(p, line).score for p, line in zip(prompts, said(None, None, asked[0][0], 5), strict=True)]
    assert asked[0][1] == 5
    assert (found["plain"], found["kept"]) == (0.5, 0.25)
    assert found["exact"] == round(sum(scores) / 4, 4) > 0.2


def test_the_command_passes_all_its_options_on(monkeypatch, tmp_path, capsys):
    asked = []

    def told(recipe, out, seconds, report):
        report(1, 0.5, 2.0)
        asked.append((recipe, out, seconds))
        return {"recipe": 1, "steps": 2}

    monkeypatch.setattr(module, "pretrain", told)
    words = f"--student seq2seq --out {tmp_path} --seconds 2.5 --steps 7 --seed 3 --threads 2"
    module.main(words.split())
    module.main(["--out", "here"])
    assert asked == [
        (Recipe("seq2seq", seed=3, steps=7, threads=2), tmp_path, 2.5),
        (Recipe(), Path("here"), None),
    ]
    assert capsys.readouterr().out == '{\n  "steps": 2\n}\n' * 2
    module.main(["--out", "here", "--threads", "1", "--steps", "1"])
    for wrong in (["--threads", "0"], ["--steps", "0"], []):
        with pytest.raises(SystemExit):
            module.main([*(["--out", "here"] if wrong else []), *wrong])
    assert len(asked) == 3
