"""Attention for the short texts of this library on a CPU, registered with transformers.

    use_short_attention(model)     # a causal model whose attention is "sdpa"; any other is left alone

On a CPU the fused attention of PyTorch is made for long texts. On a few dozen tokens two plain products are faster: up
to six times in bfloat16, and twice in float32 if several heads share their keys, which are then not copied for each
head. Longer texts, float32 whose heads share no keys, and all that plain products cannot do go to transformers' own
"sdpa", which also runs on every other device.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

NAME = "humor_env_short"
# Most pairs of a query and a key for which plain products are faster (measured on AVX-512 cores).
MOST_PAIRS = {torch.float32: 64 * 128, torch.bfloat16: 128 * 128}
_PLAIN = ("dropout", "scaling", "is_causal", "position_ids", "cache_position", "use_cache", "sliding_window")


def use_short_attention(model: PreTrainedModel) -> None:
    """Let a causal model on a CPU use it for short texts."""
    config = model.config
    if config.is_encoder_decoder or config._attn_implementation != "sdpa" or model.device.type != "cpu":
        return
    model.set_attn_implementation(NAME)


def short_attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **options: Any
) -> tuple[Tensor, None]:
    """The attention function that transformers calls: `[B, H, T, D]` queries over `[B, G, S, D]` keys and values."""
    rows, heads, steps, width = query.shape
    groups, span = key.shape[1:3]
    if not _is_short(module, query, key, value, attention_mask, options):
        return sdpa_attention_forward(module, query, key, value, attention_mask, **options)
    if attention_mask is None and steps > 1:
        attention_mask = torch.ones(1, 1, steps, span, dtype=torch.bool, device=query.device).tril()
    scale = options.get("scaling")
    scaled = query * (width**-0.5 if scale is None else scale)
    # The heads that share keys are further queries of them: their keys are read once, and never repeated.
    scores = torch.matmul(scaled.reshape(rows, groups, -1, width), key.transpose(-1, -2)).view(rows, heads, steps, span)
    if attention_mask is not None and attention_mask.dtype == torch.bool:
        # Not minus infinity: a row of padding sees nothing, and must not become NaN.
        scores = scores.masked_fill(~attention_mask, torch.finfo(scores.dtype).min)
    elif attention_mask is not None:
        scores = scores + attention_mask
    weights = scores.softmax(-1, dtype=torch.float32).to(value.dtype)
    mixed = torch.matmul(weights.view(rows, groups, -1, span), value).view(rows, heads, steps, width)
    return mixed.transpose(1, 2).contiguous(), None


def _is_short(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, options: dict[str, Any]
) -> bool:
    if query.device.type != "cpu" or query.dtype not in MOST_PAIRS or query.dtype != value.dtype:
        return False
    if any(options[name] is not None for name in options if name not in _PLAIN) or options.get("dropout"):
        return False  # something that a plain product does not do
    heads, steps, width = query.shape[1:]
    groups, span = key.shape[1:3]
    if query.dtype == torch.float32 and heads == groups:
        return False  # no faster
    if value.shape[-1] != width or (mask is not None and mask.shape[1] != 1):
        return False
    if mask is None and steps > 1:
        causal = options.get("is_causal")
        if steps != span or not (getattr(module, "is_causal", True) if causal is None else causal):
            return False
    return steps == 1 or steps * span <= MOST_PAIRS[query.dtype]


AttentionInterface.register(NAME, short_attention)
AttentionMaskInterface.register(NAME, sdpa_mask)
