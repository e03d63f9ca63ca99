"""Closing critics and judges, and those that they call, which may hold a ledger or a connection open.

close_all([critic, judge])           # and all that they call
"""

from __future__ import annotations

from collections.abc import Iterable


def close_all(parts: Iterable[object]) -> None:
    """Close every part that has `close`. Parts without one that name others in `inner_critics` or `inner_judges` have
    those closed."""
    for part in parts:
        close = getattr(part, "close", None)
        if callable(close):
            close()
        else:
            close_all(getattr(part, "inner_critics", ()))
            close_all(getattr(part, "inner_judges", ()))
