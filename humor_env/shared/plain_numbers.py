"""Numbers as people pass them: Python's, numpy's, and arrays of no dimensions; True and False are none.

whole_number(np.int64(2))     # 2, an int; None for 2.0, True, "2"
real_number(np.float32(0.5))  # 0.5, a float; None for True, "0.5"
"""

from __future__ import annotations

import numbers
import operator
from typing import Any

from humor_env.errors import InvalidOption


def whole_number(value: object) -> int | None:
    """The value as an int, where it is a whole number by type."""
    if isinstance(value, bool):
        return None
    try:
        return operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        return None


def real_number(value: object) -> float | None:
    """The value as a float, where it is a number by type, NaN and infinity included."""
    return float(value) if isinstance(value, numbers.Real) and not isinstance(value, bool) else None


def at_least_one(name: str, value: Any) -> int:
    """An option that counts something."""
    number = whole_number(value)
    if number is None or number < 1:
        raise InvalidOption(f"{name} is a whole number of at least 1, found {value!r}.")
    return number
