"""Attention in plain products is that of transformers: for shared heads, masks, padding, and in the backward pass."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
)
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from humor_env.agents.student import POLICY, Student, short_attention
from humor_env.agents.student.short_attention import NAME

SHAPE: dict[str, Any] = {
    "vocab_size": 320,
    "hidden_size": 48,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


class Layer(nn.Module):
    """What an attention layer tells of itself."""

    def __init__(self, groups: int, *, is_causal: bool = True) -> None:
        super().__init__()
        self.num_key_value_groups, self.is_causal = groups, is_causal


def inputs(steps: int, seen: int, dtype: torch.dtype, *, heads: int = 6, shared: int = 3) -> list[Tensor]:
    torch.manual_seed(0)
    shapes = [(4, heads, steps, 8), (4, heads // shared, seen, 8), (4, heads // shared, seen, 8)]
    return [(2 * torch.randn(shape)).to(dtype).requires_grad_() for shape in shapes]


def padded(steps: int, seen: int) -> Tensor:
    """Causal, with the first row's left side, and all that the second row's first step could see, masked."""
    mask = torch.ones(4, 1, steps, seen, dtype=torch.bool).tril(seen - steps)
    mask[0, :, :, : seen // 2 - 1] = False
    mask[1, :, 0] = False
    return mask


def outcome(attend: Any, layer: Layer, tensors: list[Tensor], mask: Tensor | None, **options: Any) -> list[Tensor]:
    """The output and the gradients; a step that sees nothing may give anything finite."""
    copies = [t.detach().clone().requires_grad_() for t in tensors]
    out, weights = attend(layer, *copies, mask, dropout=0.0, **options)
    assert weights is None and bool(torch.isfinite(out).all())
    if mask is not None:
        sees = mask.any(-1) if mask.dtype == torch.bool else (mask > -1).any(-1)
        out = out * sees[:, 0, :, None, None]
    (out.float() * torch.arange(1, out.shape[-1] + 1)).sum().backward()
    return [out.detach(), *[c.grad for c in copies if c.grad is not None]]


MASKS = {"none": lambda t, s: None, "padded": padded, "added": lambda t, s: torch.where(padded(t, s), 0.0, -1e9)}


@pytest.mark.parametrize("kind", MASKS)
@pytest.mark.parametrize(("steps", "seen"), [(1, 9), (12, 12), (5, 12)])
def test_it_gives_what_transformers_gives(kind: str, steps: int, seen: int) -> None:
    mask = MASKS[kind](steps, seen)
    if mask is None and steps not in (1, seen):
        pytest.skip("transformers makes a mask there")
    tensors, layer = inputs(steps, seen, torch.float32), Layer(3)
    assert short_attention._is_short(layer, *tensors, mask, {"scaling": 0.4})
    for scaling in (None, 0.4):
        wanted = outcome(sdpa_attention_forward, layer, tensors, mask, scaling=scaling)
        found = outcome(short_attention.short_attention, layer, tensors, mask, scaling=scaling)
        for a, b in zip(found, wanted, strict=True):
            assert torch.allclose(a, b, atol=1e-4), (a - b).abs().max()


@pytest.mark.parametrize("shared", [1, 3])
def test_in_bfloat16_it_is_as_near_to_32_bits_as_the_fused_one(shared: int) -> None:
    layer, mask = Layer(shared), padded(12, 12)
    exact = outcome(sdpa_attention_forward, layer, inputs(12, 12, torch.float32, shared=shared), mask)
    narrow = inputs(12, 12, torch.bfloat16, shared=shared)
    assert short_attention._is_short(layer, *narrow, mask, {})
    ours = outcome(short_attention.short_attention, layer, narrow, mask)
    theirs = outcome(sdpa_attention_forward, layer, narrow, mask)
    for a, b, wanted in zip(ours, theirs, exact, strict=True):
        assert a.dtype == torch.bfloat16
        assert (a.float() - wanted).norm() < 1.5 * (b.float() - wanted).norm() + 1e-3 * wanted.norm()


@pytest.mark.parametrize(
    ("tensors", "layer", "mask", "options"),
    [
        pytest.param(inputs(100, 100, torch.float32), Layer(3), padded(100, 100), {}, id="long"),
        pytest.param(inputs(12, 12, torch.float32, shared=1), Layer(1), padded(12, 12), {}, id="no shared heads"),
        pytest.param(inputs(12, 12, torch.float32), Layer(3, is_causal=False), None, {}, id="sees what follows"),
        pytest.param(inputs(5, 12, torch.float32), Layer(3), None, {}, id="a past without a mask"),
        pytest.param(
            inputs(5, 5, torch.float32), Layer(3), padded(5, 5).expand(4, 6, 5, 5), {}, id="a mask for each head"
        ),
        pytest.param(
            inputs(5, 5, torch.float32), Layer(3), None, {"position_bias": torch.zeros(4, 6, 5, 5)}, id="position bias"
        ),
    ],
)
def test_the_rest_is_left_to_transformers(tensors: Any, layer: Layer, mask: Tensor | None, options: Any) -> None:
    wanted = outcome(sdpa_attention_forward, layer, tensors, mask, **options)
    found = outcome(short_attention.short_attention, layer, tensors, mask, **options)
    assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))
    assert not short_attention._is_short(layer, *tensors, mask, options)


def test_dropout_is_left_to_transformers_and_a_single_step_is_short_whatever_its_past() -> None:
    layer, mask = Layer(3), padded(5, 5)
    assert not short_attention._is_short(layer, *inputs(5, 5, torch.float32), mask, {"dropout": 0.1})
    assert short_attention._is_short(layer, *inputs(1, 20_000, torch.float32), None, {"dropout": 0.0})
    query, key, value = inputs(5, 5, torch.float32)
    assert not short_attention._is_short(layer, query, key, torch.cat([value, value], -1), mask, {})


def test_an_option_that_transformers_refuses_is_refused() -> None:
    with pytest.raises(ValueError, match="softcap"):
        short_attention.short_attention(Layer(3), *inputs(5, 5, torch.float32), None, softcap=30.0)


def made(family: str) -> PreTrainedModel:
    torch.manual_seed(0)
    if family == "qwen2":
        return Qwen2ForCausalLM(Qwen2Config(**SHAPE))
    if family == "mistral":
        return MistralForCausalLM(MistralConfig(**SHAPE, sliding_window=6))
    return LlamaForCausalLM(LlamaConfig(**SHAPE))


@pytest.mark.parametrize("family", ["llama", "qwen2", "mistral"])
def test_a_student_scores_as_with_transformers_attention(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same student once with each: log-probabilities and the gradients of its adapters."""
    calls = []
    real = short_attention._is_short

    def counted(*rest: Any) -> bool:
        calls.append(real(*rest))
        return calls[-1]

    monkeypatch.setattr(short_attention, "_is_short", counted)
    results = []
    for name in (NAME, "sdpa"):
        student = Student(made(family), tiny.tokenizer())
        assert student.base.config._attn_implementation == NAME
        student.base.set_attn_implementation(name)
        tiny.stir(student, POLICY)
        parameters = list(student.adapter_parameters(POLICY).values())
        student.train_only(parameters)
        rows = student.rows_from_text(["The soup was cold.", "A very long meeting was slow."] * 3, ["a b c", "c"] * 3)
        scored = student.score(rows)
        scored.logprobs.sum().backward()
        results.append([scored.logprobs.detach(), *[p.grad for p in parameters if p.grad is not None]])
    assert calls and all(calls)
    assert len(results[0]) > 10
    for a, b in zip(*results, strict=True):
        assert torch.allclose(a, b, atol=1e-4), (a - b).abs().max()


def test_a_saved_student_does_not_name_it(tmp_path: Path) -> None:
    """A folder must load where this library is not installed."""
    Student(made("llama"), tiny.tokenizer()).save_pretrained(tmp_path)
    assert not [file for file in tmp_path.rglob("*.json") if NAME in file.read_text()]
    assert json.loads((tmp_path / "base" / "config.json").read_text())["num_key_value_heads"] == 2
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "base").config._attn_implementation == "sdpa"


@pytest.mark.parametrize("choice", ["eager", "flex_attention"])
def test_an_attention_that_somebody_chose_is_kept(choice: str) -> None:
    model = made("llama")
    model.config._attn_implementation = choice
    short_attention.use_short_attention(model)
    assert model.config._attn_implementation == choice


def test_an_encoder_decoder_keeps_its_own() -> None:
    assert Student(tiny.bart(), tiny.tokenizer()).base.config._attn_implementation == "sdpa"
