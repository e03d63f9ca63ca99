"""Which of a prompt's lines stands beside another system's: the first beside the first, the second beside the second.

line_beside(["one", "two"], 2)       # "one": where there are fewer lines, they begin again
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

Line = TypeVar("Line")


def line_beside(own: Sequence[Line], place: int) -> Line | None:
    """Of one prompt's lines the one that stands beside another system's line `place`; None where there is none. Where
    there are fewer, they begin with the first again."""
    return own[place % len(own)] if own else None
