"""From scores to advantages: generalised advantage estimation, group baselines, whitening.

    rewards = place_on_last_token(scores, mask) - beta * kl          # [B, T]
    advantages, returns = gae(rewards, values, mask, gamma=1.0, lam=0.95)

All functions are pure and work on `[B, T]` tensors where mask is 1 on the student's tokens (see `logprobs`).
"""

from __future__ import annotations

import torch
from torch import Tensor

from humor_env.agents.session.processes import sum_over_processes
from humor_env.agents.student.transfers import read, send


def last_token(mask: Tensor) -> Tensor:
    """`[B]`: the column of each row's last 1; 0 for an empty row (whose column 0 is masked anyway)."""
    columns = torch.arange(mask.shape[1], device=mask.device)
    return (mask.long() * columns).argmax(dim=1)


def place_on_last_token(scores: Tensor, mask: Tensor) -> Tensor:
    """`[B]` scores to `[B, T]`, each on the row's last *real* token; rows without tokens stay zero."""
    placed = torch.zeros(mask.shape, dtype=scores.dtype, device=scores.device)
    placed.scatter_(1, last_token(mask)[:, None], scores[:, None])
    return placed * mask.to(placed.dtype)


def gae(
    rewards: Tensor,
    values: Tensor,
    mask: Tensor,
    *,
    gamma: float,
    lam: float,
    following: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Advantages and returns `[B, T]` over the tokens where mask is 1; zero elsewhere.

    delta_t = r_t + gamma V_{t+1} - V_t;  A_t = delta_t + gamma lam A_{t+1};  return_t = A_t + V_t. Gaps in the mask
    are skipped, so the prompt's length and padding on either side change nothing.

    `following[b]` is the row that continues row b's episode (the next attempt at the same prompt), or -1 where the
    episode ends. Advantages flow across it: an attempt gets credit for later attempts.
    """
    rows, columns = rewards.shape
    advantages = torch.zeros_like(rewards)
    mask = mask.bool()
    if following is None:
        following = torch.full((rows,), -1, dtype=torch.long)
    following, *batches = send(rewards.device, following.cpu(), *_last_first(following.cpu()))
    for batch in batches:
        has_next = following[batch] >= 0
        next_row = following[batch].clamp(min=0)
        first = mask[next_row].long().argmax(dim=1)  # column of the next attempt's first token
        next_value = torch.where(has_next, values[next_row, first], 0.0)
        next_advantage = torch.where(has_next, advantages[next_row, first], 0.0)
        for t in range(columns - 1, -1, -1):
            here = mask[batch, t]
            delta = rewards[batch, t] + gamma * next_value - values[batch, t]
            advantage = delta + gamma * lam * next_advantage
            advantages[batch, t] = torch.where(here, advantage, 0.0)
            next_value = torch.where(here, values[batch, t], next_value)
            next_advantage = torch.where(here, advantage, next_advantage)
    return advantages, (advantages + values) * mask


def _last_first(following: Tensor) -> list[Tensor]:
    """Batches of rows, each after the batch with its followers. All on the CPU."""
    done = following < 0
    batches = [done.nonzero().squeeze(1)]
    while not bool(done.all()):
        ready = ~done & done[following.clamp(min=0)]
        if not bool(ready.any()):
            raise ValueError("`following` has a cycle: an attempt cannot come after itself")
        batches.append(ready.nonzero().squeeze(1))
        done = done | ready
    return batches


def whiten(values: Tensor, mask: Tensor) -> Tensor:
    """Mean 0 and variance 1 over the mask, over the batches of *all* processes; zero outside the mask."""
    # Sums in double: in single precision a difference of squares loses the variance of large, close values.
    weight, exact = mask.double(), values.double()
    sums = sum_over_processes(torch.stack([weight.sum(), (exact * weight).sum(), (exact.square() * weight).sum()]))
    count = sums[0].clamp(min=1)
    mean = sums[1] / count
    variance = (sums[2] / count - mean.square()).clamp(min=0)
    whitened = (exact - mean) * torch.rsqrt(variance + 1e-8)
    return (whitened * weight).to(values.dtype)


def group_advantages(rewards: Tensor, group: Tensor, valid: Tensor, *, scale: bool) -> Tensor:
    """GRPO's: reward minus its group's mean, divided by the group's deviation if `scale`. Unscored rows get 0."""
    device = rewards.device
    rewards, group, valid = read(rewards, group, valid)
    advantages = torch.zeros_like(rewards)
    for g in group.unique():
        rows = (group == g) & valid
        if int(rows.sum()) < 2:
            continue
        centred = rewards[rows] - rewards[rows].mean()
        advantages[rows] = centred / (rewards[rows].std() + 1e-4) if scale else centred
    return send(device, advantages)[0]


def leave_one_out(rewards: Tensor, group: Tensor, valid: Tensor) -> Tensor:
    """RLOO's: reward minus the mean of the *other* scored siblings. Unscored and lone rows get 0."""
    device = rewards.device
    rewards, group, valid = read(rewards, group, valid)
    advantages = torch.zeros_like(rewards)
    for g in group.unique():
        rows = (group == g) & valid
        count = int(rows.sum())
        if count < 2:
            continue
        advantages[rows] = (rewards[rows] - rewards[rows].mean()) * count / (count - 1)
    return send(device, advantages)[0]
