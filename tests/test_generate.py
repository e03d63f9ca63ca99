import itertools

import pytest
import torch
from tiny import stir, student

from humor_env.agents.student import POLICY
from humor_env.agents.student import sampling as sampling_module
from humor_env.agents.student.beams import beams
from humor_env.agents.student.sampling import Sampling, choose, sample
from humor_env.errors import InvalidOption

FAMILIES = ["causal", "seq2seq"]
PROMPTS = ["The meeting was slow.", "My soup", "A much longer sentence about the meeting.", "My soup"]


def uniforms(rows: int, columns: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(rows, columns, generator=torch.Generator().manual_seed(seed))


def test_choose_walks_the_running_sum():
    # probabilities 0.2, 0.3, 0.5
    logits = torch.tensor([[0.2, 0.3, 0.5]]).log().expand(4, 3)
    chosen, logprobs = choose(logits, torch.tensor([0.0, 0.19, 0.21, 0.999]), Sampling())
    assert chosen.tolist() == [0, 0, 1, 2]
    assert logprobs.exp().tolist() == pytest.approx([0.2, 0.2, 0.3, 0.5], abs=1e-6)


def test_choose_never_takes_an_impossible_token():
    logits = torch.tensor([[-torch.inf, 0.0, -torch.inf]]).expand(3, 3)
    chosen, _ = choose(logits, torch.tensor([0.0, 0.5, 1 - 2**-24]), Sampling())
    assert chosen.tolist() == [1, 1, 1]


def one_by_one(weights: torch.Tensor, uniform: torch.Tensor) -> list[int]:
    """The definition, in double precision: the first index at which the running sum exceeds the target."""
    running = weights.double().cumsum(-1)
    return [int((row > u * row[-1]).nonzero()[0]) for row, u in zip(running, uniform.double(), strict=True)]


@pytest.mark.parametrize("vocabulary", [300, 4096, 4097, 5000, 49_152])
def test_the_search_among_many_tokens_is_the_walk_along_them(vocabulary):
    """In blocks, whose number does not always divide the vocabulary; most tokens are impossible in every third row."""
    generator = torch.Generator().manual_seed(vocabulary)
    logits = 3 * torch.randn(60, vocabulary, generator=generator)
    impossible = torch.rand(20, vocabulary, generator=generator) < 0.999
    impossible[:, vocabulary // 2] = False
    logits[::3] = logits[::3].masked_fill(impossible, -torch.inf)
    uniform = torch.rand(60, generator=generator)
    uniform[:6] = torch.tensor([0.0, 1 - 2**-24]).repeat(3)
    chosen, logprobs = choose(logits, uniform, Sampling())
    assert chosen.tolist() == one_by_one(logits.softmax(-1), uniform)
    assert torch.allclose(logprobs, logits.log_softmax(-1).gather(-1, chosen[:, None]).squeeze(-1), atol=1e-5)


@pytest.mark.parametrize("only", [0, 255, 256, 4095, 4096, 4999])
def test_the_one_possible_token_of_many_is_always_chosen(only):
    logits = torch.full((3, 5000), -torch.inf)
    logits[:, only] = 0.0
    chosen, _ = choose(logits, torch.tensor([0.0, 0.5, 1 - 2**-24]), Sampling())
    assert chosen.tolist() == [only] * 3


def test_a_blocks_last_possible_token_takes_what_rounding_leaves(monkeypatch):
    """A block whose sum was rounded up: the target is beyond its running sum, and zeros follow."""
    weights = torch.zeros(1, 4096)
    weights[0, 300:310] = 0.1  # in float32 their sum is above or below the exact one
    for nudge in (0.9999999, 1.0000001):
        real = torch.Tensor.sum
        monkeypatch.setattr(torch.Tensor, "sum", lambda self, *a, n=nudge, r=real, **k: r(self, *a, **k) * n)
        for uniform in (0.0, 1 - 2**-24, 1 - 2**-53):
            found = sampling_module._at(weights, torch.tensor([[uniform]], dtype=torch.float64))
            assert 300 <= found.item() < 310
        monkeypatch.undo()


def test_a_target_between_two_blocks_is_not_an_impossible_first_token():
    """`ends - sums` may round to more than the end of the block before, which leaves less than nothing."""
    weights = (20 * torch.randn(50, 5000, generator=torch.Generator().manual_seed(0))).softmax(-1)
    weights[:, :: sampling_module.BLOCK] = 0.0
    sums = torch.stack([block.sum(-1) for block in weights.split(sampling_module.BLOCK, dim=-1)], dim=-1).double()
    ends = sums.cumsum(-1)
    assert ((ends - sums)[:, 1:] > ends[:, :-1]).any()
    for block in range(1, ends.shape[1]):
        chosen = sampling_module._at(weights, ends[:, block - 1 : block] / ends[:, -1:])
        assert (weights.gather(-1, chosen) > 0).all()


def test_a_broken_models_nan_is_no_index_error():
    for vocabulary in (100, 5000):
        chosen, logprobs = choose(torch.full((2, vocabulary), torch.nan), torch.tensor([0.1, 0.9]), Sampling())
        assert (chosen < vocabulary).all() and logprobs.isnan().all()


def test_top_p_and_top_k_cut_the_tail_but_report_the_uncut_probability():
    logits = torch.tensor([[0.1, 0.6, 0.3]]).log()
    for sampling in (Sampling(top_p=0.5), Sampling(top_k=1)):
        chosen, logprobs = choose(logits, torch.tensor([0.99]), sampling)
        assert chosen.item() == 1
        assert logprobs.exp().item() == pytest.approx(0.6, abs=1e-6)
    chosen, _ = choose(logits, torch.tensor([0.99]), Sampling(top_p=0.8))  # the token that crosses 0.8 stays in
    assert chosen.item() == 2
    chosen, _ = choose(logits, torch.tensor([0.01]), Sampling(top_p=0.8))
    assert chosen.item() == 1


def test_temperature_sharpens():
    logits = torch.tensor([[0.0, 1.0]])
    _, logprobs = choose(logits, torch.tensor([0.99]), Sampling(temperature=0.5))
    assert logprobs.item() == pytest.approx(torch.tensor([0.0, 2.0]).log_softmax(-1)[1].item(), abs=1e-6)
    chosen, _ = choose(logits, torch.tensor([0.0]), Sampling(temperature=0.0))
    assert chosen.item() == 1


@pytest.mark.parametrize("family", FAMILIES)
def test_what_sampling_reports_is_what_scoring_finds(family):
    """Tokens, log-probabilities and values, with rows ending at different times and being dropped."""
    one = student(family)
    stir(one, POLICY)
    with torch.no_grad():
        one.value_head.out.weight.normal_(generator=torch.Generator().manual_seed(0))
        bias = torch.zeros(1, one.base.get_output_embeddings().weight.shape[0])
        bias[:, one.end_token] = 4.0  # ends come often
        one.base.final_logits_bias = bias
    out = sample(one, PROMPTS * 4, Sampling(max_new_tokens=12), uniforms=uniforms(16, 12), values=True)
    assert len({len(r) for r in out.responses}) > 2
    rows = one.rows(out.prompts, out.responses)
    scored = one.score_in_batches(rows, adapter=POLICY, values=True)
    for i, response in enumerate(out.responses):
        here = rows.action_mask[i].bool()
        assert torch.allclose(scored.logprobs[i][here], out.logprobs[i, : len(response)], atol=1e-4)
        assert torch.allclose(scored.values[i][here], out.values[i, : len(response)], atol=1e-4)
        ended = response[-1] in one.end_tokens
        assert out.stop_reasons[i] == ("end" if ended else "length")
        assert not any(t in one.end_tokens for t in response[:-1])


@pytest.mark.parametrize("family", FAMILIES)
def test_a_row_does_not_depend_on_its_batch(family):
    one = student(family)
    stir(one, POLICY)
    chance = uniforms(4, 10)
    together = sample(one, PROMPTS, Sampling(max_new_tokens=10), uniforms=chance)
    for i, prompt in enumerate(PROMPTS):
        alone = sample(one, [prompt], Sampling(max_new_tokens=10), uniforms=chance[i : i + 1])
        assert alone.responses[0] == together.responses[i]


def test_the_raw_base_and_the_policy_write_differently():
    one = student()
    stir(one, POLICY, size=1.0)
    chance = uniforms(4, 10)
    policy = sample(one, PROMPTS, Sampling(max_new_tokens=10), uniforms=chance)
    raw = sample(one, PROMPTS, Sampling(max_new_tokens=10), uniforms=chance, adapter=None)
    assert policy.responses != raw.responses


def test_writing_stops_at_the_context():
    one = student()
    out = sample(one, ["word " * 20], Sampling(max_new_tokens=500), uniforms=uniforms(1, 500))
    assert len(out.prompts[0]) + len(out.responses[0]) <= one.context


def test_no_prompt_no_line():
    assert sample(student(), [], Sampling()).texts == []


@pytest.mark.parametrize("bad", [{"max_new_tokens": 0}, {"top_p": 0}, {"temperature": -1}, {"top_k": -1}])
def test_impossible_sampling_is_refused(bad):
    with pytest.raises(InvalidOption):
        Sampling(**bad)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_wide_beam_finds_the_most_probable_line(family):
    """Against brute force over all lines of up to two tokens plus the end, on a cut-down vocabulary."""
    one = student(family)
    stir(one, POLICY, size=0.5)
    few = [one.end_token, 70, 71, 72, 73]
    bias = torch.full((1, one.base.get_output_embeddings().weight.shape[0]), -1e4)
    bias[:, few] = 0.0
    one.base.final_logits_bias = bias  # both scoring and writing add it
    prompt = PROMPTS[0]
    candidates = [[*c, one.end_token] for n in range(3) for c in itertools.product(few[1:], repeat=n)]
    rows = one.rows([one.encode_prompt(prompt)] * len(candidates), candidates)
    totals = one.score_in_batches(rows, adapter=POLICY).logprobs.sum(-1)
    truth = candidates[int(totals.argmax())]
    found = beams(one, [prompt, "My soup"], width=20, max_new_tokens=3, length_penalty=0.0)
    assert found[0][0] == (one.decode(truth[:-1]), "end")
    cut = beams(one, [prompt], width=2, max_new_tokens=1, length_penalty=0.0)[0]
    assert [why for text, why in cut if text] == ["length"] * len([text for text, _ in cut if text]) != []


def test_diverse_groups_differ_and_a_narrow_beam_is_greedy():
    one = student()
    stir(one, POLICY, size=0.5)
    [lines] = beams(one, PROMPTS[:1], width=4, groups=4, diversity=50.0, max_new_tokens=6)
    assert len({text[:1] for text, _ in lines}) == 4  # so strong a penalty forbids an earlier group's token
    [[plain]] = beams(one, PROMPTS[:1], width=1, max_new_tokens=6)
    greedy = sample(one, PROMPTS[:1], Sampling(max_new_tokens=6, temperature=0.0))
    assert plain == (greedy.texts[0], greedy.stop_reasons[0])
    with pytest.raises(InvalidOption, match="divisible"):
        beams(one, PROMPTS[:1], width=5, groups=2)
