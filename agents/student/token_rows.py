"""Rows of tokens, prompt then response, and their scores: the layout that all learners share.

part = take_rows(rows, index)                         # without unused columns
order = length_sorted(rows, 32)                       # micro-batches of similar lengths
for index, width in zip(order, widths_of(rows, order)): ...

Rows are made from lists on the CPU, and `rows.host` keeps that copy, so that layout decisions need no synchronisation.
Row indices are CPU tensors too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from humor_env.agents.student.transfers import read, send

LEAST_SHARING = 2  # least rows per prompt, on average, for which sharing pays off


@dataclass(frozen=True)
class TokenRows:
    """Prompt and response tokens side by side: `[B, T]`, real tokens first, padding on the right.

    `on_host` are the same rows on the CPU, if available; otherwise they are copied from the device once.
    """

    tokens: Tensor
    attention: Tensor
    action_mask: Tensor
    on_host: TokenRows | None = None

    @property
    def host(self) -> TokenRows:
        """The rows on the CPU: these rows, if they are on the CPU."""
        if self.tokens.device.type == "cpu":
            return self
        if self.on_host is not None:
            return self.on_host
        tokens, attention, action_mask = read(self.tokens, self.attention, self.action_mask)
        on_host = TokenRows(tokens, attention, action_mask)
        object.__setattr__(self, "on_host", on_host)
        return on_host

    def to(self, device: torch.device) -> TokenRows:
        """Copy CPU rows to the device; the copy keeps these as its `host`."""
        if device.type == "cpu":
            return self
        tokens, attention, action_mask = send(device, self.tokens, self.attention, self.action_mask)
        return TokenRows(tokens, attention, action_mask, self)


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
    return TokenRows(tokens, attention, action_mask).to(device)


def take_rows(rows: TokenRows, index: Tensor, width: int | None = None) -> TokenRows:
    """These rows, without the columns in which none has a real token (padding on the right only). `width` comes from
    `widths_of`."""
    if width is None:
        [width] = widths_of(rows, [index])
    host = rows.host
    part = TokenRows(host.tokens[index, :width], host.attention[index, :width], host.action_mask[index, :width])
    return part.to(rows.tokens.device)


def widths_of(rows: TokenRows, order: Sequence[Tensor]) -> list[int]:
    """Number of columns used by each micro-batch."""
    attention = rows.host.attention
    columns = attention.shape[1]
    if not columns or not len(attention) or not order:
        return [columns] * len(order)
    used = (attention.bool() * torch.arange(1, columns + 1)).amax(1)
    widths = torch.stack([used[index].amax() if len(index) else used[0] * 0 for index in order]).tolist()
    return [int(width) or columns for width in widths]


@dataclass(frozen=True)
class PromptGroups:
    """`first[g]` is a row that holds prompt g, `group[b]` the prompt of row b, `lengths[b]` its number of tokens."""

    first: Tensor
    group: Tensor
    lengths: Tensor


def prompt_groups(tokens: Tensor, attention: Tensor, mask: Tensor) -> PromptGroups | None:
    """Which rows share a prompt; None if too few do, or if the padding is not on the right."""
    rows, columns = tokens.shape
    is_prompt = attention.bool() & ~mask.bool()
    lengths = is_prompt.sum(-1)
    positions = torch.arange(columns, device=tokens.device)
    if rows < LEAST_SHARING or not bool((is_prompt == (positions < lengths[:, None])).all()):
        return None
    widest = int(lengths.max())
    prompts = tokens[:, :widest].masked_fill(~is_prompt[:, :widest], -1)
    unique, group = prompts.unique(dim=0, return_inverse=True)
    if len(unique) * LEAST_SHARING > rows:
        return None
    first = torch.full((len(unique),), rows, device=tokens.device)
    first = first.scatter_reduce(0, group, torch.arange(rows, device=tokens.device), reduce="amin")
    return PromptGroups(first, group, lengths)


def length_sorted(rows: TokenRows, micro_batch: int) -> list[Tensor]:
    """Row indices in micro-batches of similar lengths, which reduces padding. The order is stable.

    Rows that share a prompt stay together, ordered by the longest row of each prompt.
    """
    rows = rows.host
    lengths = rows.attention.sum(-1)
    groups = prompt_groups(rows.tokens, rows.attention, rows.action_mask)
    if groups is None:
        return list(torch.argsort(lengths, descending=True, stable=True).split(micro_batch))
    longest = torch.zeros_like(groups.first).scatter_reduce(0, groups.group, lengths, reduce="amax")
    place = torch.argsort(torch.argsort(longest, descending=True, stable=True), stable=True)
    return list(torch.argsort(place[groups.group], stable=True).split(micro_batch))


def response_places(rows: TokenRows) -> tuple[Tensor, Tensor]:
    """Row and column of each response token, `[N]` on the CPU, row by row."""
    row, column = rows.host.action_mask.nonzero(as_tuple=True)
    return row, column


def scatter(flat: Tensor, row: Tensor, column: Tensor, shape: torch.Size) -> Tensor:
    """Scatter `[N]` numbers into a table of zeros."""
    return torch.zeros(shape, dtype=flat.dtype, device=flat.device).index_put((row, column), flat)


def pack_left(tokens: Tensor, mask: Tensor, pad: int) -> tuple[Tensor, Tensor]:
    """The tokens where mask is 1, moved to the left of each row, and their attention."""
    lengths = mask.sum(-1)
    width = int(lengths.max())
    attention = torch.arange(width, device=tokens.device) < lengths[:, None]
    packed = torch.full(attention.shape, pad, dtype=tokens.dtype, device=tokens.device)
    packed[attention] = tokens[mask]
    return packed, attention.long()
