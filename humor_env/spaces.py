"""A space of Unicode texts, because Gymnasium's stock `Text` is too small or too slow for real language.

    space = UnicodeText(500)
    "¿Café? 🐟" in space            # True: any Unicode text up to the bound
    "\\ud800" in space              # False: a lone surrogate cannot be encoded

`Text`'s default alphabet has no space character, and over all of Unicode it takes two seconds to build and one to
copy (and every `gym.make` copies). `text_space("text", …)` still gives the stock space, over an alphabet of a few
hundred characters, for tools that require it.
"""

from __future__ import annotations

import multiprocessing
import sys
from collections.abc import Iterable, Sequence
from multiprocessing.sharedctypes import SynchronizedArray
from types import ModuleType
from typing import Any

import numpy as np
from gymnasium import spaces
from gymnasium.spaces.utils import flatdim, flatten, flatten_space, unflatten
from gymnasium.vector.utils import create_shared_memory, read_from_shared_memory, write_to_shared_memory
from gymnasium.wrappers.utils import create_zero_array

from humor_env.errors import InvalidOption
from humor_env.shared.plain_numbers import whole_number

# The characters that `sample` draws: spaces, line breaks, accents, a right-to-left script and a character outside
# the basic plane, but mostly words.
_SAMPLE_ALPHABET = "abcdefghijklmnopqrstuvwxyz" * 3 + " " * 18 + "ABCXYZ0189.,!?'\"-\n" + "éßñ—…“”’жλ中אم🐟🙂"

# The alphabet of `space="text"`: printable ASCII, the line break, accented Latin letters, and the punctuation that
# language models often write.
STOCK_ALPHABET = frozenset(
    [chr(c) for c in range(0x20, 0x7F)] + [chr(c) for c in range(0xA0, 0x180)] + list("\n–—‘’“”…•€→")
)


class UnicodeText(spaces.Space[str]):
    """All Unicode texts of `min_length` to `max_length` characters, without lone surrogates."""

    def __init__(self, max_length: int, *, min_length: int = 0, seed: int | np.random.Generator | None = None) -> None:
        least, most = whole_number(min_length), whole_number(max_length)
        for name, number, value in (("min_length", least, min_length), ("max_length", most, max_length)):
            if number is None:
                raise InvalidOption(f"{name} must be a whole number of characters, found {value!r}.")
        if not 0 <= min_length <= max_length:
            raise InvalidOption(f"0 <= min_length <= max_length must hold, found {min_length} and {max_length}.")
        self.min_length = int(min_length)
        self.max_length = int(max_length)
        super().__init__(dtype=str, seed=seed)

    @property
    def is_np_flattenable(self) -> bool:
        return False

    def sample(self, mask: None = None, probability: None = None) -> str:
        """A random text, its length uniform between the bounds. Masks do not apply and are refused."""
        if mask is not None or probability is not None:
            raise InvalidOption("UnicodeText has no finite alphabet, so it takes neither a mask nor probabilities.")
        length = int(self.np_random.integers(self.min_length, self.max_length + 1))
        picks = self.np_random.integers(0, len(_SAMPLE_ALPHABET), size=length)
        return "".join([_SAMPLE_ALPHABET[i] for i in picks.tolist()])

    def contains(self, x: Any) -> bool:
        return isinstance(x, str) and self.min_length <= len(x) <= self.max_length and is_encodable(x)

    def to_jsonable(self, sample_n: Iterable[str]) -> list[str]:
        return list(sample_n)

    def from_jsonable(self, sample_n: list[str]) -> list[str]:
        return [str(x) for x in sample_n]

    def __repr__(self) -> str:
        return f"UnicodeText({self.min_length}, {self.max_length})"

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, UnicodeText)
            and self.min_length == other.min_length
            and self.max_length == other.max_length
        )

    def __hash__(self) -> int:
        return hash((UnicodeText, self.min_length, self.max_length))


# Gymnasium's space functions, used by its wrappers: an empty observation, and a text as an array of its code points,
# padded with -1.


@create_zero_array.register(UnicodeText)
def _zero(space: UnicodeText) -> str:  # type: ignore[misc]
    return " " * space.min_length


@flatdim.register(UnicodeText)
def _flatdim(space: UnicodeText) -> int:
    return space.max_length


@flatten_space.register(UnicodeText)
def _flatten_space(space: UnicodeText) -> spaces.Box:
    return spaces.Box(-1, sys.maxunicode, (space.max_length,), dtype=np.int32)


@flatten.register(UnicodeText)
def _flatten(space: UnicodeText, x: str) -> np.ndarray:  # type: ignore[misc]
    row = np.full(space.max_length, -1, dtype=np.int32)
    row[: len(x)] = np.frombuffer(x.encode("utf-32-le"), dtype="<u4")
    return row


@unflatten.register(UnicodeText)
def _unflatten(space: UnicodeText, x: np.ndarray) -> str:  # type: ignore[misc]
    return "".join(map(chr, x[x >= 0].tolist()))


def is_encodable(text: str) -> bool:
    """Whether a text can be encoded as UTF-8: false with lone surrogates."""
    if text.isascii():
        return True
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def text_space(kind: str, max_length: int, more: Iterable[str] = ()) -> UnicodeText | spaces.Text:
    """The space for `space="unicode"` or `space="text"`; `more` are texts whose characters "text" must accept too."""
    if kind == "unicode":
        return UnicodeText(max_length)
    if kind == "text":
        return spaces.Text(max_length, min_length=0, charset=STOCK_ALPHABET.union(*more))
    raise InvalidOption(f'space must be "unicode" (ours) or "text" (Gymnasium\'s stock space), found {kind!r}.')


def refusal(space: UnicodeText | spaces.Text, action: object) -> str:
    """The error message for an action outside the space."""
    if not isinstance(action, str):
        return f"An action must be the text of a joke (a str), found {type(action).__name__}: {_short(action)}."
    if len(action) > space.max_length:
        return (
            f"The text has {len(action)} characters and max_chars is {space.max_length}. "
            "Cut it, or make the environment with a larger max_chars."
        )
    if not is_encodable(action):
        place = next(i for i, c in enumerate(action) if "\ud800" <= c <= "\udfff")
        return (
            f"The text has a lone surrogate ({action[place]!r}) at character {place}: it cannot be encoded. "
            'Clean it with text.encode("utf-8", "replace").decode().'
        )
    strange = next((c for c in action if c not in space), "") if isinstance(space, spaces.Text) else ""
    return (
        f"The character {strange!r} (U+{ord(strange or ' '):04X}) is not in the alphabet of the stock Text space. "
        'Make the environment with space="unicode".'
    )


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


# AsyncVectorEnv keeps observations in shared memory, supports stock spaces only, and reads the memory once: arrays stay
# views of it, but texts cannot (so with stock `Text` it keeps showing the first ones; use shared_memory=False). Ours is
# stored as a length and code points, and read through a view that becomes a tuple of texts when AsyncVectorEnv copies
# it. So AsyncVectorEnv runs our environments in its default mode.


class SharedTexts(Sequence[str]):
    """A view of the texts in shared memory; its deep copy is a plain tuple of the current texts."""

    def __init__(self, rows: np.ndarray) -> None:
        self._rows = rows

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: Any) -> Any:
        row = self._rows[index]
        return row[1 : row[0] + 1].astype("<u4").tobytes().decode("utf-32-le")

    def __deepcopy__(self, memo: dict[int, Any]) -> tuple[str, ...]:
        return tuple(self)


@create_shared_memory.register(UnicodeText)
def _create(space: UnicodeText, n: int = 1, ctx: ModuleType = multiprocessing) -> Any:
    return ctx.Array(np.dtype(np.uint32).char, n * (space.max_length + 1))


@write_to_shared_memory.register(UnicodeText)
def _write(space: UnicodeText, index: int, values: str, shared_memory: SynchronizedArray) -> None:
    points = np.frombuffer(values.encode("utf-32-le"), dtype="<u4")
    row = _rows(space, shared_memory)[index]
    row[0] = len(points)
    row[1 : len(points) + 1] = points


@read_from_shared_memory.register(UnicodeText)
def _read(space: UnicodeText, shared_memory: SynchronizedArray, n: int = 1) -> SharedTexts:
    return SharedTexts(_rows(space, shared_memory))


def _rows(space: UnicodeText, shared_memory: SynchronizedArray) -> np.ndarray:
    return np.frombuffer(shared_memory.get_obj(), dtype=np.uint32).reshape(  # type: ignore[call-overload]
        -1, space.max_length + 1
    )
