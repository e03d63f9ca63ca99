"""Log-probabilities, KL estimators and masked means: the arithmetic that every learner shares.

Two conventions hold everywhere. *Alignment*: in a `[B, T]` tensor column t is about token t, given what precedes it;
column 0 is never a student's choice. *Action mask*: 1 on the tokens the student chose, including its end token.

    logprobs, entropy = token_logprobs(hidden, head, targets)     # [N], [N]; no logits are kept
    masked_row_mean(logprobs, mask)                               # [B]

Logits are never kept. A response of 64 x 512 tokens over 151,000 words would need 20 GB; instead they are computed in
tiles, whose sums are brought to a common scale, and with a frozen output layer (LoRA) the gradient of a row's
log-probability with respect to its hidden state, W[target] - softmax(h W) W, is computed in the forward pass, so that
backward is one multiplication.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

CHUNK_BYTES = 4 << 20  # of fp32 logits at a time, for a layer that is called as a whole
MIN_CHUNK_ROWS = 64  # with fewer, the output layer's weights are read more often than they are used
# On a CPU a product of many rows and few columns is two to three times as fast as one of few rows and all columns.
TILE_ROWS, TILE_COLUMNS = 1024, 512


def chunk_rows(vocabulary: int, device: torch.device) -> int:
    """How many rows of whole logits to hold at once: a cache's worth on CPU, enough to fill a GPU."""
    budget = CHUNK_BYTES if device.type == "cpu" else 256 << 20
    return max(MIN_CHUNK_ROWS, budget // (4 * vocabulary))


def tile(rows: int, vocabulary: int, device: torch.device) -> tuple[int, int]:
    """How many rows and columns of logits to hold at once: on a GPU all columns."""
    if device.type != "cpu":
        return chunk_rows(vocabulary, device), vocabulary
    at_once = max(1, min(rows, TILE_ROWS))
    return at_once, max(TILE_COLUMNS, TILE_ROWS * TILE_COLUMNS // (8 * at_once))  # small tiles are not worth a call


class _RunningSoftmax:
    """The sums of a softmax over logits that arrive in tiles of columns, relative to each row's largest so far."""

    def __init__(self, hidden: Tensor, weight: Tensor, entropy: bool, slope: bool, entropy_slope: bool) -> None:
        rows, device = len(hidden), hidden.device
        self.top = torch.full((rows,), torch.finfo(torch.float32).min, device=device)
        self.total = torch.zeros(rows, device=device)
        self.weighted = torch.zeros(rows, device=device) if entropy else None  # the sum of p z, for z - top
        exact = torch.promote_types(weight.dtype, torch.float32)
        sums = torch.zeros(2 if entropy_slope else 1, rows, weight.shape[1], dtype=exact, device=device)
        self.mean_row = sums[0] if slope else None  # the sum of p W
        self.weighted_row = sums[1] if entropy_slope else None  # the sum of p z W

    def add(self, logits: Tensor, weight: Tensor) -> None:
        """`logits` are overwritten."""
        top = torch.maximum(self.top, logits.amax(-1))
        self._rescale(self.top - top)
        self.top = top
        shifted = logits.sub_(top[:, None])
        if self.weighted is None and self.mean_row is None:
            self.total += shifted.exp_().sum(-1)
            return
        parts = shifted.exp()
        total = parts.sum(-1)
        self.total += total
        if self.weighted is None:
            weighted = None
        else:
            weighted = torch.linalg.vecdot(parts, shifted)
            self.weighted += weighted
        if self.mean_row is None:
            return
        mean_row = parts.to(weight.dtype) @ weight
        self.mean_row += mean_row
        if self.weighted_row is not None and weighted is not None:
            # Around the tile's own mean of z: two large products, each rounded to bfloat16, would not cancel.
            centre = (weighted / total.clamp(min=torch.finfo(torch.float32).tiny))[:, None]
            self.weighted_row += shifted.sub_(centre).mul_(parts).to(weight.dtype) @ weight
            self.weighted_row.addcmul_(mean_row.to(self.weighted_row.dtype), centre)

    def _rescale(self, fall: Tensor) -> None:
        """Express the sums relative to a `top` that is larger by -`fall`."""
        scale = fall.exp()
        if self.weighted_row is not None and self.mean_row is not None:
            self.weighted_row.addcmul_(self.mean_row, fall[:, None]).mul_(scale[:, None])
        if self.mean_row is not None:
            self.mean_row *= scale[:, None]
        if self.weighted is not None:
            self.weighted.addcmul_(self.total, fall).mul_(scale)
        self.total *= scale


class _FrozenHeadLogprobs(torch.autograd.Function):
    """Log-probability (and entropy) of `targets` under softmax(hidden @ weight.T + bias), weight frozen."""

    @staticmethod
    def forward(ctx, hidden, weight, bias, targets, temperature, want_entropy, entropy_gradient):  # type: ignore[no-untyped-def]
        rows = hidden.shape[0]
        logprobs = torch.empty(rows, dtype=torch.float32, device=hidden.device)
        entropy = torch.empty_like(logprobs) if want_entropy else None
        needs_gradient = ctx.needs_input_grad[0]
        slope = torch.empty_like(hidden, dtype=weight.dtype) if needs_gradient else None
        entropy_slope = torch.empty_like(slope) if needs_gradient and want_entropy and entropy_gradient else None
        at_once, columns = tile(rows, len(weight), hidden.device)
        for start in range(0, rows, at_once):
            part = slice(start, start + at_once)
            states, target = hidden[part].to(weight.dtype), targets[part]
            sums = _RunningSoftmax(states, weight, want_entropy, needs_gradient, entropy_slope is not None)
            chosen = torch.full_like(sums.total, torch.nan)  # what a token outside the vocabulary gets
            for first in range(0, len(weight), columns):
                some = slice(first, first + columns)
                logits = _logits(states, weight[some], None if bias is None else bias[some], temperature)
                place = target - first
                here = (place >= 0) & (place < logits.shape[1])
                place = place.clamp(0, logits.shape[1] - 1)
                chosen = torch.where(here, logits.gather(-1, place[:, None]).squeeze(-1), chosen)
                sums.add(logits, weight[some])
            log_total = sums.total.log()
            logprobs[part] = chosen - sums.top - log_total
            if entropy is not None and sums.weighted is not None:
                # H = log Z - sum p z / Z; z is the shifted logit.
                entropy[part] = log_total - sums.weighted / sums.total
            if slope is not None and sums.mean_row is not None:
                # d log p(target) / d h = (W[target] - p W) / temperature
                mean_row = sums.mean_row / sums.total[:, None]
                slope[part] = (weight[target] - mean_row) / temperature
                if entropy_slope is not None and entropy is not None and sums.weighted_row is not None:
                    # dH / dz_i = -p_i (z_i - log Z + H)
                    surprise = sums.weighted_row / sums.total[:, None]
                    surprise += mean_row * (entropy[part] - log_total)[:, None]
                    entropy_slope[part] = -surprise / temperature
        ctx.slope, ctx.entropy_slope, ctx.input_dtype = slope, entropy_slope, hidden.dtype
        return logprobs, entropy

    @staticmethod
    def backward(ctx, grad_logprobs, grad_entropy):  # type: ignore[no-untyped-def]
        grad = ctx.slope * grad_logprobs[:, None].to(ctx.slope.dtype)
        if ctx.entropy_slope is not None and grad_entropy is not None:
            grad.addcmul_(ctx.entropy_slope, grad_entropy[:, None].to(grad.dtype))
        return grad.to(ctx.input_dtype), None, None, None, None, None, None


def _logits(hidden: Tensor, weight: Tensor, bias: Tensor | None, temperature: float) -> Tensor:
    logits = torch.nn.functional.linear(hidden, weight, bias).float()
    return logits if temperature == 1.0 else logits.div_(temperature)


def all_logits(layer: Callable[[Tensor], Tensor], states: Tensor) -> Tensor:
    """An output layer's logits. On a CPU a large plain layer is computed in parts, which is faster."""
    parts = 2 * TILE_COLUMNS
    if type(layer) is not torch.nn.Linear or states.device.type != "cpu" or layer.out_features <= 8 * parts:
        return layer(states)
    weights = layer.weight.split(parts)
    biases = [None] * len(weights) if layer.bias is None else layer.bias.split(parts)
    linear = torch.nn.functional.linear
    return torch.cat([linear(states, *both) for both in zip(weights, biases, strict=True)], dim=-1)


def _plain_logprobs(
    head: Callable[[Tensor], Tensor], hidden: Tensor, targets: Tensor, temperature: float
) -> tuple[Tensor, Tensor]:
    logits = head(hidden).float() / temperature
    log_total = logits.logsumexp(-1)
    logprobs = logits.gather(-1, targets[:, None]).squeeze(-1) - log_total
    entropy = log_total - (logits.softmax(-1) * logits).sum(-1)
    return logprobs, entropy


def token_logprobs(
    hidden: Tensor,
    head: Callable[[Tensor], Tensor],
    targets: Tensor,
    *,
    temperature: float = 1.0,
    entropy: bool = False,
    entropy_gradient: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """Log p(targets | hidden) as fp32 `[N]`, and the entropy `[N]` if requested.

    `hidden` `[N, H]` are the states *before* each target. `head` maps states to logits; when it is a plain frozen
    linear layer no logits outlive a tile even in training, otherwise chunks are recomputed in backward.
    """
    if isinstance(head, torch.nn.Linear) and not head.weight.requires_grad:
        # A frozen layer's bias is frozen too.
        logprobs, entropies = _FrozenHeadLogprobs.apply(
            hidden, head.weight, head.bias, targets, temperature, entropy, entropy_gradient
        )
        return logprobs, entropies
    vocabulary = getattr(head, "out_features", None) or head(hidden[:1]).shape[-1]
    step = chunk_rows(vocabulary, hidden.device)
    pieces = []
    for start in range(0, hidden.shape[0], step):
        args = (head, hidden[start : start + step], targets[start : start + step], temperature)
        if torch.is_grad_enabled():
            pieces.append(checkpoint(_plain_logprobs, *args, use_reentrant=False))
        else:
            pieces.append(_plain_logprobs(*args))
    if not pieces:
        empty = hidden.new_zeros(0, dtype=torch.float32)
        return empty, empty if entropy else None
    logprobs = torch.cat([p[0] for p in pieces])
    entropies = torch.cat([p[1] for p in pieces]) if entropy else None
    if entropies is not None and not entropy_gradient:
        entropies = entropies.detach()
    return logprobs, entropies


def masked_row_mean(values: Tensor, mask: Tensor) -> Tensor:
    """`[B, T]` to `[B]`: the mean of each row over its own mask; 0 if it is empty."""
    mask = mask.to(values.dtype)
    return (values * mask).sum(-1) / mask.sum(-1).clamp(min=1)


def kl_k1(logprobs: Tensor, ref_logprobs: Tensor) -> Tensor:
    """The plain estimate log(pi/ref): unbiased, high variance, can be negative."""
    return logprobs - ref_logprobs


def kl_k3(logprobs: Tensor, ref_logprobs: Tensor) -> Tensor:
    """ref/pi - 1 - log(ref/pi): unbiased where the sample is pi's own, never negative, differentiable in pi."""
    log_ratio = ref_logprobs - logprobs
    return torch.expm1(log_ratio) - log_ratio
