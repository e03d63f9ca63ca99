"""The paper's grid: every system that it trains, in order of dependency.

    [s.name for s in SYSTEMS]            # warm-3, warm-2, warm-1, ft, ...
    by_name("brio-1-rounds-10")          # one third of the data, feedback in each of ten epochs

Every system except the warm starts begins from the warm start with the same thirds of the data.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class System:
    """`kind` is the learner ("warm" and "ft" imitate). `filtered=False` leaves the length filter out."""

    name: str
    kind: str
    thirds: int = 3
    rounds: int = 1
    filtered: bool = True
    splits: tuple[str, ...] = ("test",)
    people: bool = False  # whether people (or their substitute) see its lines

    @property
    def starts_from(self) -> str | None:
        return None if self.kind == "warm" else f"warm-{self.thirds}"

    @property
    def title(self) -> str:
        """The system in words, for a table."""
        words = [self.kind.upper()]
        if self.thirds < 3:
            words.append(f"{self.thirds}/3 of the data")
        if self.rounds > 1:
            words.append(f"{self.rounds} rounds")
        if not self.filtered:
            words.append("no length filter")
        return ", ".join(words)


_BOTH = ("test", "ood")

SYSTEMS: Sequence[System] = (
    System("warm-3", "warm", 3, splits=()),
    System("warm-1", "warm", 1, splits=()),
    System("warm-2", "warm", 2, splits=()),
    System("ft", "ft", splits=_BOTH, people=True),
    System("brio-dpo", "brio-dpo", splits=_BOTH),
    System("brio", "brio", splits=_BOTH, people=True),
    System("dpo", "dpo", splits=_BOTH, people=True),
    System("sd", "sd", splits=_BOTH),
    System("brio-1-rounds-10", "brio", 1, rounds=10),
    System("brio-1-rounds-2", "brio", 1, rounds=2),
    System("brio-1", "brio", 1),
    System("brio-2", "brio", 2),
    System("ft-1", "ft", 1),
    System("ft-2", "ft", 2),
    System("brio-unfiltered", "brio", filtered=False),
    System("dpo-unfiltered", "dpo", filtered=False),
)


def by_name(name: str) -> System:
    return next(system for system in SYSTEMS if system.name == name)
