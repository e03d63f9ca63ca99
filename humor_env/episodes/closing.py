"""Critics and judges ask others, which may hold a ledger or a connection open.

close_all([critic, judge])           # and all that they ask
"""

from __future__ import annotations

from collections.abc import Iterable


def close_all(parts: Iterable[object]) -> None:
    """Close those that have something to close. One that names others, in `inner_critics` or `inner_judges`, and has no
    `close` of its own, leaves it to this."""
    for part in parts:
        close = getattr(part, "close", None)
        if callable(close):
            close()
        else:
            close_all(getattr(part, "inner_critics", ()))
            close_all(getattr(part, "inner_judges", ()))
