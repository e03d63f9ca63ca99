"""Layers computed in fewer passes over memory, and in fewer kernels, than by PEFT and transformers.

    use_fused_lora(model)      # converts every plain LoRA layer; anything special is left to PEFT
    use_fused_norms(model)     # the same for RMS norms, on a GPU
    with merged_weights(layers, "policy"): ...    # the adapter's share inside the base's weights

On a CPU half of an adapter's cost is not its matrix products but `result + lora_B(lora_A(dropout(x))) * scaling`: three
more tensors as large as the layer's output, written and read again in the backward pass. Here the adapter's share is
added into the output by the product itself, and only x and the rank-sized middle are kept. On a base in bfloat16 the
float32 adapter is multiplied in bfloat16, as under autocast; PEFT would compute the share, and keep x, in float32.

The parameters are PEFT's own, under their own names; with dropout, DoRA, several active adapters or other precisions
PEFT's own code runs.

On a GPU a small model's token is a thousand kernels of two microseconds each, and the norms of transformers are eight
of them at a time. PyTorch has one kernel for a norm, forward and backward.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from functools import cache
from itertools import repeat
from typing import Any

import torch
from peft.tuners.lora.layer import Linear
from torch import Tensor, nn


class _FusedLora(torch.autograd.Function):
    """x W^T + bias + scale (x A^T) B^T, with W and the bias frozen."""

    @staticmethod
    def forward(ctx, x, weight, bias, a, b, scale):  # type: ignore[no-untyped-def]
        flat = x.reshape(-1, x.shape[-1])
        ctx.kinds = a.dtype, b.dtype
        a, b = a.to(x.dtype), b.to(x.dtype)
        middle = flat @ a.t()
        out = flat @ weight.t() if bias is None else torch.addmm(bias, flat, weight.t())
        out.addmm_(middle, b.t(), alpha=scale)
        ctx.save_for_backward(flat, middle, weight, a, b)
        ctx.scale, ctx.shape = scale, x.shape
        return out.view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx, gradient):  # type: ignore[no-untyped-def]
        flat, middle, weight, a, b = ctx.saved_tensors
        of_x = of_a = of_b = None
        gradient = gradient.reshape(-1, gradient.shape[-1])
        if ctx.needs_input_grad[0] or ctx.needs_input_grad[3]:
            of_middle = (gradient @ b).mul_(ctx.scale)
        if ctx.needs_input_grad[0]:
            of_x = (gradient @ weight).addmm_(of_middle, a).view(ctx.shape)
        if ctx.needs_input_grad[3]:
            of_a = (of_middle.t() @ flat).to(ctx.kinds[0])
        if ctx.needs_input_grad[4]:
            of_b = (gradient.t() @ middle).mul_(ctx.scale).to(ctx.kinds[1])
        return of_x, None, None, of_a, of_b, None


class FusedLoraLinear(Linear):
    """The same layer; only its forward pass differs."""

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        base: nn.Linear = self.get_base_layer()  # type: ignore[assignment]
        if self.disable_adapters and not self.merged:
            return base(x)
        adapter = self._plain_adapter(x, base) if not args and not kwargs else None
        if adapter is None:
            return super().forward(x, *args, **kwargs)
        a, b = self.lora_A[adapter].weight, self.lora_B[adapter].weight
        return _FusedLora.apply(x, base.weight, base.bias, a, b, self.scaling[adapter])

    def _plain_adapter(self, x: Tensor, base: nn.Linear) -> str | None:
        """The active adapter, if there is just one and it is plain; else None."""
        if self.merged or len(self.active_adapters) != 1:
            return None
        adapter = self.active_adapters[0]
        if adapter not in self.lora_A or adapter in self.lora_variant or self.lora_B[adapter].bias is not None:
            return None
        dropout = self.lora_dropout[adapter]
        if not isinstance(dropout, nn.Identity) and dropout.training:
            return None
        if base.weight.requires_grad or (base.bias is not None and base.bias.requires_grad):
            return None
        precisions = x.dtype, base.weight.dtype, self.lora_A[adapter].weight.dtype
        mixed = (torch.bfloat16, torch.bfloat16, torch.float32)
        if (len(set(precisions)) > 1 and precisions != mixed) or torch.is_autocast_enabled(x.device.type):
            return None
        return adapter


def use_fused_lora(model: nn.Module) -> None:
    """Turn every plain LoRA layer over a plain linear layer into a fused one, in place."""
    for module in model.modules():
        if type(module) is Linear and type(module.get_base_layer()) is nn.Linear:
            module.__class__ = FusedLoraLinear


def merged_weight(layer: Any, adapter: str, out: Tensor | None = None) -> Tensor:
    """The base layer's weight plus the adapter's share, computed in float32 and rounded once; written to `out` if
    given. No gradient flows."""
    weight: Tensor = layer.get_base_layer().weight.detach()
    is_plain = isinstance(layer, FusedLoraLinear) and adapter not in layer.lora_variant and not layer.fan_in_fan_out
    if is_plain:
        a, b = layer.lora_A[adapter].weight.detach().float(), layer.lora_B[adapter].weight.detach().float()
        scale = layer.scaling[adapter]
        if weight.dtype == torch.float32:
            return torch.addmm(weight, b, a, alpha=scale, out=out)
        merged = torch.addmm(weight.float(), b, a, alpha=scale)
    else:
        merged = weight.float() + layer.get_delta_weight(adapter).detach().float()
    return merged.to(weight.dtype) if out is None else out.copy_(merged)


@contextlib.contextmanager
def merged_weights(layers: Sequence[Any], adapter: str | None, buffers: Sequence[Tensor] = ()) -> Iterator[None]:
    """Every layer's adapter merged into its base's weight, for passes without gradient.

    The originals are set aside and put back, not recovered by subtraction, which drifts in bf16. With `buffers`, one a
    layer, the weights lie in them meanwhile, also without an adapter: a CUDA graph reads them at fixed addresses.
    """
    weights: list[nn.Parameter] = [layer.get_base_layer().weight for layer in layers]
    originals = [weight.data for weight in weights]
    try:
        with torch.no_grad():
            places = buffers or repeat(None, len(layers))
            for layer, weight, original, buffer in zip(layers, weights, originals, places, strict=True):
                if adapter is not None:
                    weight.data = merged_weight(layer, adapter, out=buffer)
                elif buffer is not None:
                    weight.data = buffer.copy_(original)
        yield
    finally:
        for weight, original in zip(weights, originals, strict=True):
            weight.data = original


def use_fused_norms(model: nn.Module) -> None:
    """Let every RMS norm that PyTorch's own function reproduces be computed by it on a GPU, in place."""
    for module in model.modules():
        kind: Any = type(module)
        if kind.__name__.endswith("RMSNorm") and not hasattr(kind, "_own_kind") and _is_plain_norm(module):
            module.__class__ = _fused_norm(kind)


def use_own_norms(model: Any) -> Any:
    """Undo `use_fused_norms`, for a model that leaves this library. Returns it."""
    for module in model.modules():
        module.__class__ = getattr(type(module), "_own_kind", type(module))
    return model


@torch.no_grad()
def _is_plain_norm(norm: Any) -> bool:
    """Whether its output for a few random states is that of PyTorch's function. Some add 1 to their weight."""
    weight, epsilon = getattr(norm, "weight", None), _epsilon(norm)
    if not isinstance(weight, Tensor) or weight.ndim != 1 or epsilon is None:
        return False
    states = torch.randn(3, len(weight), generator=torch.Generator().manual_seed(0)).to(weight)
    try:
        own = norm(states)
    except TypeError:  # it takes more than the states
        return False
    plain = nn.functional.rms_norm(states, weight.shape, weight, epsilon)
    near = 2 * torch.finfo(weight.dtype).eps  # two roundings apart: where one casts before the weight, one after
    return own.dtype == plain.dtype and torch.allclose(own.float(), plain.float(), rtol=max(near, 1e-5), atol=1e-6)


def _epsilon(norm: Any) -> float | None:
    return getattr(norm, "variance_epsilon", getattr(norm, "eps", None))


@cache
def _fused_norm(kind: Any) -> type[nn.Module]:
    def forward(self: Any, states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if args or kwargs or states.dtype != self.weight.dtype or not _saves_kernels(states):
            return kind.forward(self, states, *args, **kwargs)
        return nn.functional.rms_norm(states, self.weight.shape, self.weight, _epsilon(self))

    def reduce(self: Any, protocol: Any) -> tuple[Any, ...]:
        return _new_fused_norm, (kind,), self.__dict__

    own = {"forward": forward, "__reduce_ex__": reduce, "_own_kind": kind, "__module__": kind.__module__}
    return type(kind.__name__, (kind,), own)


def _new_fused_norm(kind: Any) -> nn.Module:
    """What `pickle` and `copy` begin with: they cannot find a class that was made here by its name."""
    fused = _fused_norm(kind)
    return fused.__new__(fused)


def _saves_kernels(states: Tensor) -> bool:
    return states.device.type != "cpu"
