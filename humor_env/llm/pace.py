"""Requests and tokens a minute, for keys that have such limits.

    pace = Pace(requests_per_minute=50, tokens_per_minute=40_000)
    booked = pace.enter(tokens_at_most)      # None: not yet
    pace.settle(booked, used)                # what it took, once that is known

Calls begin evenly, not all at the minute's first second: in no 60 seconds do more begin than the limit says. A call is
taken to use what calls like it used so far (at first a token for 3.5 bytes), and the next ones pay what it used more.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from humor_env.errors import InvalidOption
from humor_env.shared.plain_numbers import real_number

MINUTE = 60.0
LATE = 1.0
"""Seconds: a caller that looks some time after its turn loses nothing, and may make up for that long."""


@dataclass(frozen=True, slots=True)
class Booked:
    """What a call is taken to use, and the most it may."""

    tokens: float
    most: int


class Pace:
    """Shared by all who use one key; `now` is a clock in seconds."""

    def __init__(
        self,
        requests_per_minute: float | None = None,
        tokens_per_minute: float | None = None,
        *,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        for name, value in (("requests_per_minute", requests_per_minute), ("tokens_per_minute", tokens_per_minute)):
            number = real_number(value)
            if value is not None and (number is None or not 0 < number < float("inf")):
                raise InvalidOption(f"{name} is {value!r}; expected a number above 0, or nothing for no limit.")
        # A minute and what may be made up for: so the limit holds in any 60 seconds.
        self._request = 0.0 if requests_per_minute is None else (MINUTE + LATE) / requests_per_minute
        self._token = 0.0 if tokens_per_minute is None else (MINUTE + LATE) / tokens_per_minute
        self._now = now
        self._lock = threading.Lock()
        # When all that has begun is paid for.
        self._requests_until = self._tokens_until = float("-inf")
        self._share = 1 / 3.5

    def enter(self, most: int) -> Booked | None:
        """Begin a call of at most that many tokens; None where it is not its turn yet."""
        with self._lock:
            now = self._now()
            if max(self._requests_until, self._tokens_until) > now:
                return None
            booked = Booked(most * self._share, most)
            # The first call of all, or after a pause, has nothing to make up for.
            self._requests_until = self._after(self._requests_until, now, self._request)
            self._tokens_until = self._after(self._tokens_until, now, self._token * booked.tokens)
            return booked

    @staticmethod
    def _after(until: float, now: float, cost: float) -> float:
        return (until if now - until <= LATE else now) + cost

    def settle(self, booked: Booked, used: int | None) -> None:
        """The call used that many tokens; None where nobody knows, and the most it could counts."""
        with self._lock:
            tokens = booked.most if used is None else used
            self._tokens_until += self._token * (tokens - booked.tokens)
            if used is not None and booked.most > 0:
                self._share += 0.2 * (min(1.0, used / booked.most) - self._share)

    def cancel(self, booked: Booked) -> None:
        """The call was not made after all."""
        with self._lock:
            self._requests_until -= self._request
            self._tokens_until -= self._token * booked.tokens


_shared: dict[tuple[str, float | None, float | None], Pace] = {}
_shared_lock = threading.Lock()


def shared_pace(where: str, requests_per_minute: float | None, tokens_per_minute: float | None) -> Pace:
    """One pace for all in this process that name the same `where` and limits."""
    with _shared_lock:
        key = (where, requests_per_minute, tokens_per_minute)
        if key not in _shared:
            _shared[key] = Pace(requests_per_minute, tokens_per_minute)
        return _shared[key]
