"""Siblings share their prompt's pass: nothing may change by it but the time it takes."""

import pytest
import torch
from tiny import stir, student, tokenizer
from transformers import MistralConfig, MistralForCausalLM

from humor_env.agents.student import POLICY, Lora, Student, shared_prompts, token_rows
from humor_env.agents.student.beams import beams
from humor_env.agents.student.sampling import Sampling, draw_uniforms, sample
from humor_env.agents.student.shared_prompts import common_prefix, common_prefix_of
from humor_env.agents.student.token_rows import TokenRows, length_sorted, prompt_groups, take_rows

FAMILIES = ("causal", "seq2seq")
PROMPTS = ["The soup was cold.", "A very long meeting was slow."]
LINES = ["a b c", "c", "b a", "", "c c a b"]


def family_rows(one, siblings=4):
    """Prompts of different lengths, each with several responses of different lengths."""
    observations = [p for p in PROMPTS for _ in range(siblings)]
    return one.rows_from_text(observations, [LINES[i % len(LINES)] for i in range(len(observations))])


def scores_and_gradients(one, rows, monkeypatch, *, shared):
    with monkeypatch.context() as patch:
        if not shared:
            patch.setattr(token_rows, "LEAST_SHARING", 10_000)
        parameters = list(one.adapter_parameters(POLICY).values())
        one.train_only(parameters)
        scored = one.score(rows, values=True)
        (scored.logprobs * torch.arange(1, rows.tokens.shape[1] + 1)).sum().backward()
        gradients = [p.grad.clone() for p in parameters]
        for p in parameters:
            p.grad = None
    return scored, gradients


def test_scores_and_gradients_are_those_of_whole_rows(monkeypatch):
    for family in FAMILIES:
        one = student(family)
        stir(one, POLICY)
        torch.nn.init.normal_(one.value_head.out.weight)
        rows = family_rows(one)
        assert len({tuple(o) for o in rows.attention.tolist()}) > 2  # the lengths differ
        apart, expected = scores_and_gradients(one, rows, monkeypatch, shared=False)
        together, found = scores_and_gradients(one, rows, monkeypatch, shared=True)
        assert torch.allclose(apart.logprobs, together.logprobs, atol=1e-5)
        assert torch.allclose(apart.values, together.values, atol=1e-5)
        assert max(float(g.abs().max()) for g in expected) > 1e-2
        for a, b in zip(expected, found, strict=True):
            assert torch.allclose(a, b, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("window", [8, 16])
def test_a_sliding_window_sees_the_text_and_not_the_padding_of_a_shared_prompt(window, monkeypatch):
    """Log-probabilities were wrong by 3 nats and more where prompts of different lengths exceeded the window."""
    torch.manual_seed(0)
    words = tokenizer()
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = MistralConfig(
        vocab_size=len(words), sliding_window=window, num_key_value_heads=2, initializer_range=0.3, **shape
    )
    one = Student(MistralForCausalLM(config), words, lora=Lora(rank=4, alpha=8))
    long = "The very long meeting in the afternoon was slow, and the soup was cold."
    observations = [p for p in (long, "The very cold soup.") for _ in range(4)]
    rows = one.rows_from_text(observations, [LINES[i % len(LINES)] for i in range(8)])
    assert prompt_groups(rows.host.tokens, rows.host.attention, rows.host.action_mask) is not None
    apart, _ = scores_and_gradients(one, rows, monkeypatch, shared=False)
    together, _ = scores_and_gradients(one, rows, monkeypatch, shared=True)
    assert torch.allclose(apart.logprobs, together.logprobs, atol=1e-3)
    written = one.generate(observations, sampling=Sampling(max_new_tokens=8), seed=0)
    again = one.score(one.rows(written.prompts, written.responses))
    for i, response in enumerate(written.responses):
        here = again.logprobs[i][one.rows(written.prompts, written.responses).action_mask[i].bool()]
        assert torch.allclose(here, written.logprobs[i, : len(response)], atol=1e-3)


def test_each_prompt_goes_through_the_model_once(monkeypatch):
    one = student()
    rows = family_rows(one)
    seen = []
    backbone = one.passes.backbone
    assert one.passes.prompts_can_be_shared
    handle = backbone.register_forward_pre_hook(
        lambda _, a, k: seen.append(tuple(k["input_ids"].shape)), with_kwargs=True
    )
    one.score(rows)
    handle.remove()
    widest = int((rows.attention - rows.action_mask).sum(-1).max())
    longest = int(rows.action_mask.sum(-1).max())
    assert seen == [(2, widest), (8, longest - 1)]


@pytest.mark.parametrize("wrong", ["positions", "mask"])
def test_a_model_that_reads_shared_prompts_wrongly_is_found_out(wrong):
    """The tokens of the trial differ: among equal ones neither a position nor a mask would matter."""
    one = student()
    assert one.passes.prompts_can_be_shared
    backbone = one.passes.backbone

    def misread(_, arguments, inputs):
        if inputs.get("position_ids") is not None:  # a pass that goes on from the keys and values of uneven prompts
            kept = inputs["position_ids"], inputs["attention_mask"]
            inputs["position_ids"] = torch.zeros_like(kept[0]) if wrong == "positions" else kept[0]
            inputs["attention_mask"] = torch.ones_like(kept[1]) if wrong == "mask" else kept[1]
        return arguments, inputs

    backbone.register_forward_pre_hook(misread, with_kwargs=True)
    del one.passes.prompts_can_be_shared
    assert not one.passes.prompts_can_be_shared


def test_groups_need_equal_prompts_and_padding_on_the_right():
    tokens = torch.tensor([[7, 8, 1, 2], [7, 8, 3, 0], [7, 8, 1, 1], [7, 9, 1, 1]])
    attention = torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0], [1, 1, 1, 1], [1, 1, 1, 1]])
    mask = torch.tensor([[0, 0, 1, 1], [0, 0, 1, 0], [0, 0, 1, 1], [0, 0, 1, 1]])
    groups = prompt_groups(tokens, attention, mask)
    assert groups.group.tolist() == [0, 0, 0, 1] and groups.first.tolist() == [0, 3]
    assert prompt_groups(tokens[2:], attention[2:], mask[2:]) is None  # two rows, two prompts
    assert prompt_groups(tokens.flip(1), attention.flip(1), mask.flip(1)) is None
    # [7, 8] continued by 1 and [7, 8, 1] are different prompts though the rows look alike.
    longer = torch.tensor([[0, 0, 1, 1], [0, 0, 0, 1]])
    assert prompt_groups(tokens[[0, 0]], attention[[0, 0]], longer) is None


def test_siblings_stay_together_in_micro_batches():
    tokens = torch.tensor([[5, 1, 0, 0], [6, 1, 1, 1], [5, 1, 1, 0], [6, 1, 0, 0]])
    attention = torch.tensor([[1, 1, 0, 0], [1, 1, 1, 1], [1, 1, 1, 0], [1, 1, 0, 0]])
    mask = attention.clone()
    mask[:, 0] = 0
    assert [b.tolist() for b in length_sorted(TokenRows(tokens, attention, mask), 2)] == [[1, 3], [0, 2]]


def test_what_is_written_does_not_depend_on_siblings():
    for family in FAMILIES:
        one = student(family)
        stir(one, POLICY)
        observations = [p for p in PROMPTS for _ in range(3)]
        sampling = Sampling(max_new_tokens=8)
        uniforms = draw_uniforms(6, 8, torch.Generator().manual_seed(3))
        together = sample(one, observations, sampling, uniforms=uniforms, values=True)
        for i, observation in enumerate(observations):
            alone = sample(one, [observation], sampling, uniforms=uniforms[i : i + 1], values=True)
            assert together.responses[i] == alone.responses[0]
            width = len(alone.responses[0])
            assert torch.allclose(together.logprobs[i, :width], alone.logprobs[0, :width], atol=1e-5)


def test_a_part_of_the_rows_is_grouped_anew():
    one = student()
    rows = family_rows(one)
    part = take_rows(rows, torch.tensor([0, 4]))
    assert prompt_groups(part.tokens, part.attention, part.action_mask) is None


INSTRUCTION = "Rewrite the sentence so that it is funny, with an exaggeration. "
DIFFERENT = ["My soup", "The soup was cold.", "A very long meeting was slow.", "x", "My soup so cold"]


def instructed_rows(one, siblings=1):
    one.instruction = INSTRUCTION
    observations = [p for p in DIFFERENT for _ in range(siblings)]
    return one.rows_from_text(observations, [LINES[i % len(LINES)] for i in range(len(observations))])


def without_prefix(monkeypatch):
    monkeypatch.setattr(shared_prompts, "LEAST_PREFIX", 10_000)


@pytest.mark.parametrize("siblings", [1, 3])
def test_a_common_instruction_goes_through_the_model_once(siblings):
    """It went through once a row: with an instruct model two thirds of all tokens of a step."""
    one = student()
    rows = instructed_rows(one, siblings)
    assert one.passes.prompts_can_be_shared
    seen = []
    handle = one.passes.backbone.register_forward_pre_hook(
        lambda _, a, k: seen.append(tuple(k["input_ids"].shape)), with_kwargs=True
    )
    one.score(rows)
    sample(one, DIFFERENT, Sampling(max_new_tokens=2), uniforms=torch.zeros(5, 2))
    handle.remove()
    prefix = common_prefix(rows.tokens, rows.attention, rows.action_mask)
    widest = int((rows.attention - rows.action_mask).sum(-1).max())
    assert prefix > 30
    own = [(5, rows.tokens.shape[1] - 1 - prefix)] if siblings == 1 else [(5, widest - prefix), (15, seen[2][1])]
    assert seen[: len(own) + 1] == [(1, prefix), *own]
    assert seen[len(own) + 1 : len(own) + 3] == [(1, prefix), (5, widest - prefix)]


@pytest.mark.parametrize("siblings", [1, 3])
def test_a_common_instruction_changes_neither_scores_nor_gradients(siblings, monkeypatch):
    one = student()
    stir(one, POLICY)
    torch.nn.init.normal_(one.value_head.out.weight)
    rows = instructed_rows(one, siblings)
    together, found = scores_and_gradients(one, rows, monkeypatch, shared=True)
    without_prefix(monkeypatch)
    apart, expected = scores_and_gradients(one, rows, monkeypatch, shared=False)
    assert torch.allclose(apart.logprobs, together.logprobs, atol=1e-5)
    assert torch.allclose(apart.values, together.values, atol=1e-5)
    for a, b in zip(expected, found, strict=True):
        assert torch.allclose(a, b, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("siblings", [1, 3])
def test_what_is_written_does_not_depend_on_a_shared_instruction(siblings, monkeypatch):
    one = student()
    stir(one, POLICY)
    one.instruction = INSTRUCTION
    observations = [p for p in DIFFERENT for _ in range(siblings)]
    sampling = Sampling(max_new_tokens=8)
    uniforms = draw_uniforms(len(observations), 8, torch.Generator().manual_seed(3))
    together = sample(one, observations, sampling, uniforms=uniforms)
    searched = beams(one, DIFFERENT, width=2, max_new_tokens=5)
    without_prefix(monkeypatch)
    apart = sample(one, observations, sampling, uniforms=uniforms)
    assert together.responses == apart.responses
    assert torch.allclose(together.logprobs, apart.logprobs, atol=1e-5)
    assert searched == beams(one, DIFFERENT, width=2, max_new_tokens=5)


def test_a_prefix_ends_before_the_shortest_prompt_does_and_before_the_first_difference():
    head = list(range(3, 23))
    prompts = [[*head, 50, 51], [*head, 50, 52, 53], [*head, 50], [*head, 50, 51, 54]]
    one = student()

    def shared(prompts):
        rows = one.rows(prompts, [[2], [60, 2], [61, 62, 2], [2]])
        return common_prefix(rows.tokens, rows.attention, rows.action_mask), common_prefix_of(prompts)

    assert shared(prompts) == (20, 20)  # 50 is common too, but the third prompt's last token
    assert shared([[1, *p[1:]] if i == 2 else p for i, p in enumerate(prompts)]) == (0, 0)
    assert shared([[*p[:15], 99 + i, *p[16:]] for i, p in enumerate(prompts)]) == (0, 0)  # 15 tokens: too few
    assert shared([[*p[:18], 99 + i, *p[19:]] for i, p in enumerate(prompts)]) == (18, 18)
    rows = one.rows(prompts, [[2]] * 4)
    flipped = [t.flip(1) for t in (rows.tokens, rows.attention, rows.action_mask)]
    assert common_prefix(*flipped) == 0  # padding on the left
    # Equal tokens of which one row's are its response: not common.
    rows = one.rows([head[:10], *prompts[1:]], [[*head[10:], 2]] + [[2]] * 3)
    assert common_prefix(rows.tokens, rows.attention, rows.action_mask) == 0
