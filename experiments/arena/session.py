"""A running session: its store, its state in memory, and the limits on requests.

    arena = Arena(Store.open(Path("arena.sqlite")))
    ask = arena.ask_of(rater)
    arena.answer(rater, ask.nonce, {"humor": "first", "consistency": "tie"})

It is independent of the web server: `server.py` asks it for what its pages show.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import cast

from humor_env.experiments.arena import pages
from humor_env.experiments.arena.choice import Chooser, rebuilt
from humor_env.experiments.arena.results import results_view
from humor_env.experiments.arena.store import Ask, Refused, Store, What


class Limiter:
    """Limits the requests per second of each rater or address, with bursts of up to `burst`."""

    def __init__(self, per_second: float, burst: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.per_second, self.burst, self.clock = per_second, burst, clock
        self._left: dict[str, tuple[float, float]] = {}

    def allows(self, who: str) -> bool:
        now = self.clock()
        requests, at = self._left.get(who, (float(self.burst), now))
        requests = min(float(self.burst), requests + (now - at) * self.per_second)
        if len(self._left) > 10_000:  # addresses that come only once
            self._left = {k: v for k, v in self._left.items() if now - v[1] < self.burst / self.per_second}
        self._left[who] = (requests - (requests >= 1), now)
        return requests >= 1


class Kept:
    """Waits until everything written so far is on disk. That takes ten milliseconds or more, so it is done in a thread,
    once for all who are waiting."""

    def __init__(self, log: Path) -> None:
        self.log = log
        self._running: asyncio.Future[None] | None = None
        self._next: asyncio.Future[None] | None = None

    async def wait(self) -> None:
        # A sync in progress may have started before our answer was written, so wait for the one after it.
        if self._next is None:
            self._next = asyncio.ensure_future(self._after(self._running))
        await asyncio.shield(self._next)

    async def _after(self, before: asyncio.Future[None] | None) -> None:
        if before is not None:
            await asyncio.wait([before])
        self._running, self._next = self._next, None
        await asyncio.to_thread(self._sync)

    def _sync(self) -> None:
        with open(self.log, "rb") as file:
            os.fsync(file.fileno())


class Arena:
    """The store, the state derived from it, and the limits of a shared session."""

    def __init__(self, store: Store, *, shared: bool = False) -> None:
        self.store, self.shared = store, shared
        self.kept = Kept(store.path.with_name(store.path.name + "-wal"))
        self.raters = Limiter(4, 40)
        self.strangers = Limiter(1 / 6, 20)
        self._version = -1
        self._chooser: Chooser | None = None
        self._results: tuple[object, str] | None = None
        self._rests_until = 0.0
        self._making = asyncio.Lock()

    @property
    def chooser(self) -> Chooser:
        """Rebuilt if another process, such as `--forget`, has written to the store."""
        version = self.store.version()
        if self._chooser is None or version != self._version:
            answers = {answer.ask.id: answer for answer in self.store.answers()}
            store = self.store
            self._chooser = rebuilt(store.lines, store.settings, store.plan, store.asks(), answers)
            self._version = version
        return self._chooser

    def changed(self) -> None:
        self._chooser = None

    def ask_of(self, rater: int) -> Ask | None:
        """What the rater is asked now; None if they are done."""
        ask = self.store.open_ask(rater)
        if ask is None:
            with self._written() as chooser:
                ask = self._next(chooser, rater)
        return ask

    def answer(self, rater: int, nonce: str, form: Mapping[str, str]) -> None:
        """Write an answer and the rater's next ask, or raise Refused and write nothing."""
        ask = self.store.find(rater, nonce)
        if self.store.closed:
            raise Refused("closed")
        what = form.get("do", "answer")
        if what not in ("answer", "skip", "offence"):
            raise Refused("incomplete")
        with self._written() as chooser:
            chooser.answered(self.store.answer(ask, cast(What, what), form))
            self._next(chooser, rater)

    @contextlib.contextmanager
    def _written(self) -> Iterator[Chooser]:
        """One transaction; if it fails, the state in memory is discarded too."""
        chooser = self.chooser  # before the transaction, during which the store's version cannot change
        try:
            with self.store.writing():
                yield chooser
        except BaseException:
            self.changed()
            raise

    def _next(self, chooser: Chooser, rater: int) -> Ask | None:
        choice = chooser.next(rater)
        if choice is None:
            return None
        ask = self.store.add_ask(rater, choice.a, choice.b, choice.turned, choice.again)
        chooser.asked(ask)
        return ask

    def csrf(self, rater: int) -> str:
        return self.store.sign("form", rater)

    def owner(self) -> str:
        """The token of the results' link."""
        return self.store.sign("owner")

    async def results(self) -> str:
        """The page of results; computed in a thread, once for each state and at most a fifth of the time, so that it
        does not slow down the raters' pages."""
        async with self._making:
            state = (self.store.count(), self.store.version(), self.store.closed)
            began = time.monotonic()
            if self._results is None or (self._results[0] != state and began >= self._rests_until):
                self._results = (state, await asyncio.to_thread(_results_page, self.store.path))
                now = time.monotonic()
                self._rests_until = now + 4 * (now - began)
            return self._results[1]


def _results_page(path: Path) -> str:
    with Store.open(path) as store:
        return pages.render("results", **results_view(store))
