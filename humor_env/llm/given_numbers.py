"""Numbers that a user gives: of another type (in quotes, a bool, NaN) they become a sentence, not a traceback.

check_number("timeout", 60.0, above=0)
check_number("concurrency", "8", least=1, whole=True)   # InvalidOption: concurrency is '8'; expected a whole number ...
"""

from __future__ import annotations

from numbers import Integral, Real

from humor_env.errors import InvalidOption


def is_number(value: object, *, least: float | None = None, above: float | None = None, whole: bool = False) -> bool:
    """Whether it is a number (a bool and NaN are none) within the limits."""
    if not isinstance(value, Integral if whole else Real) or isinstance(value, bool) or value != value:
        return False
    return (least is None or value >= least) and (above is None or value > above)  # type: ignore[operator]


def check_number(
    name: str, value: object, *, least: float | None = None, above: float | None = None, whole: bool = False
) -> None:
    """Raises InvalidOption where it is none."""
    if not is_number(value, least=least, above=above, whole=whole):
        limit = f" from {least:g} on" if least is not None else f" above {above:g}" if above is not None else ""
        raise InvalidOption(f"{name} is {value!r}; expected a {'whole ' if whole else ''}number{limit}.")
