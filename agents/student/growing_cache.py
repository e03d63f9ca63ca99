"""Keys and values with room for the tokens to come.

    cache = growing_cache(config)      # a DynamicCache for generation, without gradients

The layers of transformers join old and new keys at every token, which copies all of them each time: 7 % of the time in
which a model of SmolLM2's shape writes 24 tokens on a CPU, and more for longer lines. Here a token is written into
room that was made before.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers import DynamicCache, PreTrainedConfig
from transformers.cache_utils import DynamicLayer

ROOM = 32  # tokens for which room is made at a time


class _GrowingLayer(DynamicLayer):
    """`keys` and `values` are the used part of the room, and may be replaced: by fewer rows, say."""

    _key_room: Tensor | None = None
    _value_room: Tensor | None = None

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        assert self.keys is not None and self.values is not None
        self._key_room, self.keys = _append(self._key_room, self.keys, key_states)
        self._value_room, self.values = _append(self._value_room, self.values, value_states)
        return self.keys, self.values


def _append(room: Tensor | None, used: Tensor, new: Tensor) -> tuple[Tensor, Tensor]:
    """The room with the new columns, and its used part. Another room is made if the used part is not of this one."""
    before = used.shape[-2] if used.numel() else 0
    after = before + new.shape[-2]
    if room is None or after > room.shape[-2] or not _begins(room, used):
        room = new.new_empty(*new.shape[:-2], after + ROOM, new.shape[-1])
        if before:
            room[..., :before, :] = used
    room[..., before:after, :] = new
    return room, room[..., :after, :]


def _begins(room: Tensor, used: Tensor) -> bool:
    """Whether `used` is the first columns of the room, with all its rows."""
    same_place = used.data_ptr() == room.data_ptr() and used.stride() == room.stride()
    return same_place and used.shape[:-2] == room.shape[:-2]


def growing_cache(config: PreTrainedConfig) -> DynamicCache:
    """A cache for one generation. Layers that keep only a window, or no keys at all, are those of transformers."""
    cache = DynamicCache(config=config)
    cache.layers = [_GrowingLayer() if type(layer) is DynamicLayer else layer for layer in cache.layers]
    return cache
