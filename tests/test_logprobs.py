import math

import pytest
import torch
from torch import nn

from humor_env.agents.student.logprobs import (
    all_logits,
    chunk_rows,
    kl_k1,
    kl_k3,
    masked_row_mean,
    tile,
    token_logprobs,
)


def test_logprobs_by_hand():
    # logits [0, ln 3] -> probabilities 1/4, 3/4
    head = nn.Linear(1, 2, bias=False)
    head.weight.data = torch.tensor([[0.0], [math.log(3)]])
    head.requires_grad_(False)
    logprobs, entropy = token_logprobs(torch.tensor([[1.0], [1.0]]), head, torch.tensor([0, 1]), entropy=True)
    assert logprobs.tolist() == pytest.approx([math.log(0.25), math.log(0.75)], abs=1e-6)
    by_hand = -(0.25 * math.log(0.25) + 0.75 * math.log(0.75))
    assert entropy.tolist() == pytest.approx([by_hand, by_hand], abs=1e-6)


@pytest.mark.parametrize("temperature", [1.0, 0.5, 2.0])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("shape", [(1024, 512), (7, 3), (50, 1)])
def test_frozen_head_gradients_equal_autograd_in_tiles(temperature, bias, shape, monkeypatch):
    """The slope worked out in forward must equal what autograd finds through the full logits."""
    monkeypatch.setattr("humor_env.agents.student.logprobs.TILE_ROWS", shape[0])
    monkeypatch.setattr("humor_env.agents.student.logprobs.TILE_COLUMNS", shape[1])
    generator = torch.Generator().manual_seed(0)
    head = nn.Linear(6, 11, bias=bias).double().requires_grad_(False)
    hidden = torch.randn(50, 6, generator=generator, dtype=torch.float64)
    targets = torch.randint(11, (50,), generator=generator)
    weights = torch.randn(50, generator=generator, dtype=torch.float64)

    def loss_of(logprobs, entropy):
        return (weights * logprobs).sum() + (weights.square() * entropy).sum()

    ours = hidden.clone().requires_grad_()
    logprobs, entropy = token_logprobs(
        ours, head, targets, temperature=temperature, entropy=True, entropy_gradient=True
    )
    loss_of(logprobs, entropy).backward()

    naive = hidden.clone().requires_grad_()
    full = (head(naive) / temperature).log_softmax(-1)
    assert len(full.argmax(-1).unique()) > 3, "the largest logit is in several tiles"
    naive_logprobs = full.gather(-1, targets[:, None]).squeeze(-1)
    naive_entropy = -(full.exp() * full).sum(-1)
    loss_of(naive_logprobs, naive_entropy).backward()

    assert torch.allclose(logprobs.double(), naive_logprobs, atol=1e-5)
    assert torch.allclose(entropy.double(), naive_entropy, atol=1e-5)
    assert torch.allclose(ours.grad, naive.grad, atol=1e-5)


def test_entropy_is_only_a_number_unless_its_gradient_is_asked_for():
    head = nn.Linear(4, 7).requires_grad_(False)
    hidden = torch.randn(3, 4, requires_grad=True)
    logprobs, entropy = token_logprobs(hidden, head, torch.tensor([0, 1, 2]), entropy=True)
    (logprobs.sum() * 0 + entropy.sum()).backward()
    assert hidden.grad.abs().max() == 0


def test_a_trainable_head_gets_its_gradient():
    head = nn.Linear(4, 7)
    hidden = torch.randn(40, 4)
    targets = torch.arange(40) % 7
    logprobs, _ = token_logprobs(hidden, head, targets)
    logprobs.sum().backward()
    got = head.weight.grad.clone()
    head.weight.grad = None
    head(hidden).log_softmax(-1).gather(-1, targets[:, None]).sum().backward()
    assert torch.allclose(got, head.weight.grad, atol=1e-5)


@pytest.mark.parametrize("frozen", [True, False])
def test_memory_of_logits_stays_bounded(frozen):
    """64 x 512 tokens over a vocabulary of 151,936 would be 20 GB of logits; here the same at 1/64 of the scale.

    What autograd keeps for backward must not grow with the vocabulary.
    """
    rows, vocabulary, width = 512, 151_936 // 64, 8
    head = nn.Linear(width, vocabulary, bias=False).requires_grad_(not frozen)
    hidden = torch.randn(rows, width, requires_grad=True)
    kept = 0

    def count(tensor):
        nonlocal kept
        if tensor.data_ptr() != head.weight.data_ptr():
            kept += tensor.numel() * tensor.element_size()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(count, lambda t: t):
        token_logprobs(hidden, head, torch.zeros(rows, dtype=torch.long))
    logits_bytes = rows * vocabulary * 4
    assert kept < logits_bytes / 10


def test_kl_estimators_by_hand():
    # pi = 0.5, ref = 0.25: log(pi/ref) = ln 2; ref/pi - 1 - ln(ref/pi) = 0.5 - 1 + ln 2
    logprobs, ref = torch.tensor([math.log(0.5)]), torch.tensor([math.log(0.25)])
    assert kl_k1(logprobs, ref).item() == pytest.approx(math.log(2), abs=1e-6)
    assert kl_k3(logprobs, ref).item() == pytest.approx(math.log(2) - 0.5, abs=1e-6)


def test_kl_estimators_average_to_the_true_kl():
    pi, ref = torch.tensor([0.7, 0.2, 0.1]), torch.tensor([0.2, 0.5, 0.3])
    truth = (pi * (pi / ref).log()).sum()
    for estimator in (kl_k1, kl_k3):
        assert torch.allclose((pi * estimator(pi.log(), ref.log())).sum(), truth, atol=1e-6)
    assert (kl_k3(pi.log(), ref.log()) >= 0).all()


def test_masked_row_means():
    values = torch.tensor([[1.0, 2.0, 100.0], [3.0, 100.0, 100.0]])
    mask = torch.tensor([[1, 1, 0], [1, 0, 0]])
    assert masked_row_mean(values, mask).tolist() == [1.5, 3.0]
    assert masked_row_mean(values, torch.zeros(2, 3)).tolist() == [0.0, 0.0], "no token: no 0 / 0"


@pytest.mark.parametrize("temperature", [1.0, 0.5])
@pytest.mark.parametrize("kind", ["trainable", "function"])
def test_any_other_head_equals_the_formula_in_chunks(kind, temperature, monkeypatch):
    """A head that is trained, and one that is no layer at all: log-softmax of logits / temperature, and its entropy."""
    monkeypatch.setattr("humor_env.agents.student.logprobs.CHUNK_BYTES", 1)
    generator = torch.Generator().manual_seed(0)
    layer = nn.Linear(6, 11).double()
    head = layer if kind == "trainable" else lambda states: layer(states).tanh() * 3
    hidden = torch.randn(50, 6, generator=generator, dtype=torch.float64)
    targets = torch.randint(11, (50,), generator=generator)
    full = (head(hidden) / temperature).log_softmax(-1)
    for context in (torch.enable_grad(), torch.no_grad()):
        with context:
            logprobs, entropy = token_logprobs(hidden, head, targets, temperature=temperature, entropy=True)
            assert torch.allclose(logprobs.double(), full.gather(-1, targets[:, None]).squeeze(-1), atol=1e-5)
            assert torch.allclose(entropy.double(), -(full.exp() * full).sum(-1), atol=1e-5)
            assert not entropy.requires_grad
            assert token_logprobs(hidden, head, targets)[1] is None, "nobody asked"
    with_gradient = token_logprobs(hidden, head, targets, entropy=True, entropy_gradient=True)[1]
    with_gradient.sum().backward()
    assert layer.weight.grad.abs().sum() > 0


def test_without_rows_there_is_nothing_to_score():
    for head in (nn.Linear(4, 7), nn.Linear(4, 7).requires_grad_(False)):
        logprobs, entropy = token_logprobs(torch.zeros(0, 4), head, torch.zeros(0, dtype=torch.long), entropy=True)
        assert logprobs.shape == entropy.shape == (0,)
        assert logprobs.dtype == torch.float32


@pytest.mark.parametrize("entropy", [True, False])
def test_a_frozen_heads_gradient_is_the_same_whether_or_not_entropy_is_asked_for(entropy):
    """d log p(target) / dh = W[target] - sum of p W."""
    head = nn.Linear(3, 4).double().requires_grad_(False)
    hidden = torch.randn(5, 3, dtype=torch.float64, requires_grad=True)
    targets = torch.tensor([0, 1, 2, 3, 0])
    token_logprobs(hidden, head, targets, entropy=entropy)[0].sum().backward()
    by_hand = head.weight[targets] - head(hidden.detach()).softmax(-1) @ head.weight
    assert torch.allclose(hidden.grad, by_hand, atol=1e-5)


def test_tiles_of_very_different_size_do_not_overflow(monkeypatch):
    """Logits of -1000 come first, then +1000: sums are relative to the largest so far."""
    monkeypatch.setattr("humor_env.agents.student.logprobs.TILE_COLUMNS", 2)
    monkeypatch.setattr("humor_env.agents.student.logprobs.TILE_ROWS", 2)
    head = nn.Linear(1, 6, bias=False).requires_grad_(False)
    head.weight.data = torch.tensor([[-1000.0], [-1001.0], [1000.0], [999.0], [-1000.0], [1000.0]])
    for sign in (1.0, -1.0):
        hidden = torch.full((3, 1), sign, requires_grad=True)
        targets = torch.tensor([0, 3, 5])
        logprobs, entropy = token_logprobs(hidden, head, targets, entropy=True, entropy_gradient=True)
        exact = hidden.detach().double().requires_grad_()
        full = (exact @ head.weight.double().T).log_softmax(-1)
        assert torch.allclose(logprobs.double(), full.gather(-1, targets[:, None]).squeeze(-1), atol=1e-3)
        assert torch.allclose(entropy.double(), -(full.exp() * full).sum(-1), atol=1e-3)
        (logprobs.sum() + entropy.sum()).backward()
        (full.gather(-1, targets[:, None]).sum() - (full.exp() * full).sum()).backward()
        assert torch.allclose(hidden.grad.double(), exact.grad, rtol=1e-3, atol=1e-2)


def test_a_large_output_layer_is_computed_in_tiles_of_many_rows():
    """On two cores, SmolLM2's layer of 49,152 words took 2.7 times as long in chunks of 64 rows and all columns."""
    cpu = torch.device("cpu")
    assert tile(1536, 49_152, cpu) == (1024, 512)
    assert tile(64, 49_152, cpu) == (64, 1024)
    assert tile(1, 49_152, cpu) == (1, 65_536), "one call"
    assert tile(64, 49_152, torch.device("cuda")) == (chunk_rows(49_152, torch.device("cuda")), 49_152)


@pytest.mark.parametrize("bias", [False, True])
def test_all_logits_equal_the_layers_own(bias):
    """Also where the last part is smaller, and in training."""
    layer = nn.Linear(5, 9_001, bias=bias)
    states = torch.randn(3, 2, 5, requires_grad=True)
    logits = all_logits(layer, states)
    assert torch.allclose(logits, layer(states), atol=1e-6)
    weights = torch.randn(9_001)
    (logits * weights).sum().backward()
    got = states.grad.clone(), layer.weight.grad.clone()
    states.grad = layer.weight.grad = None
    (layer(states) * weights).sum().backward()
    assert torch.allclose(got[0], states.grad, rtol=1e-4, atol=1e-3)
    assert torch.allclose(got[1], layer.weight.grad, rtol=1e-4, atol=1e-3)


def test_all_logits_calls_a_layer_that_is_not_plain():
    class Doubled(nn.Linear):
        def forward(self, states):
            return 2 * super().forward(states)

    layer, states = Doubled(5, 9_001), torch.randn(3, 5)
    assert torch.equal(all_logits(layer, states), layer(states))


@pytest.mark.parametrize("columns", [512, 20_000])
def test_the_entropys_gradient_in_bfloat16_is_as_exact_as_its_products(columns, monkeypatch):
    """Words' embeddings have a large common part. As the difference of two rounded products it was 12 % off."""
    monkeypatch.setattr("humor_env.agents.student.logprobs.TILE_COLUMNS", columns)
    generator = torch.Generator().manual_seed(0)
    head = nn.Linear(32, 20_000, bias=False).requires_grad_(False)
    head.weight.data = torch.randn(20_000, 32, generator=generator) * 0.3 + 1.5 * torch.randn(32, generator=generator)
    head = head.bfloat16()
    hidden = torch.randn(100, 32, generator=generator).bfloat16()
    exact = hidden.double().requires_grad_()
    full = (exact @ head.weight.double().T).log_softmax(-1)
    (-(full.exp() * full).sum()).backward()
    ours = hidden.clone().requires_grad_()
    targets = torch.zeros(100, dtype=torch.long)
    _, entropy = token_logprobs(ours, head, targets, entropy=True, entropy_gradient=True)
    entropy.sum().backward()
    assert (ours.grad.double() - exact.grad).norm() < 0.04 * exact.grad.norm()


@pytest.mark.parametrize("gradient", [True, False])
def test_a_token_outside_the_vocabulary_has_no_plausible_probability(gradient):
    head = nn.Linear(4, 2000).requires_grad_(False)
    hidden = torch.randn(2, 4, requires_grad=gradient)
    for token in (-1, -100) if gradient else (2000, -1, -100):
        logprobs, _ = token_logprobs(hidden, head, torch.tensor([1, token]))
        assert logprobs[0].isfinite() and logprobs[1].isnan()
    if gradient:
        with pytest.raises(IndexError):  # the gradient needs its row of the weights
            token_logprobs(hidden, head, torch.tensor([1, 2000]))
