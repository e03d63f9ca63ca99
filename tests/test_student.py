import copy

import pytest
import torch
from peft import PeftModel
from tiny import bart, llama, prompts, stir, student, tokenizer
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

from humor_env.agents import sft
from humor_env.agents.student import IMITATION, POLICY, Student
from humor_env.agents.student.sampling import Sampling
from humor_env.agents.student.token_rows import TokenRows, length_sorted, take_rows
from humor_env.agents.student.writer import write_jokes
from humor_env.errors import StudentError
from humor_env.types import Demonstration, Prompt

FAMILIES = ["causal", "seq2seq"]
PROMPTS = ["The meeting was slow.", "My soup", "A much longer sentence about the meeting that was slow."]
LINES = ["Glaciers overtook it.", "So cold.", "x"]


def naive_logprobs(one: Student, prompt: str, line: str) -> torch.Tensor:
    """Token by token, each from a whole forward of the plain model over what precedes it."""
    source, response = one.encode_prompt(prompt), one.encode_response(line)
    found = []
    for i, token in enumerate(response):
        if one.is_seq2seq:
            decoder = torch.tensor([[*one.decoder_prefix, *response[:i]]])
            logits = one.model(input_ids=torch.tensor([source]), decoder_input_ids=decoder).logits[0, -1]
        else:
            logits = one.model(input_ids=torch.tensor([[*source, *response[:i]]])).logits[0, -1]
        found.append(logits.log_softmax(-1)[token])
    return torch.stack(found)


@pytest.mark.parametrize("family", FAMILIES)
def test_scores_equal_a_naive_loop(family):
    one = student(family)
    stir(one, POLICY)
    rows = one.rows_from_text(PROMPTS, LINES)
    with torch.no_grad():
        scored = one.score(rows)
        for i, (prompt, line) in enumerate(zip(PROMPTS, LINES, strict=True)):
            mine = scored.logprobs[i][rows.action_mask[i].bool()]
            assert torch.allclose(mine, naive_logprobs(one, prompt, line), atol=1e-5)
    assert (scored.logprobs[~rows.action_mask.bool()] == 0).all()


@pytest.mark.parametrize("family", FAMILIES)
def test_batch_composition_and_micro_batches_change_nothing(family):
    one = student(family)
    stir(one, POLICY)
    rows = one.rows_from_text(PROMPTS, LINES)
    whole = one.score_in_batches(rows, adapter=POLICY, values=True, entropy=True)
    for micro_batch in (1, 2):
        parts = one.score_in_batches(rows, adapter=POLICY, values=True, entropy=True, micro_batch=micro_batch)
        for name in ("logprobs", "values", "entropy"):
            assert torch.allclose(getattr(whole, name), getattr(parts, name), atol=1e-5), name


def test_padding_on_the_left_changes_nothing():
    one = student()
    rows = one.rows_from_text(PROMPTS, LINES)
    shift = rows.tokens.shape[1] - rows.attention.sum(-1)
    left = TokenRows(
        *(
            torch.stack([t.roll(int(s)) for t, s in zip(x, shift, strict=True)])
            for x in (rows.tokens, rows.attention, rows.action_mask)
        )
    )
    with torch.no_grad():
        a, b = one.score(rows).logprobs, one.score(left).logprobs
    assert torch.allclose(a[rows.action_mask.bool()], b[left.action_mask.bool()], atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_padding_may_be_the_end_token(family):
    with_pad, without = student(family), student(family, pad=None)
    assert without.pad_token == without.end_token
    a, b = with_pad.rows_from_text(PROMPTS, LINES), without.rows_from_text(PROMPTS, LINES)
    with torch.no_grad():
        assert torch.allclose(with_pad.score(a).logprobs, without.score(b).logprobs, atol=1e-5)
    assert torch.equal(a.action_mask, b.action_mask)
    assert (b.tokens[b.action_mask.bool()] == without.end_token).sum() == 3  # each line's own end is scored


def test_values_are_read_just_before_their_token():
    one = student()
    with torch.no_grad():
        one.value_head.out.weight.normal_(generator=torch.Generator().manual_seed(0))
        rows = one.rows_from_text(PROMPTS[:1], LINES[:1])
        values = one.score(rows, values=True).values
        assert values is not None
        first = int(rows.action_mask[0].argmax())
        changed = rows.tokens.clone()
        changed[0, first:] = 5  # another response: the value before its first token cannot know
        other = one.score(TokenRows(changed, rows.attention, rows.action_mask), values=True).values
        assert other is not None
    assert torch.allclose(values[0, first], other[0, first], atol=1e-6)
    assert not torch.allclose(values[0, first + 1], other[0, first + 1], atol=1e-4)


def test_column_zero_cannot_be_scored():
    one = student()
    ones = torch.ones(1, 3, dtype=torch.long)
    with pytest.raises(ValueError, match="column 0"):
        one.score(TokenRows(ones, ones, ones))


@pytest.mark.parametrize("family", FAMILIES)
def test_adapters_start_as_the_base_and_off_equals_the_base_to_the_bit(family):
    plain = llama(320) if family == "causal" else bart(320)
    one = student(family)
    rows = one.rows_from_text(PROMPTS, LINES)
    inputs = {"input_ids": rows.tokens}
    if family == "seq2seq":
        inputs["decoder_input_ids"] = rows.tokens[:, :3]
    with torch.no_grad():
        truth = plain.eval()(**inputs).logits
        assert torch.allclose(one.model(**inputs).logits, truth, atol=1e-6)
        stir(one, POLICY)
        assert not torch.allclose(one.model(**inputs).logits, truth, atol=1e-3)
        with one.using(None):
            assert torch.equal(one.model(**inputs).logits, truth)


def test_merging_gives_the_adapters_numbers_and_leaves_the_base_bit_for_bit():
    one = student()
    stir(one, IMITATION, seed=2)
    stir(one, POLICY, seed=3)
    before = {n: p.clone() for n, p in one.model.named_parameters()}
    rows = one.rows_from_text(PROMPTS, LINES)
    for adapter in (IMITATION, POLICY):
        apart = one.score_in_batches(rows, adapter=adapter, merge=False).logprobs
        merged = one.score_in_batches(rows, adapter=adapter, merge=True).logprobs
        assert torch.allclose(apart, merged, atol=1e-5)
    with pytest.raises(RuntimeError, match="on purpose"), one.merged(POLICY):
        raise RuntimeError("on purpose")
    for name, parameter in one.model.named_parameters():
        assert torch.equal(parameter, before[name]), name
    assert one._active == POLICY


def test_reference_is_the_imitation_not_the_raw_base():
    one = student()
    stir(one, IMITATION)
    one.start_policy_from_imitation()
    rows = one.rows_from_text(PROMPTS, LINES)
    policy = one.score_in_batches(rows, adapter=POLICY).logprobs
    assert torch.equal(policy, one.score_in_batches(rows, adapter=IMITATION).logprobs)
    assert not torch.allclose(policy, one.score_in_batches(rows, adapter=None).logprobs, atol=1e-3)


def test_switching_adapters_does_not_change_what_is_trained():
    one = student()
    wanted = list(one.adapter_parameters(POLICY).values())
    one.train_only(wanted)
    with one.using(IMITATION):
        pass
    with one.using(None):
        pass
    trainable = {id(p) for p in one.model.parameters() if p.requires_grad}
    assert trainable == {id(p) for p in wanted}


def test_a_saved_student_has_no_page_that_says_nothing(tmp_path):
    """PEFT wrote a README of forty "[More Information Needed]", with a folder of this machine as the base."""
    one = student()
    one.save_pretrained(tmp_path)
    assert not list(tmp_path.glob("**/README.md"))
    (tmp_path / "README.md").write_text("Mine.")
    one.save_pretrained(tmp_path)
    assert "Mine." in (tmp_path / "README.md").read_text()


@pytest.mark.parametrize("family", FAMILIES)
def test_saved_and_loaded_again(family, tmp_path):
    one = student(family)
    stir(one, IMITATION, seed=2)
    stir(one, POLICY, seed=3)
    with torch.no_grad():
        one.value_head.out.weight.normal_()
    one.instruction = "Be funny: "
    rows = one.rows_from_text(PROMPTS, LINES)
    one.save_pretrained(tmp_path / "s")
    again = Student.load(tmp_path / "s")
    assert again.instruction == "Be funny: "
    for adapter in (IMITATION, POLICY):
        a = one.score_in_batches(rows, adapter=adapter, values=True)
        b = again.score_in_batches(rows, adapter=adapter, values=True)
        assert torch.equal(a.logprobs, b.logprobs)
        assert torch.equal(a.values, b.values)

    # Plain PEFT and transformers read the same folder.
    model_class = AutoModelForCausalLM if family == "causal" else AutoModelForSeq2SeqLM
    base = model_class.from_pretrained(tmp_path / "s" / "base")
    peft_model = PeftModel.from_pretrained(base, tmp_path / "s" / POLICY).eval()
    merged = one.merge(POLICY).eval()
    inputs = {"input_ids": rows.tokens}
    if family == "seq2seq":
        inputs["decoder_input_ids"] = rows.tokens[:, :3]
    with torch.no_grad():
        truth = one.model(**inputs).logits
        assert torch.allclose(peft_model(**inputs).logits, truth, atol=1e-5)
        assert torch.allclose(merged(**inputs).logits, truth, atol=1e-5)
    assert not any("lora" in n for n, _ in merged.named_parameters())
    assert any("lora" in n for n, _ in one.model.named_parameters())


def test_a_state_of_another_shape_is_refused():
    with pytest.raises(StudentError, match="shape"):
        student(rank=2).load_state(student(rank=4).state())


def test_adapters_are_drawn_from_the_seed_alone():
    torch.manual_seed(5)
    one = student(seed=7)
    torch.manual_seed(6)
    same, other = student(seed=7), student(seed=8)
    a, b, c = (next(iter(s.adapter_parameters(POLICY).values())) for s in (one, same, other))
    assert torch.equal(a, b)
    assert not torch.equal(a, c)


def grown(words):
    """The same tokenizer with a word more than the model has room for."""
    words.add_tokens(["glacier"])
    return words


def test_a_token_that_the_model_does_not_know_is_explained():
    """A tokenizer larger than the vocabulary ended in an IndexError at the first sample. Texts without it are fine."""
    words = grown(tokenizer())
    model = llama(len(words) - 1)
    one = Student(model, words)
    one.rows_from_text(["The meeting"], ["So cold."])
    says = rf"'glacier' the number {len(words) - 1} in .*below {len(words) - 1}"
    with pytest.raises(StudentError, match=says):
        one.encode_prompt("The glacier was slow.")
    with pytest.raises(StudentError, match=says):
        one.rows_from_text(["The meeting"], ["A glacier overtook it."])
    words.pad_token = "glacier"
    with pytest.raises(StudentError, match="in its special tokens"):
        Student(llama(len(words) - 1), words)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_line_beyond_the_context_is_explained(family):
    """It was learned from in silence, where a prompt of that length is refused. The context holds 128 tokens."""
    one = student(family)
    word = next(t for t in ("x", "a") if len(one.encode_response(t)) == 2)
    room = 128 - (len(one.decoder_prefix) if one.is_seq2seq else len(one.encode_prompt("My soup")))
    assert len(one.encode_response(word * room)) == room + 1
    one.rows_from_text(["My soup"], [word * room])
    with pytest.raises(StudentError, match=rf"The line has {room + 1} tokens.* context holds 128: '{word * 9}"):
        one.rows_from_text(["My soup"] * 2, ["fine", word * (room + 1)])


def test_a_student_whose_weights_are_no_numbers_is_explained():
    """It was evaluated without a word: all its lines were the same token, over and over."""
    one = student()
    asked, chance = prompts(2), torch.full((2, 4), 0.5)
    sampling = Sampling(max_new_tokens=4)
    assert len(write_jokes(one, asked, sampling, chance, author="a")) == 2
    with torch.no_grad():
        one.base.get_output_embeddings().weight.fill_(float("nan"))
    with pytest.raises(StudentError, match="probabilities are not numbers"):
        write_jokes(one, asked, sampling, chance, author="a")
    with pytest.raises(StudentError, match="probabilities are not numbers"):
        write_jokes(one, asked, Sampling(max_new_tokens=4, temperature=0), chance, author="a")


def test_a_prompt_longer_than_the_context_is_explained():
    with pytest.raises(StudentError, match=r"context holds 128: 'word word"):
        student().encode_prompt("word " * 200)


def test_chat_template_is_used_where_there_is_one():
    words = tokenizer()
    words.chat_template = (
        "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}{% if add_generation_prompt %}=>{% endif %}"
    )
    one = Student(llama(len(words)), words, instruction="Be brief.")
    assert words.decode(one.encode_prompt("Hi.")) == "<system>Be brief.<user>Hi.=>"
    plain = student()
    assert plain.tokenizer.decode(plain.encode_prompt("Hi.")) == "Hi.\n"


def test_a_tokenizer_without_an_end_token_is_explained():
    words = tokenizer()
    words.eos_token = None
    model = llama(len(words))
    model.generation_config.eos_token_id = None
    with pytest.raises(StudentError, match="no end token"):
        Student(model, words)


def test_models_that_scale_their_logits_are_scored_by_their_own_forward():
    """Some families cap or scale logits after the output layer; the short cut must notice and step aside."""
    from transformers import Gemma2Config, Gemma2ForCausalLM

    torch.manual_seed(0)
    words = tokenizer()
    model = Gemma2ForCausalLM(
        Gemma2Config(
            vocab_size=len(words),
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=8,
            final_logit_softcapping=0.05,
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=2,
        )
    )
    one = Student(model, words)
    assert not one.passes.states_give_logits
    with torch.no_grad():
        rows = one.rows_from_text(PROMPTS, LINES)
        mine = one.score(rows, values=True, entropy=True)
        for i, (prompt, line) in enumerate(zip(PROMPTS, LINES, strict=True)):
            expected = naive_logprobs(one, prompt, line)
            assert torch.allclose(mine.logprobs[i][rows.action_mask[i].bool()], expected, atol=1e-5)


def test_rows_are_trimmed_and_grouped_by_length():
    attention = torch.tensor([[1, 0, 0], [1, 1, 1], [1, 1, 0]])
    rows = TokenRows(torch.arange(9).view(3, 3), attention, attention * 0)
    assert [b.tolist() for b in length_sorted(rows, 2)] == [[1, 2], [0]]
    assert take_rows(rows, torch.tensor([2, 0])).tokens.tolist() == [[6, 7], [0, 1]]


def test_a_student_can_be_copied():
    one = student()
    stir(one, POLICY)
    twin = copy.deepcopy(one)
    rows = one.rows_from_text(PROMPTS, LINES)
    a = one.score_in_batches(rows, adapter=POLICY).logprobs
    assert torch.equal(a, twin.score_in_batches(rows, adapter=POLICY).logprobs)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_what_is_trained_stays_in_float32(dtype, tmp_path):
    """Steps of 1e-3 on weights near 1 are lost in bfloat16: adapters, value head and optimiser are float32 whatever the
    base is stored in, when made, loaded, copied from one another and saved."""
    words = tokenizer()
    one = Student(llama(len(words)).to(dtype), words)
    stir(one, IMITATION)
    one.start_policy_from_imitation()
    one.save_pretrained(tmp_path)
    wide = Student.load(tmp_path, dtype="float32")
    for each, of_base in ((one, dtype), (Student.load(tmp_path, dtype=dtype), dtype), (wide, torch.float32)):
        assert {t.dtype for t in each.state().values()} == {torch.float32}
        assert each.base.get_input_embeddings().weight.dtype == of_base
        assert all(torch.equal(t, each.state()[n]) for n, t in one.state().items())
        lines = each.generate(["The meeting was slow."], Sampling(max_new_tokens=4))
        assert lines.logprobs.dtype == torch.float32


def test_a_bfloat16_base_is_trained_with_a_float32_optimizer():
    words = tokenizer()
    one = Student(llama(len(words)).bfloat16(), words)
    before = {n: t.clone() for n, t in one.state().items()}
    parameters = list(one.adapter_parameters(POLICY).values()) + list(one.value_head.parameters())
    one.train_only(parameters)
    optimizer = torch.optim.AdamW(parameters, lr=1e-3)
    scored = one.score(one.rows_from_text(PROMPTS, LINES), values=True)
    assert scored.logprobs.dtype == scored.values.dtype == torch.float32
    (scored.values - scored.logprobs).sum().backward()
    optimizer.step()
    moments = [t for held in optimizer.state.values() for n, t in held.items() if n.startswith("exp_avg")]
    assert {t.dtype for t in moments} == {p.grad.dtype for p in parameters} == {torch.float32}
    assert {p.dtype for p in one.model.parameters() if not p.requires_grad and p.ndim == 2} >= {torch.bfloat16}
    assert any(not torch.equal(before[n], t) for n, t in one.state().items())


def test_a_float16_base_writes_but_is_not_trained():
    """Without a scale for the loss, gradients below 6e-8 are 0 in float16: with 10,000 tokens a step 9 % of the
    gradient were gone, with 100,000 tokens 92 %, and nothing said so."""
    words = tokenizer()
    one = Student(llama(len(words)).half(), words)
    assert len(one.generate(["The meeting was slow."], Sampling(max_new_tokens=4)).texts) == 1
    one.train_only(())
    with pytest.raises(StudentError, match=r"float16.*bfloat16"):
        one.train_only(list(one.adapter_parameters(POLICY).values()))


def test_all_weights_are_trained_in_32_bits_only():
    """AdamW's second moment decays by a thousandth a step. In bfloat16, of which all moments then were, the smallest
    change of a number is a 256th of it: the moment never fell again, and steps below that size were lost."""
    moment = torch.tensor(1.0).bfloat16()
    assert moment * 0.999 == moment
    words = tokenizer()
    one = Student(llama(len(words)).bfloat16(), words)
    lines = [Demonstration(Prompt("p", "The meeting was slow."), "So cold.", "t")]
    with pytest.raises(StudentError, match=r"full = true.*bfloat16.*float32"):
        sft.train(sft.SFTConfig(full=True), one, lines)
    sft.train(sft.SFTConfig(epochs=1), one, lines)
    assert {t.dtype for t in one.state().values()} == {torch.float32}


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_a_gpu_that_is_not_there_ends_in_a_sentence():
    """It ended in torch's assertion that it was not compiled with CUDA, or in a driver's error."""
    with pytest.raises(
        StudentError, match=r"student.* device is 'cuda', but torch finds no usable GPU.*device = \"cpu\""
    ):
        student(device="cuda")


def test_a_template_that_refuses_a_system_turn_gets_the_instruction_in_the_user_turn():
    """Gemma 2 and Mistral 7B v0.1 as a student with an instruction: a raw jinja2.TemplateError."""
    words = tokenizer()
    words.chat_template = (
        "{% for m in messages %}{% if m['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}"
        "<{{ m['role'] }}>{{ m['content'] }}{% endfor %}"
    )
    one = Student(llama(), words, instruction="Make it funny.")
    assert words.decode(one.encode_prompt("It was slow.")) == "<user>Make it funny.\n\nIt was slow."
    words.chat_template = "{% for m in messages if m['role'] == 'user' %}<user>{{ m['content'] }}{% endfor %}"
    assert words.decode(one.encode_prompt("It was slow.")) == "<user>Make it funny.\n\nIt was slow."
    words.chat_template = "{{ raise_exception('nothing at all') }}"
    with pytest.raises(StudentError, match=r"chat template.*nothing at all"):
        one.encode_prompt("It was slow.")
    words.chat_template = "{{ messages[0]['role'] }}"
    with pytest.raises(StudentError, match="does not show"):
        one.encode_prompt("It was slow.")
