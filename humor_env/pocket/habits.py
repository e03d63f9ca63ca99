"""The pocket teacher's ranking of witnesses, reactions and frames, and which of them it overuses.

    habits = Habits(lexicon)
    habits.witnesses["slow"].ranked      # most obvious first
    habits.witnesses["slow"].worn        # the worn-out head of the list

For each complaint the fitting witnesses and reactions are ranked in a fixed shuffle, but those for which it is the
first trait come first (the obvious ones); frames keep the order of the file. The teacher draws ranks by Zipf's law,
1 / rank ** 1.3. *Worn out* is the head of that law: the fewest ranks that get half of the draws. The ranking belongs to
the world and not to a seed, so every teacher has the same clichés and the judge knows them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Generic, TypeVar

from humor_env.pocket.lexicon import Frame, Lexicon, Reaction, Witness

ZIPF_EXPONENT = 1.3
Item = TypeVar("Item", Witness, Reaction, Frame)


@dataclass(frozen=True, slots=True)
class Habit(Generic[Item]):
    """One ranked list. `cumulative` holds integer Zipf weights, so that a draw is the same on every machine."""

    ranked: tuple[Item, ...]
    worn: frozenset[Item]
    cumulative: tuple[int, ...]

    @classmethod
    def of(cls, ranked: Sequence[Item]) -> Habit[Item]:
        weights = [round(1e9 / rank**ZIPF_EXPONENT) for rank in range(1, len(ranked) + 1)]
        cumulative = tuple(accumulate(weights))
        head = 1
        while 2 * cumulative[head - 1] < cumulative[-1]:
            head += 1
        # With one or two entries there is no alternative: calling them clichés would leave no fresh joke.
        return cls(tuple(ranked), frozenset(ranked[:head] if len(ranked) > 2 else ()), cumulative)


class Habits:
    """The ranked lists of a lexicon: `witnesses` and `reactions` by complaint, and `frames`."""

    def __init__(self, lexicon: Lexicon) -> None:
        self.witnesses: dict[str, Habit[Witness]] = {}
        self.reactions: dict[str, Habit[Reaction]] = {}
        self.frames: Habit[Frame] = Habit.of(lexicon.frames)
        witnesses: dict[str, list[tuple[int, bytes, Witness]]] = {c.name: [] for c in lexicon.complaints}
        reactions: dict[str, list[tuple[int, bytes, Reaction]]] = {c.name: [] for c in lexicon.complaints}
        for witness in lexicon.witnesses:
            for place, name in enumerate(witness.traits):
                witnesses[name].append((place, _shuffle(name, witness.text), witness))
        for reaction in lexicon.reactions:
            for place, name in enumerate(reaction.implies):
                reactions[name].append((place, _shuffle(name, reaction.text), reaction))
        for name in witnesses:
            self.witnesses[name] = Habit.of([item for *_, item in sorted(witnesses[name], key=_order)])
            self.reactions[name] = Habit.of([item for *_, item in sorted(reactions[name], key=_order)])

    def is_worn_witness(self, complaint: str, witness: Witness) -> bool:
        return witness in self.witnesses[complaint].worn


def _shuffle(complaint: str, text: str) -> bytes:
    return hashlib.blake2b(f"habit\x1f{complaint}\x1f{text}".encode(), digest_size=8).digest()


def _order(entry: tuple[int, bytes, object]) -> tuple[bool, bytes]:
    return entry[0] > 0, entry[1]
