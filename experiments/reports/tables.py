"""A table of a report as plain text, cell by cell, and the two ways in which numbers are written in one.

Table("Parts", ("part", "imitation", "ppo"), [TableRow(("form", "0.90", "0.95"))])
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class TableRow:
    """Cells as they are printed, the row's name first, and a `hint` in small print below the name; a row `worth_a_look`
    is marked."""

    cells: Sequence[str]
    worth_a_look: bool = False
    hint: str = ""


@dataclass(frozen=True)
class Table:
    """A title, a sentence on how to read it, the heads and the rows. Without rows it is not shown."""

    title: str
    columns: Sequence[str]
    rows: Sequence[TableRow]
    caption: str = ""


def percent(share: float) -> str:
    """A share in per cent, with a decimal where the share is small."""
    return f"{share:.0%}" if share >= 0.1 or share == 0 else f"{share:.1%}"


def share_of(count: int, whole: int) -> str:
    """A count and what share of the whole it is: "3 of 250, 1.2%"."""
    return f"{count:,} of {whole:,}, {percent(count / whole)}" if whole else "–"
