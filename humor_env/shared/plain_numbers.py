"""Numbers as people pass them: Python's, numpy's, and 0-dimensional arrays. True and False are not numbers.

whole_number(np.int64(2))                               # 2, an int; None for 2.0, True, "2"
real_number(np.float32(0.5))                            # 0.5, a float; None for True, "0.5"
check_number("concurrency", "8", least=1, whole=True)   # InvalidOption: concurrency must be a whole number ...
"""

from __future__ import annotations

import math
import numbers
import operator
from typing import Any

from humor_env.errors import InvalidOption


def whole_number(value: object) -> int | None:
    """The value as an int, or None if its type is not a whole number's."""
    if isinstance(value, bool):
        return None
    try:
        return operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        return None


def real_number(value: object) -> float | None:
    """The value as a float, or None if its type is not a number's. NaN and infinity are numbers."""
    return float(value) if isinstance(value, numbers.Real) and not isinstance(value, bool) else None


def at_least_one(name: str, value: Any) -> int:
    """The value of an option that counts something."""
    check_number(name, value, least=1, whole=True)
    return operator.index(value)


def is_number(value: object, *, least: float | None = None, above: float | None = None, whole: bool = False) -> bool:
    """Whether it is a number within the limits. NaN is outside all limits."""
    number = whole_number(value) if whole else real_number(value)
    if number is None or math.isnan(number):
        return False
    return (least is None or number >= least) and (above is None or number > above)


def check_number(
    name: str, value: object, *, least: float | None = None, above: float | None = None, whole: bool = False
) -> None:
    """Raise InvalidOption unless it is a number within the limits."""
    if not is_number(value, least=least, above=above, whole=whole):
        limit = f" of at least {least:g}" if least is not None else f" above {above:g}" if above is not None else ""
        raise InvalidOption(f"{name} must be a {'whole ' if whole else ''}number{limit}, found {value!r}.")
