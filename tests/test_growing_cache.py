"""The writer's cache holds what transformers' own would, whatever is done to its rows, and copies nothing per token."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache, LlamaConfig, MistralConfig
from transformers.cache_utils import DynamicSlidingWindowLayer

from humor_env.agents.student.growing_cache import ROOM, growing_cache

HEADS, WIDTH = 2, 4
SHAPE: dict[str, Any] = {
    "vocab_size": 16,
    "hidden_size": 8,
    "intermediate_size": 8,
    "num_hidden_layers": 2,
    "num_attention_heads": HEADS,
}


def fresh(rows: int, columns: int, source: torch.Generator) -> tuple[Tensor, Tensor]:
    keys, values = torch.randn(2, rows, HEADS, columns, WIDTH, generator=source)
    return keys, values


def expanded(cache: DynamicCache, rows: int) -> None:
    layers: list[Any] = cache.layers
    for layer in layers:
        layer.keys = layer.keys[:1].expand(rows, -1, -1, -1)
        layer.values = layer.values[:1].expand(rows, -1, -1, -1)


def contents(cache: DynamicCache) -> list[Tensor]:
    layers: list[Any] = cache.layers
    return [tensor for layer in layers for tensor in (layer.keys, layer.values)]


@pytest.mark.parametrize("seed", range(8))
def test_it_holds_what_a_dynamic_cache_holds(seed: int) -> None:
    source = torch.Generator().manual_seed(seed)
    config = LlamaConfig(**SHAPE)
    ours, theirs = growing_cache(config), DynamicCache(config=config)
    rows = 3
    for _ in range(60):
        what = int(torch.randint(8, (), generator=source))
        if what == 0 and theirs.get_seq_length():
            chosen = torch.randint(rows, (int(torch.randint(1, 6, (), generator=source)),), generator=source)
            for cache in (ours, theirs):
                cache.batch_select_indices(chosen)
            rows = len(chosen)
        elif what == 1 and theirs.get_seq_length():
            rows = 4
            for cache in (ours, theirs):
                expanded(cache, rows)
        elif what == 2 and theirs.get_seq_length() > 1:
            for cache in (ours, theirs):
                cache.crop(-1)
        else:
            columns = 1 if what > 3 else int(torch.randint(1, 40, (), generator=source))
            for layer in range(2):
                keys, values = fresh(rows, columns, source)
                for mine, other in zip(
                    ours.update(keys, values, layer), theirs.update(keys, values, layer), strict=True
                ):
                    assert torch.equal(mine, other)
        assert ours.get_seq_length() == theirs.get_seq_length()
        assert all(map(torch.equal, contents(ours), contents(theirs)))


def test_the_tokens_of_one_room_copy_nothing() -> None:
    source = torch.Generator().manual_seed(0)
    cache = growing_cache(LlamaConfig(**SHAPE))
    addresses = []
    for columns in (5, *[1] * (2 * ROOM)):
        for layer in range(2):
            cache.update(*fresh(3, columns, source), layer)
        addresses.append([tensor.data_ptr() for tensor in contents(cache)])
    moved = [i for i, (a, b) in enumerate(itertools.pairwise(addresses), 1) if a != b]
    assert moved == [ROOM + 1]  # the first pass made room for ROOM more tokens, and so did the next one


def test_rows_that_were_one_part_again() -> None:
    """A row that is chosen twice, or a prompt's row shared by all, must not write into the other's keys."""
    source = torch.Generator().manual_seed(0)
    for make in ("chosen", "expanded", "cut"):
        cache = growing_cache(LlamaConfig(**SHAPE))
        cache.update(*fresh(2, 3, source), 0)
        layer: Any = cache.layers[0]
        if make == "chosen":
            layer.batch_select_indices(torch.tensor([0, 0]))
        else:
            rows = 2 if make == "expanded" else 1
            layer.keys, layer.values = (kept[:1].expand(rows, -1, -1, -1) for kept in (layer.keys, layer.values))
        keys, values = fresh(len(layer.keys), 1, source)
        held, _ = cache.update(keys, values, 0)
        assert held.shape == (len(keys), HEADS, 4, WIDTH)
        assert torch.equal(held[:, :, -1:], keys)


def test_columns_dropped_from_the_front_stay_dropped() -> None:
    source = torch.Generator().manual_seed(0)
    cache = growing_cache(LlamaConfig(**SHAPE))
    keys, values = fresh(2, 3, source)
    cache.update(keys, values, 0)
    layer: Any = cache.layers[0]
    layer.keys, layer.values = layer.keys[:, :, 1:], layer.values[:, :, 1:]
    more = fresh(2, 1, source)
    held, _ = cache.update(*more, 0)
    assert torch.equal(held, torch.cat([keys[:, :, 1:], more[0]], dim=2))


def test_layers_with_a_window_stay_those_of_transformers() -> None:
    cache = growing_cache(MistralConfig(**SHAPE, num_key_value_heads=HEADS, sliding_window=4))
    assert [type(layer) for layer in cache.layers] == [DynamicSlidingWindowLayer] * 2
