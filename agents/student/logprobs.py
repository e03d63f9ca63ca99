"""Log-probabilities, KL estimators and masked means: the arithmetic that every learner shares.

Two conventions hold everywhere. *Alignment*: in a `[B, T]` tensor column t is about token t, given what precedes it;
column 0 is never a student's choice. *Action mask*: 1 on the tokens the student chose, including its end token.

    logprobs, entropy = token_logprobs(hidden, head, targets)     # [N], [N]; no logits are kept
    masked_row_mean(logprobs, mask)                               # [B]

Logits are never kept. A response of 64 x 512 tokens over 151,000 words would need 20 GB; instead the rows are processed
in chunks, and with a frozen output layer (LoRA) the gradient of a row's log-probability with respect to its hidden
state, W[target] - softmax(h W) W, is computed in the forward pass, so that backward is one multiplication.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

CHUNK_BYTES = 4 << 20  # of fp32 logits at a time: fits in a CPU's cache
MIN_CHUNK_ROWS = 64  # with fewer, the output layer's weights are read more often than they are used


def chunk_rows(vocabulary: int, device: torch.device) -> int:
    """How many rows of logits to hold at once: a cache's worth on CPU, enough to fill a GPU."""
    budget = CHUNK_BYTES if device.type == "cpu" else 256 << 20
    return max(MIN_CHUNK_ROWS, budget // (4 * vocabulary))


class _FrozenHeadLogprobs(torch.autograd.Function):
    """Log-probability (and entropy) of `targets` under softmax(hidden @ weight.T + bias), weight frozen."""

    @staticmethod
    def forward(ctx, hidden, weight, bias, targets, temperature, want_entropy, entropy_gradient):  # type: ignore[no-untyped-def]
        rows = hidden.shape[0]
        logprobs = torch.empty(rows, dtype=torch.float32, device=hidden.device)
        entropy = torch.empty_like(logprobs) if want_entropy else None
        needs_gradient = ctx.needs_input_grad[0]
        slope = torch.empty_like(hidden, dtype=weight.dtype) if needs_gradient else None
        entropy_slope = torch.empty_like(slope) if needs_gradient and entropy_gradient else None
        step = chunk_rows(weight.shape[0], hidden.device)
        for start in range(0, rows, step):
            part = slice(start, start + step)
            target = targets[part]
            logits = _logits(hidden[part], weight, bias, temperature)
            shifted = logits.sub_(logits.amax(-1, keepdim=True))
            chosen = shifted.gather(-1, target[:, None]).squeeze(-1)
            if entropy is None and slope is None:
                logprobs[part] = chosen - shifted.exp_().sum(-1).log_()
                continue
            probabilities = shifted.exp()
            total = probabilities.sum(-1)
            log_total = total.log()
            logprobs[part] = chosen - log_total
            probabilities.div_(total[:, None])
            if entropy is not None:
                # H = log Z - sum p z; z is the shifted logit.
                entropy[part] = log_total - torch.linalg.vecdot(probabilities, shifted)
            if slope is not None:
                # d log p(target) / d h = (W[target] - p W) / temperature
                mean_row = probabilities.to(weight.dtype) @ weight
                slope[part] = (weight[target] - mean_row) / temperature
                if entropy_slope is not None and entropy is not None:
                    # dH / dz_i = -p_i (z_i - log Z + H)
                    surprise = shifted.sub_((log_total - entropy[part])[:, None]).mul_(probabilities)
                    entropy_slope[part] = -(surprise.to(weight.dtype) @ weight) / temperature
        ctx.slope, ctx.entropy_slope, ctx.input_dtype = slope, entropy_slope, hidden.dtype
        return logprobs, entropy

    @staticmethod
    def backward(ctx, grad_logprobs, grad_entropy):  # type: ignore[no-untyped-def]
        grad = ctx.slope * grad_logprobs[:, None].to(ctx.slope.dtype)
        if ctx.entropy_slope is not None and grad_entropy is not None:
            grad.addcmul_(ctx.entropy_slope, grad_entropy[:, None].to(grad.dtype))
        return grad.to(ctx.input_dtype), None, None, None, None, None, None


def _logits(hidden: Tensor, weight: Tensor, bias: Tensor | None, temperature: float) -> Tensor:
    logits = torch.nn.functional.linear(hidden.to(weight.dtype), weight, bias).float()
    return logits if temperature == 1.0 else logits.div_(temperature)


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
    linear layer no logits outlive a chunk even in training, otherwise chunks are recomputed in backward.
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
