"""PEFT's LoRA layer, computed in fewer passes over memory.

    use_fused_lora(model)      # converts every plain LoRA layer; anything special is left to PEFT

On a CPU half of an adapter's cost is not its matrix products but `result + lora_B(lora_A(dropout(x))) * scaling`: three
more tensors as large as the layer's output, written and read again in the backward pass. Here the adapter's share is
added into the output by the product itself, and only x and the rank-sized middle are kept. On a base in bfloat16 the
float32 adapter is multiplied in bfloat16, as under autocast; PEFT would compute the share, and keep x, in float32.

The parameters are PEFT's own, under their own names; with dropout, DoRA, several active adapters or other precisions
PEFT's own code runs.
"""

from __future__ import annotations

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
