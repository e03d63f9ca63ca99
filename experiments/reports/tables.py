"""A table of a report as plain text, cell by cell, and how shares are written in it.

Table("Parts", ("part", "imitation", "ppo"), [TableRow(("form", "0.90", "0.95"))])
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class TableRow:
    """The printed cells, the row's name first, with a `hint` in small print below the name; a row `worth_a_look` is
    marked."""

    cells: Sequence[str]
    worth_a_look: bool = False
    hint: str = ""


@dataclass(frozen=True)
class Table:
    """A title, a caption, the headings and the rows. A table without rows is not shown."""

    title: str
    columns: Sequence[str]
    rows: Sequence[TableRow]
    caption: str = ""


def percent(share: float) -> str:
    """A share in per cent, with a decimal if it is small."""
    return f"{share:.0%}" if share >= 0.1 or share == 0 else f"{share:.1%}"


def share_of(count: int, whole: int) -> str:
    """A count and its share of the whole: "3 of 250, 1.2%"."""
    return f"{count:,} of {whole:,}, {percent(count / whole)}" if whole else "–"
