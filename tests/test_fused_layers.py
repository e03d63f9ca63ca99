"""The fused layers compute what PEFT's and transformers' do, and leave anything special to them."""

import copy
import pickle

import pytest
import torch
from peft import LoraConfig, get_peft_model
from peft.tuners.lora.layer import Linear
from tiny import stir, student
from torch import nn
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from humor_env.agents.student import POLICY, fused_layers
from humor_env.agents.student.fused_layers import (
    FusedLoraLinear,
    merged_weight,
    use_fused_lora,
    use_fused_norms,
    use_own_norms,
)


class Two(nn.Module):
    def __init__(self, bias):
        super().__init__()
        self.first, self.second = nn.Linear(6, 5, bias=bias), nn.Linear(5, 3, bias=bias)

    def forward(self, x):
        return self.second(torch.tanh(self.first(x)))


def adapted(bias=True, **options):
    torch.manual_seed(0)
    config = LoraConfig(r=2, lora_alpha=6, target_modules=["first", "second"], init_lora_weights=False, **options)
    return get_peft_model(Two(bias), config).double()


def outcome(model):
    model.zero_grad()
    x = torch.randn(4, 7, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1), requires_grad=True)
    out = model(x)
    (out * torch.arange(3)).sum().backward()
    return [out, x.grad, *(p.grad for p in model.parameters() if p.requires_grad)]


@pytest.mark.parametrize("bias", [True, False])
def test_outputs_and_gradients_are_pefts(bias, monkeypatch):
    model = adapted(bias)
    expected = outcome(model)
    use_fused_lora(model)
    calls = []
    real = fused_layers._FusedLora.apply
    monkeypatch.setattr(fused_layers._FusedLora, "apply", lambda *a: calls.append(1) or real(*a))
    found = outcome(model)
    assert len(calls) == 2 and len(found) == 6
    for a, b in zip(expected, found, strict=True):
        assert torch.allclose(a, b, atol=1e-12)
        assert float(a.abs().max()) > 0


def test_on_a_bfloat16_base_it_is_as_exact_as_its_inputs(monkeypatch):
    """Outputs as near the exact ones as PEFT's, which rounds them to bfloat16 too; gradients in float32, within the
    rounding of bfloat16."""
    torch.manual_seed(0)
    config = LoraConfig(r=8, lora_alpha=16, target_modules=["0"], init_lora_weights=False)
    mixed = get_peft_model(nn.Sequential(nn.Linear(64, 48)).bfloat16(), config)
    assert {p.dtype for p in mixed.parameters() if p.requires_grad} == {torch.float32}
    exact = copy.deepcopy(mixed).double()
    inputs, slopes = torch.randn(3, 700, 64).bfloat16(), torch.randn(3, 700, 48).bfloat16()

    def pieces(model, kind):
        model.zero_grad()
        x = inputs.to(kind).requires_grad_()
        out = model(x)
        out.backward(slopes.to(kind))
        return [out.detach(), x.grad, *(p.grad for p in model.parameters() if p.requires_grad)]

    def errors(found, truth):
        return [float((a.double() - t).norm() / t.norm()) for a, t in zip(found, truth, strict=True)]

    truth = pieces(exact, torch.float64)
    pefts = pieces(mixed, torch.bfloat16)
    use_fused_lora(mixed)
    calls = []
    real = fused_layers._FusedLora.apply
    monkeypatch.setattr(fused_layers._FusedLora, "apply", lambda *a: calls.append(1) or real(*a))
    ours = pieces(mixed, torch.bfloat16)
    assert len(calls) == 1
    assert [t.dtype for t in ours] == [t.dtype for t in pefts] == [torch.bfloat16] * 2 + [torch.float32] * 2
    assert all(a < 1.5 * b for a, b in zip(errors(ours[:2], truth[:2]), errors(pefts[:2], truth[:2]), strict=True))
    assert all(error < 2**-8 for error in errors(ours[2:], truth[2:]))


def test_frozen_base_weights_get_no_gradient():
    model = adapted()
    use_fused_lora(model)
    outcome(model)
    assert all(p.grad is None for n, p in model.named_parameters() if "lora" not in n)


def test_switched_off_it_is_the_base_to_the_bit():
    torch.manual_seed(0)
    plain = Two(True).double()
    model = adapted()
    use_fused_lora(model)
    x = torch.randn(2, 6, dtype=torch.float64)
    with model.disable_adapter():
        assert torch.equal(model(x), plain(x))
    assert not torch.allclose(model(x), plain(x))


def test_dropout_dora_and_two_adapters_are_left_to_peft(monkeypatch):
    def never(*_):
        raise AssertionError("the fused layer ran")

    monkeypatch.setattr(fused_layers._FusedLora, "apply", never)
    for options in ({"lora_dropout": 0.5}, {"use_dora": True}):
        model = adapted(**options).train()
        use_fused_lora(model)
        outcome(model)
    model = adapted()
    model.add_adapter("other", LoraConfig(r=2, target_modules=["first", "second"]))
    model.base_model.set_adapter(["default", "other"])
    use_fused_lora(model.double())
    outcome(model)


def test_a_copy_has_its_own_weights():
    model = adapted()
    use_fused_lora(model)
    twin = copy.deepcopy(model)
    layers = [m for m in twin.modules() if isinstance(m, Linear)]
    assert layers and all(type(m) is FusedLoraLinear for m in layers)
    with torch.no_grad():
        layers[0].lora_B["default"].weight.add_(1.0)
    x = torch.randn(2, 6, dtype=torch.float64)
    assert not torch.allclose(twin(x), model(x))


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("options", [{}, {"use_rslora": True}, {"use_dora": True}])
def test_a_merged_weight_is_the_base_and_pefts_difference_rounded_once(kind, options):
    model = adapted(**options).float()
    use_fused_lora(model)
    for layer in [m for m in model.modules() if isinstance(m, Linear)]:
        base = layer.get_base_layer().to(kind).weight
        before = base.clone()
        a, b = (getattr(layer, name)["default"].weight.double() for name in ("lora_A", "lora_B"))
        exact = base.double() + layer.scaling["default"] * b @ a
        for out in (None, torch.empty_like(base)):
            merged = merged_weight(layer, "default", out=out)
            assert merged.dtype == kind and not merged.requires_grad
            assert out is None or merged is out
            assert torch.allclose(merged.double(), exact, rtol=2**-8 if kind == torch.bfloat16 else 1e-5, atol=1e-6)
        assert torch.equal(base, before)
        assert not torch.equal(merged, base)


class RootMeanSquare:
    """A norm by its formula, as transformers write it."""

    def forward(self, states):
        whole = states.float()
        whole = whole * torch.rsqrt(whole.pow(2).mean(-1, keepdim=True) + self.variance_epsilon)
        return self.weight * whole.to(states.dtype)


class PlainRMSNorm(RootMeanSquare, nn.Module):
    def __init__(self):
        super().__init__()
        self.variance_epsilon = 1e-3
        self.weight = nn.Parameter(torch.linspace(-1.0, 2.0, 8))


class OnePlusRMSNorm(PlainRMSNorm):
    def forward(self, states):
        return super().forward(states) / self.weight * (1 + self.weight)


class OtherEpsilonRMSNorm(nn.Module):
    def __init__(self):
        super().__init__()
        self.eps = 1e-3
        self.weight = nn.Parameter(torch.ones(8))

    def forward(self, states):
        return nn.functional.rms_norm(states, (8,), self.weight, self.eps + 0.5)


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
def test_norms_on_a_gpu_are_the_formulas(kind, monkeypatch):
    """Values and gradients, also of the weight, which is trained with `imitation.full`."""
    norm = PlainRMSNorm().to(kind)
    own = copy.deepcopy(norm)
    use_fused_norms(norm)
    assert type(norm) is not PlainRMSNorm and isinstance(norm, PlainRMSNorm)
    calls = []
    real = nn.functional.rms_norm
    monkeypatch.setattr(nn.functional, "rms_norm", lambda *a: calls.append(1) or real(*a))
    states = torch.randn(4, 3, 8, generator=torch.Generator().manual_seed(1)).to(kind)
    slopes = torch.randn(4, 3, 8, generator=torch.Generator().manual_seed(2)).to(kind)
    assert torch.equal(norm(states), own(states)) and not calls, "on a CPU nothing changes"
    monkeypatch.setattr(fused_layers, "_saves_kernels", lambda states: True)
    pieces = []
    for module in (norm, own):
        x = states.clone().requires_grad_()
        out = module(x)
        out.backward(slopes)
        assert out.dtype == kind
        pieces.append([out, x.grad, module.weight.grad])
    assert len(calls) == 1
    for fused, plain in zip(*pieces, strict=True):
        assert torch.allclose(
            fused.float(), plain.float(), **({"rtol": 2e-2, "atol": 5e-2} if kind == torch.bfloat16 else {"atol": 1e-5})
        )
    twin = copy.deepcopy(norm)
    with torch.no_grad():
        twin.weight.mul_(2)
    assert torch.allclose(twin(states).float(), 2 * norm(states).float(), rtol=1e-2)
    norm(states.double() if kind == torch.float32 else states.float())
    assert len(calls) == 3, "states of another precision than the weight are left to its own formula"


class GatedRMSNorm(PlainRMSNorm):
    def forward(self, states, gate):
        return super().forward(states * gate)


def test_norms_with_another_formula_are_left_alone():
    others = [OnePlusRMSNorm(), OtherEpsilonRMSNorm(), GatedRMSNorm(), nn.LayerNorm(8)]
    whole = nn.Sequential(*others, PlainRMSNorm())
    use_fused_norms(whole)
    assert [type(m) for m in others] == [OnePlusRMSNorm, OtherEpsilonRMSNorm, GatedRMSNorm, nn.LayerNorm]
    assert type(whole[4]) is not PlainRMSNorm


def test_a_llamas_logits_are_the_same_with_fused_norms(monkeypatch):
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {"vocab_size": 50, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2}
    model = LlamaForCausalLM(LlamaConfig(**sizes, num_attention_heads=2)).eval()
    with torch.no_grad():
        for module in model.modules():
            if type(module).__name__.endswith("RMSNorm"):
                module.weight.normal_(generator=torch.Generator().manual_seed(0))
    tokens = torch.arange(12).view(2, 6)
    before = model(tokens).logits
    use_fused_norms(model)
    calls = []
    real = nn.functional.rms_norm
    monkeypatch.setattr(nn.functional, "rms_norm", lambda *a: calls.append(1) or real(*a))
    monkeypatch.setattr(fused_layers, "_saves_kernels", lambda states: True)
    assert torch.allclose(model(tokens).logits, before, atol=1e-5)
    assert len(calls) == 5


def test_fused_norms_can_be_pickled_and_undone():
    """A user saves a whole model with `torch.save`, or sends it to a process that was spawned."""
    norm = PlainRMSNorm()
    use_fused_norms(norm)
    once = type(norm)
    use_fused_norms(norm)
    assert type(norm) is once, "not wrapped twice"
    twin = pickle.loads(pickle.dumps(norm))
    assert type(twin) is once and torch.equal(twin.weight, norm.weight)
    assert twin.weight is not norm.weight
    assert use_own_norms(twin) is twin and type(twin) is PlainRMSNorm
    states = torch.randn(2, 8)
    assert torch.equal(twin(states), norm(states))


def test_models_that_leave_have_transformers_own_norms():
    one = student("causal")
    for model in (one.plain_base(), one.merge()):
        norms = [type(m) for m in model.modules() if type(m).__name__.endswith("RMSNorm")]
        assert norms and all(kind is LlamaRMSNorm for kind in norms)
    assert all(type(m) is not LlamaRMSNorm for m in one.base.modules()), "the student keeps its own"


def test_a_weight_that_two_layers_share_is_restored():
    one = student("causal")
    stir(one, POLICY)
    bases = [layer.get_base_layer() for layer in one.lora_layers]
    first, second = [base for base in bases if base.in_features == base.out_features][:2]
    second.weight = first.weight
    before = first.weight.detach().clone()
    with one.merged(POLICY):
        assert not torch.equal(first.weight, before)
    assert torch.equal(first.weight, before)
