"""Siblings share their prompt: it goes through the model once, and each response continues from its keys and values.

    groups = prompt_groups(tokens, attention, mask)                     # None where too few rows share one
    states = causal_states(backbone, config, tokens, mask, groups)      # [N, H], as a pass over whole rows would give

A group-relative learner scores eight lines per prompt, and half of the tokens of such a batch are the same prompt again
and again. Gradients flow through the shared keys and values as they would through eight copies.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache, PretrainedConfig

LEAST_SHARING = 2  # rows per prompt, on average, from which sharing is worth its bookkeeping


@dataclass(frozen=True)
class PromptGroups:
    """`first[g]` is a row that holds prompt g, `group[b]` the prompt of row b, `lengths[b]` its number of tokens."""

    first: Tensor
    group: Tensor
    lengths: Tensor


def prompt_groups(tokens: Tensor, attention: Tensor, mask: Tensor) -> PromptGroups | None:
    """Which rows share a prompt; None where too few do, or where the padding is not on the right."""
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


def unique_prompts(prompts: Sequence[Sequence[int]]) -> tuple[list[list[int]], list[int]]:
    """The different prompts in the order they come up, and which of them each row has."""
    places: dict[tuple[int, ...], int] = {}
    group = [places.setdefault(tuple(p), len(places)) for p in prompts]
    return [list(p) for p in places], group


def causal_states(
    backbone: nn.Module, config: PretrainedConfig, tokens: Tensor, mask: Tensor, groups: PromptGroups
) -> Tensor:
    """Hidden states `[N, H]` just before each response token, in the order of `mask.nonzero()`."""
    widest = int(groups.lengths.max())
    uneven = bool((groups.lengths != widest).any())
    lengths = groups.lengths[groups.first]
    # What lies right of a shorter prompt is out of sight by causality, and masked for the responses below.
    cache = DynamicCache(config=config)
    prompt = backbone(input_ids=tokens[groups.first, :widest], past_key_values=cache, use_cache=True)
    before_first = prompt.last_hidden_state[torch.arange(len(lengths), device=tokens.device), lengths - 1]
    response_lengths = mask.sum(-1)
    steps = int(response_lengths.max()) - 1  # nothing is asked of the state after the last token
    positions = torch.arange(max(steps, 0), device=tokens.device)
    states = before_first[groups.group][:, None]
    if steps > 0:
        cache.batch_select_indices(groups.group)
        columns = (groups.lengths[:, None] + positions).clamp(max=tokens.shape[1] - 1)
        inputs: dict[str, Any] = {"input_ids": tokens.gather(1, columns), "past_key_values": cache, "use_cache": True}
        if uneven:
            in_sight = torch.arange(widest, device=tokens.device) < groups.lengths[:, None]
            inputs["attention_mask"] = torch.cat([in_sight, torch.ones_like(columns, dtype=torch.bool)], dim=1).long()
            inputs["position_ids"] = groups.lengths[:, None] + positions
        states = torch.cat([states, backbone(**inputs).last_hidden_state], dim=1)
    wanted = torch.arange(states.shape[1], device=tokens.device) < response_lengths[:, None]
    return states[wanted]
