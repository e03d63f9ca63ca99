"""Rows of tokens, prompt then response, and what a pass says about them. The layout that all learners share.

part = take_rows(rows, index)                         # trimmed of columns nobody uses
order = length_sorted(rows, 32)                       # micro-batches of alike lengths
for index, width in zip(order, widths_of(rows, order)): ...
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from humor_env.agents.student.shared_prompts import prompt_groups


@dataclass(frozen=True)
class TokenRows:
    """Prompt and response tokens side by side: `[B, T]`, real tokens first, padding on the right."""

    tokens: Tensor
    attention: Tensor
    action_mask: Tensor


@dataclass(frozen=True)
class Scored:
    """`[B, T]` each, zero outside the action mask; `values[:, t]` is the value just before token t."""

    logprobs: Tensor
    values: Tensor | None
    entropy: Tensor | None


def make_rows(
    prompts: Sequence[Sequence[int]], responses: Sequence[Sequence[int]], pad_token: int, device: torch.device
) -> TokenRows:
    """Prompt and response ids to padded tensors."""
    lengths = [(len(p), len(r)) for p, r in zip(prompts, responses, strict=True)]
    width = max((p + r for p, r in lengths), default=0)
    tokens = torch.full((len(lengths), width), pad_token, dtype=torch.long)
    attention = torch.zeros_like(tokens)
    action_mask = torch.zeros_like(tokens)
    for i, (prompt, response) in enumerate(zip(prompts, responses, strict=True)):
        begin, end = len(prompt), len(prompt) + len(response)
        tokens[i, :end] = torch.tensor([*prompt, *response])
        attention[i, :end] = 1
        action_mask[i, begin:end] = 1
    return TokenRows(tokens.to(device), attention.to(device), action_mask.to(device))


def take_rows(rows: TokenRows, index: Tensor, width: int | None = None) -> TokenRows:
    """These rows, trimmed of columns in which none of them has a real token (padding on the right only). `width` is
    what `widths_of` gave: with it a GPU is not asked, and goes on working meanwhile."""
    if width is None:
        [width] = widths_of(rows, [index])
    attention = rows.attention[index]
    return TokenRows(rows.tokens[index, :width], attention[:, :width], rows.action_mask[index, :width])


def widths_of(rows: TokenRows, order: Sequence[Tensor]) -> list[int]:
    """How many columns the rows of each micro-batch use, in one question to the device."""
    columns = rows.attention.shape[1]
    if not columns or not len(rows.attention) or not order:
        return [columns] * len(order)
    used = (rows.attention.bool() * torch.arange(1, columns + 1, device=rows.attention.device)).amax(1)
    widths = torch.stack([used[index].amax() if len(index) else used[0] * 0 for index in order]).tolist()
    return [int(width) or columns for width in widths]


def length_sorted(rows: TokenRows, micro_batch: int) -> list[Tensor]:
    """Row indices in micro-batches of alike lengths, which cuts padding. The order is stable.

    Where rows share prompts they stay together, in the order of the longest of each prompt.
    """
    lengths = rows.attention.sum(-1)
    groups = prompt_groups(rows.tokens, rows.attention, rows.action_mask)
    if groups is None:
        return list(torch.argsort(lengths, descending=True, stable=True).split(micro_batch))
    longest = torch.zeros_like(groups.first).scatter_reduce(0, groups.group, lengths, reduce="amax")
    place = torch.argsort(torch.argsort(longest, descending=True, stable=True), stable=True)
    return list(torch.argsort(place[groups.group], stable=True).split(micro_batch))


def scatter(flat: Tensor, mask: Tensor) -> Tensor:
    return torch.zeros(mask.shape, dtype=flat.dtype, device=flat.device).masked_scatter(mask, flat)


def pack_left(tokens: Tensor, mask: Tensor, pad: int) -> tuple[Tensor, Tensor]:
    """The tokens where mask is 1, moved to the left of each row, and their attention."""
    lengths = mask.sum(-1)
    width = int(lengths.max())
    attention = torch.arange(width, device=tokens.device) < lengths[:, None]
    packed = torch.full(attention.shape, pad, dtype=tokens.dtype, device=tokens.device)
    packed[attention] = tokens[mask]
    return packed, attention.long()
