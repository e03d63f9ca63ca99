"""Spending limits that are never exceeded, however many calls run at once.

    budget = Budget(max_calls=500, max_cost=2.0)
    client = make_client("anthropic:claude-haiku-4-5", budget=budget)
    budget.spent            # Usage(calls=..., input_tokens=..., ...)

Before each call its *worst case* is reserved: one call, every byte of the request counted as a token, and the longest
reply allowed. After it the reservation is replaced by what the service says it used. A call whose end we never saw
(no answer, a lost connection) may have been billed: its worst case stays counted against the limit. So does every part
of the usage that the service leaves out, or gives as something that no count of tokens can be (`reported`).

`requests_per_minute` and `tokens_per_minute` bound the pace (see pace.py): a call that comes too early waits its turn.

With `ledger=` and a `scope` the account is kept in the ledger's file, so that the limit holds across restarts and
between processes; a process that is killed leaves its reservations counted. Where the limit is reached only because
calls are in the air, they are waited for, also those of others in this process; those of another process cannot be
told from what a killed one left.
"""

from __future__ import annotations

import json
import math
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from humor_env.errors import BudgetExceeded, HumorEnvError, InvalidOption
from humor_env.llm.given_numbers import is_number
from humor_env.llm.pace import Booked, Pace, shared_pace
from humor_env.types import NO_USAGE, Usage

if TYPE_CHECKING:
    from humor_env.llm.ledger import Ledger
    from humor_env.llm.protocol import Request


class LedgerError(HumorEnvError, RuntimeError):
    """A ledger that cannot be read or written: what it is, and what becomes of the replies."""


class LedgerBusy(LedgerError):
    """Another process holds the ledger's lock just now."""


@dataclass(frozen=True, slots=True)
class Reservation:
    """What one call may use at most."""

    tokens: int
    cost: float
    pace: Booked | None = None


@dataclass(frozen=True, slots=True)
class Account:
    """What counts against the limits now: settled calls at what they used, open ones at their worst case."""

    calls: int = 0
    tokens: int = 0
    cost: float = 0.0

    def plus(self, calls: int, tokens: int, cost: float) -> Account:
        return Account(self.calls + calls, self.tokens + tokens, self.cost + cost)


# What a service may add around a request (roles, a preamble for structured output): room, for the worst case.
_ENVELOPE_TOKENS = 1000


def most_tokens(request: Request) -> int:
    """The most tokens that a request can be read as: a token is at least one byte."""
    schema = len(json.dumps(request.schema).encode()) if request.schema is not None else 0
    return len(request.system.encode()) + len(request.user_text.encode()) + schema + _ENVELOPE_TOKENS


LARGEST_COUNT = 10_000_000
"""Tokens. No context is larger: what is said to be more is a mistake, and not counted as said."""


def reported(usage: object, name: str) -> int | None:
    """A count of tokens as a service gave it; None where it gave nothing that can be one."""
    value = getattr(usage, name, None)
    # Neither true (one token, in Python) nor -1, which would give money back, nor an unsigned -1.
    return value if type(value) is int and 0 <= value <= LARGEST_COUNT else None


OTHERS_PATIENCE = 90.0
"""Seconds to wait for calls of others on the same account: as long as one call takes, but not as long as a batch."""

# Who in this process books on one account, by the ledger and the scope.
_sharers: dict[tuple[str, str], weakref.WeakSet[Budget]] = {}
_sharers_lock = threading.Lock()


Change = Callable[[Account], Account | None]
"""From the account as it is to the account as it shall be; None leaves it."""


class Budget:
    """Limits in calls, tokens (read and written together) and US dollars; None means no limit."""

    def __init__(
        self,
        max_calls: int | None = None,
        max_tokens: int | None = None,
        max_cost: float | None = None,
        *,
        requests_per_minute: float | None = None,
        tokens_per_minute: float | None = None,
        ledger: Ledger | None = None,
        scope: str = "",
    ) -> None:
        for name, limit in (("max_calls", max_calls), ("max_tokens", max_tokens), ("max_cost", max_cost)):
            if limit is not None and not is_number(limit, least=0):
                raise InvalidOption(f"{name} is {limit!r}; expected a number from 0 on, or nothing for no limit.")
        if (ledger is None) != (not scope):
            raise InvalidOption("A budget that is kept in a ledger needs both the ledger and a scope to keep it under.")
        self.max_calls, self.max_tokens, self.max_cost = max_calls, max_tokens, max_cost
        self._ledger, self._scope = ledger, scope
        self.pace: Pace | None = None
        self.keep_pace(requests_per_minute, tokens_per_minute)
        self._lock = threading.Lock()
        self._account = Account()
        self._open: dict[int, Reservation] = {}
        self._next = 0
        self._spent = NO_USAGE
        # Settled here, but not yet in the ledger, which could not be written then: calls, tokens, dollars.
        self._owed = (0, 0, 0.0)
        self._others_since: float | None = None
        if ledger is not None:
            where = f"{id(ledger)}" if ledger.path == ":memory:" else str(Path(ledger.path).resolve())
            with _sharers_lock:
                self._sharing = _sharers.setdefault((where, scope), weakref.WeakSet())
                self._sharing.add(self)

    def keep_pace(self, requests_per_minute: float | None = None, tokens_per_minute: float | None = None) -> None:
        """From now on no more than that many requests and tokens a minute; the clients of one account share it."""
        if requests_per_minute is None and tokens_per_minute is None:
            return
        if self._ledger is None or self._ledger.path == ":memory:":
            self.pace = Pace(requests_per_minute, tokens_per_minute)
        else:
            where = f"{self._ledger.path}\n{self._scope}"
            self.pace = shared_pace(where, requests_per_minute, tokens_per_minute)

    @property
    def spent(self) -> Usage:
        """What this process used, as the services reported it."""
        return self._spent

    @property
    def account(self) -> Account:
        """What counts against the limits."""
        return self._ledger.account(self._scope).plus(*self._owed) if self._ledger is not None else self._account

    @property
    def calls_left(self) -> int | None:
        return None if self.max_calls is None else max(0, self.max_calls - self.account.calls)

    def reserve(self, tokens: int, cost: float | None, *, patience: float = 60.0, paced: bool = True) -> int | None:
        """A ticket for one call; None where it may fit once calls in the air are settled, or is not its turn yet.

        Raises BudgetExceeded where it cannot fit any more, LedgerBusy where the ledger stays locked for `patience`
        seconds.
        """
        until = time.monotonic() + patience
        while True:
            try:
                return self._reserve(tokens, cost, self.pace if paced else None)
            except LedgerBusy:
                if time.monotonic() >= until:
                    raise
            time.sleep(0.05)

    def _reserve(self, tokens: int, cost: float | None, pace: Pace | None) -> int | None:
        if cost is None and self.max_cost is not None:
            raise InvalidOption(
                "A limit in money cannot be kept for a model whose price is unknown. Give its price "
                "(prices = {model = {input = ..., output = ...}}, dollars per million), or limit calls or tokens."
            )
        with self._lock:
            booked = None if pace is None else pace.enter(tokens)
            if pace is not None and booked is None:
                return None
            worst = Reservation(tokens, cost or 0.0, booked)
            refused: list[str] = []

            def book(account: Account) -> Account | None:
                wanted = account.plus(1, worst.tokens, worst.cost)
                refused.extend(self._over(wanted))
                return None if refused else wanted

            entered = False
            try:
                entered = self._change(book)
            finally:
                if pace is not None and booked is not None and not entered:
                    pace.cancel(booked)
            if entered:
                self._others_since = None
                self._next += 1
                self._open[self._next] = worst
                return self._next
            if "calls" not in refused and (self._open or self._waits_for_others()):
                return None
            raise BudgetExceeded(self._sentence(refused[0], worst))

    def _waits_for_others(self) -> bool:
        """Whether calls of others on this account may make room soon."""
        if self._ledger is None:
            return False
        with _sharers_lock:
            busy = any(other._open for other in self._sharing if other is not self)
        if not busy:
            self._others_since = None
            return False
        now = time.monotonic()
        self._others_since = self._others_since or now
        return now - self._others_since < OTHERS_PATIENCE

    def settle(self, ticket: int, usage: Usage | None) -> None:
        """Replace a reservation by what the call used; None where that is not known, and the worst case stays."""
        with self._lock:
            worst = self._open.pop(ticket)
            if usage is None:
                self._paid(worst, None)
                self._spent += Usage(calls=1)
                return
            used = usage.input_tokens + usage.output_tokens
            if not 0 <= used <= 2 * LARGEST_COUNT:
                used = worst.tokens
            self._paid(worst, used)
            known = usage.cost is not None and usage.cost >= 0 and math.isfinite(usage.cost)
            cost = usage.cost if known and usage.cost is not None else worst.cost
            self._give_back(0, worst.tokens - used, worst.cost - cost)
            self._spent += replace(usage, calls=1)

    def release(self, ticket: int) -> None:
        """Give back a reservation of a call that was not made after all."""
        with self._lock:
            worst = self._open.pop(ticket)
            if self.pace is not None and worst.pace is not None:
                self.pace.cancel(worst.pace)
            self._give_back(1, worst.tokens, worst.cost)

    def _paid(self, worst: Reservation, used: int | None) -> None:
        if self.pace is not None and worst.pace is not None:
            self.pace.settle(worst.pace, used)

    def portions(self, worst: Sequence[tuple[int, float | None]]) -> Iterator[tuple[list[int], list[int]]]:
        """For calls made in this process, as many at a time as the limits allow: their indices and tickets.

        What fits is handed out before BudgetExceeded is raised for the rest.
        """
        indices: list[int] = []
        tickets: list[int] = []
        for index, (tokens, cost) in enumerate(worst):
            while True:
                try:
                    ticket = self.reserve(tokens, cost)
                except BudgetExceeded:
                    if tickets:
                        yield indices, tickets
                    raise
                except BaseException:  # a price that is unknown, a ledger that is locked: none of them is made
                    for taken in tickets:
                        self.release(taken)
                    raise
                if ticket is not None:
                    break
                if tickets:
                    yield indices, tickets  # once these are settled there may be room
                    indices, tickets = [], []
                else:
                    time.sleep(0.05)  # another thread's calls are open, or it is not our turn
            indices.append(index)
            tickets.append(ticket)
        if tickets:
            yield indices, tickets

    def write_down(self) -> None:
        """Put into the ledger what could not be written when it was settled."""
        with self._lock:
            if self._owed != (0, 0, 0.0):
                self._change(lambda account: account)

    def _give_back(self, calls: int, tokens: int, cost: float) -> None:
        """Never fails: where the ledger cannot be written now, its account stays too high until it can."""
        before = self._owed
        self._owed = (before[0] - calls, before[1] - tokens, before[2] - cost)
        try:
            self._change(lambda account: account)
        except LedgerError:
            return

    def _change(self, change: Change) -> bool:
        owed = self._owed

        def settled(account: Account) -> Account | None:
            return change(account.plus(*owed))

        if self._ledger is not None:
            changed = self._ledger.change_account(self._scope, settled)
        else:
            account = settled(self._account)
            changed = account is not None
            self._account = account or self._account
        if changed:
            self._owed = (0, 0, 0.0)
        return changed

    def _over(self, wanted: Account) -> list[str]:
        limits = (
            ("calls", wanted.calls, self.max_calls),
            ("tokens", wanted.tokens, self.max_tokens),
            # Sums of floats: a millionth of a cent is not an overdraft.
            ("cost", wanted.cost - 1e-8, self.max_cost),
        )
        return [name for name, value, limit in limits if limit is not None and value > limit]

    def _sentence(self, what: str, worst: Reservation) -> str:
        account = self.account
        if what == "calls":
            return f"The limit of {self.max_calls} calls is reached. Raise max_calls to go on; nothing is lost."
        if what == "tokens":
            return (
                f"{account.tokens} of at most {self.max_tokens} tokens are used, and one more call may take up to "
                f"{worst.tokens}. Raise max_tokens to go on; nothing is lost."
            )
        return (
            f"${account.cost:.4f} of at most ${self.max_cost:.4f} are spent, and one more call may cost up to "
            f"${worst.cost:.4f}. Raise max_cost to go on; nothing is lost."
        )
