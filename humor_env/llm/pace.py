"""Rate limits, in requests and tokens per minute.

    pace = Pace(requests_per_minute=50, tokens_per_minute=40_000)
    booked = pace.enter(tokens_at_most)      # None: not yet
    pace.settle(booked, used)                # its actual usage, once known

Calls start evenly, not all in a minute's first second: in any 60 seconds no more start than the limit allows. A call's
usage is predicted from similar calls so far (at first one token per 3.5 bytes), and later calls make up for any excess.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from humor_env.errors import InvalidOption
from humor_env.shared.plain_numbers import is_number

MINUTE = 60.0
LATE = 1.0
"""Seconds: a caller that checks late loses nothing, and may make up for up to this long."""


@dataclass(frozen=True, slots=True)
class Booked:
    """A call's predicted usage, and the most it may use."""

    tokens: float
    most: int


class Pace:
    """Shared by all users of one key; `now` is a clock in seconds."""

    def __init__(
        self,
        requests_per_minute: float | None = None,
        tokens_per_minute: float | None = None,
        *,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        for name, value in (("requests_per_minute", requests_per_minute), ("tokens_per_minute", tokens_per_minute)):
            if value is not None and not (is_number(value, above=0) and value < float("inf")):
                raise InvalidOption(f"{name} is {value!r}; expected a number above 0, or nothing for no limit.")
        # A minute plus what may be made up for, so that the limit holds in any 60 seconds.
        self._request = 0.0 if requests_per_minute is None else (MINUTE + LATE) / requests_per_minute
        self._token = 0.0 if tokens_per_minute is None else (MINUTE + LATE) / tokens_per_minute
        self._now = now
        self._lock = threading.Lock()
        # The time when everything started is paid for.
        self._requests_until = self._tokens_until = float("-inf")
        self._share = 1 / 3.5

    def enter(self, most: int) -> Booked | None:
        """Start a call of at most that many tokens; None if it is not its turn yet."""
        with self._lock:
            now = self._now()
            if max(self._requests_until, self._tokens_until) > now:
                return None
            booked = Booked(most * self._share, most)
            # The first call, or one after a pause, has nothing to make up for.
            self._requests_until = self._after(self._requests_until, now, self._request)
            self._tokens_until = self._after(self._tokens_until, now, self._token * booked.tokens)
            return booked

    @staticmethod
    def _after(until: float, now: float, cost: float) -> float:
        return (until if now - until <= LATE else now) + cost

    def settle(self, booked: Booked, used: int | None) -> None:
        """Record the tokens that the call used; None (unknown) counts as the most it could use."""
        with self._lock:
            tokens = booked.most if used is None else used
            self._tokens_until += self._token * (tokens - booked.tokens)
            # A refusal (429, 529) uses none, and says nothing of what an answer will.
            if used and booked.most > 0:
                self._share += 0.2 * (min(1.0, used / booked.most) - self._share)

    def cancel(self, booked: Booked) -> None:
        """Cancel a call that was not made after all."""
        with self._lock:
            self._requests_until -= self._request
            self._tokens_until -= self._token * booked.tokens


Turn = tuple[tuple[Pace, Booked], ...]
"""A call's place in each Pace that it keeps."""


def enter_all(paces: Iterable[Pace], most: int) -> Turn | None:
    """Start a call in all of these; None, and it has started in none, if it is not its turn yet in one of them."""
    turn: Turn = ()
    for pace in paces:
        booked = pace.enter(most)
        if booked is None:
            cancel(turn)
            return None
        turn = (*turn, (pace, booked))
    return turn


def settle(turn: Turn, used: int | None) -> None:
    for pace, booked in turn:
        pace.settle(booked, used)


def cancel(turn: Turn) -> None:
    for pace, booked in turn:
        pace.cancel(booked)


_shared: dict[tuple[str, float | None, float | None], Pace] = {}
_shared_lock = threading.Lock()


def shared_pace(where: str, requests_per_minute: float | None, tokens_per_minute: float | None) -> Pace:
    """The Pace shared by all callers in this process with the same `where` and limits."""
    with _shared_lock:
        key = (where, requests_per_minute, tokens_per_minute)
        if key not in _shared:
            _shared[key] = Pace(requests_per_minute, tokens_per_minute)
        return _shared[key]
