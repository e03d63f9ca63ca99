"""The fused LoRA layer computes what PEFT's does, and leaves anything special to it."""

import copy

import pytest
import torch
from peft import LoraConfig, get_peft_model
from peft.tuners.lora.layer import Linear
from torch import nn

from humor_env.agents.student import fused_lora as lora_linear
from humor_env.agents.student.fused_lora import FusedLoraLinear, use_fused_lora


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
    real = lora_linear._FusedLora.apply
    monkeypatch.setattr(lora_linear._FusedLora, "apply", lambda *a: calls.append(1) or real(*a))
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
    real = lora_linear._FusedLora.apply
    monkeypatch.setattr(lora_linear._FusedLora, "apply", lambda *a: calls.append(1) or real(*a))
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

    monkeypatch.setattr(lora_linear._FusedLora, "apply", never)
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
