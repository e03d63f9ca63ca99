"""A prompt shared by several rows goes through the model once, and each row continues from its keys and values.

    groups = token_rows.prompt_groups(tokens, attention, mask)      # None if too few rows share a prompt
    prefix = common_prefix(tokens, attention, mask)                 # 0 if nothing is worth sharing
    states = causal_states(backbone, config, rows, groups, prefix)  # [N, H], as a pass over whole rows gives

A group-relative learner scores eight lines per prompt, so half of the tokens of a batch are repeated prompts. Prompts
in turn share a prefix: with an instruct model, the system prompt, the instruction and the start of the chat template
are 40 of 60 tokens. Gradients flow through the shared keys and values as they would through copies.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache, PretrainedConfig

from humor_env.agents.student.token_rows import PromptGroups, TokenRows, response_places
from humor_env.agents.student.transfers import send

LEAST_PREFIX = 16  # shortest common prefix, in tokens, for which a separate pass pays off
LEAST_PREFIX_ROWS = 4  # least number of distinct rows that continue from it


def unique_prompts(prompts: Sequence[Sequence[int]]) -> tuple[list[list[int]], list[int]]:
    """The distinct prompts in order of first occurrence, and each row's index into them."""
    places: dict[tuple[int, ...], int] = {}
    group = [places.setdefault(tuple(p), len(places)) for p in prompts]
    return [list(p) for p in places], group


def common_prefix(tokens: Tensor, attention: Tensor, mask: Tensor) -> int:
    """Length of the prefix common to all rows, excluding each prompt's last token; 0 if sharing it would not pay off
    or the padding is not on the right."""
    columns = tokens.shape[1]
    if columns <= LEAST_PREFIX:
        return 0
    is_prompt = attention.bool() & ~mask.bool()
    lengths = is_prompt.sum(-1)
    positions = torch.arange(columns, device=tokens.device)
    even = (is_prompt == (positions < lengths[:, None])).all()
    alike = ((tokens == tokens[:1]) & is_prompt).all(0).long().cumprod(0).sum()
    # Each prompt keeps its last token, so that the state before its response comes from its own pass.
    shared = int(torch.where(even, torch.minimum(alike, lengths.min() - 1), 0))
    return shared if shared >= LEAST_PREFIX else 0


def common_prefix_of(prompts: Sequence[Sequence[int]]) -> int:
    """The same for distinct prompts given as lists."""
    if len(prompts) < LEAST_PREFIX_ROWS:
        return 0
    ordered = sorted(tuple(prompt) for prompt in prompts)
    first, last = ordered[0], ordered[-1]  # their common prefix is that of all prompts between them
    longest = min(map(len, prompts)) - 1
    shared = next((i for i in range(longest) if first[i] != last[i]), longest)
    return shared if shared >= LEAST_PREFIX else 0


def read_prefix(backbone: nn.Module, cache: DynamicCache, tokens: Tensor, rows: int) -> None:
    """Put keys and values of `[P]` tokens into the cache, as the past of `rows` rows."""
    backbone(input_ids=tokens[None], past_key_values=cache, use_cache=True)
    layers: list[Any] = cache.layers
    for layer in layers:
        # Expanded, not copied: the backward pass sums over rows.
        layer.keys = layer.keys.expand(rows, *layer.keys.shape[1:])
        layer.values = layer.values.expand(rows, *layer.values.shape[1:])


def causal_states(
    backbone: nn.Module,
    config: PretrainedConfig,
    rows: TokenRows,
    groups: PromptGroups | None,
    prefix: int = 0,
) -> Tensor:
    """Hidden states `[N, H]` just before each response token, row by row.

    Padding is on the right, and all rows begin with the same `prefix` tokens, fewer than the shortest prompt has.
    `groups` are those of `rows.host`, so that all shapes are known without synchronising.
    """
    tokens, device = rows.tokens, rows.tokens.device
    mask = rows.host.action_mask.bool()
    row, column = response_places(rows)
    cache = DynamicCache(config=config)
    if prefix:
        read_prefix(backbone, cache, tokens[0, :prefix], len(tokens) if groups is None else len(groups.first))
    if groups is None:
        # Causality alone hides padding on the right.
        states = backbone(input_ids=tokens[:, prefix:-1], past_key_values=cache, use_cache=True).last_hidden_state
        row, column = send(device, row, column - prefix - 1)
        return states[row, column]
    widest = int(groups.lengths.max())
    uneven = bool((groups.lengths != widest).any())
    steps = int(mask.sum(-1).max()) - 1  # the state after the last token is not needed
    last = groups.lengths[groups.first] - 1 - prefix
    nth = (mask.cumsum(-1) - 1)[row, column]  # index of each response token within its row
    prompts = torch.arange(len(groups.first))
    first, group, lengths, prompts, last, row, nth = send(
        device, groups.first, groups.group, groups.lengths, prompts, last, row, nth
    )
    # Padding right of a shorter prompt is hidden by causality, and masked for the responses below.
    prompt = backbone(input_ids=tokens[first, prefix:widest], past_key_values=cache, use_cache=True)
    before_first = prompt.last_hidden_state[prompts, last]
    positions = torch.arange(max(steps, 0), device=device)
    states = before_first[group][:, None]
    if steps > 0:
        cache.batch_select_indices(group)
        columns = (lengths[:, None] + positions).clamp(max=tokens.shape[1] - 1)
        inputs: dict[str, Any] = {"input_ids": tokens.gather(1, columns), "past_key_values": cache, "use_cache": True}
        if uneven:
            in_sight = torch.arange(widest, device=device) < lengths[:, None]
            inputs["attention_mask"] = torch.cat([in_sight, torch.ones_like(columns, dtype=torch.bool)], dim=1).long()
            inputs["position_ids"] = lengths[:, None] + positions
        states = torch.cat([states, backbone(**inputs).last_hidden_state], dim=1)
    return states[row, nth]
