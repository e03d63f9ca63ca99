"""How many calls of a client may run at once.

    await throttle.enter()
    try:
        reply = await send(request)
        throttle.succeeded()
    finally:
        throttle.leave()

The retry loop (`retry.py`) keeps one Throttle for its lifetime, so a client remembers the service's capacity.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque


class Throttle:
    """The number of calls that may be in flight: fewer after an overload, one more after each round of successes.

    It is cut at most once per round trip, because 32 calls that fail together are one overload. Retries go before first
    tries, or a request's deadline would pass while it waits behind all that have not begun.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self.successes = 0
        self.limit = float(most)
        self._in_air = 0
        self._cut_at = -1.0
        self._again: deque[asyncio.Future[None]] = deque()
        self._first: deque[asyncio.Future[None]] = deque()

    @property
    def in_air(self) -> int:
        return self._in_air

    async def enter(self, again: bool = False) -> None:
        turn = asyncio.get_running_loop().create_future()
        (self._again if again else self._first).append(turn)
        self._wake()
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self.leave()
            raise

    def leave(self) -> None:
        self._in_air -= 1
        self._wake()

    def _wake(self) -> None:
        while self._in_air < int(self.limit) and (self._again or self._first):
            turn = (self._again or self._first).popleft()
            if not turn.done():
                self._in_air += 1
                turn.set_result(None)

    def succeeded(self) -> None:
        self.successes += 1
        self.limit = min(float(self.most), self.limit + 1.0 / self.limit)

    def overloaded(self, sent_at: float) -> None:
        if sent_at > self._cut_at:
            self.limit = max(1.0, self.limit * 0.7)
            self._cut_at = time.monotonic()

    def timed_out(self, sent_at: float, answered: int) -> None:
        """A call was not answered in time, while `answered` others were: there are too many at once.

        Half of the number answered in one timeout leaves each call half the timeout. A cut by 0.7 would take as many
        timeouts as fit into a deadline.
        """
        if sent_at > self._cut_at:
            self.limit = max(1.0, min(self.limit / 2, answered / 2))
            self._cut_at = time.monotonic()
