"""Pairs a prompt's lines with another system's: the first with the first, the second with the second.

paired_line(["one", "two"], 2)       # "one": if there are fewer lines, they repeat
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

Line = TypeVar("Line")


def paired_line(lines: Sequence[Line], place: int) -> Line | None:
    """The one of a prompt's lines to compare with another system's line `place`, or None. If there are fewer lines,
    they repeat from the first."""
    return lines[place % len(lines)] if lines else None
