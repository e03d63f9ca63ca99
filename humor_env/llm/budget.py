"""Spending limits that hold however many calls run at once.

    budget = Budget(max_calls=500, max_cost=2.0)
    client = make_client("anthropic:claude-haiku-4-5", budget=budget)
    budget.spent            # Usage(calls=..., input_tokens=..., ...)

Before each call its *worst case* is reserved: one call, every byte of the request counted as a token, and the longest
reply allowed. Afterwards the reservation is replaced by the usage that the service reports. A call without a known end
(no answer, a lost connection) may have been billed: its worst case stays counted. So does the worst case of any usage
field that the service omits or reports as something that cannot be a token count (`reported`).

`requests_per_minute` and `tokens_per_minute` limit the rate (see pace.py): a call that comes too early waits its turn.

With `ledger=` and a `scope` the account is kept in the ledger's file, so that the limit holds across restarts and
between processes; a process that is killed leaves its reservations counted. If only open calls exceed the limit, a
budget waits for them, including those of other budgets in this process; those of another process cannot be
distinguished from what a killed one left.
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
from humor_env.llm.pace import Pace, Turn, cancel, enter_all, settle, shared_pace
from humor_env.shared.plain_numbers import is_number
from humor_env.types import NO_USAGE, Usage

if TYPE_CHECKING:
    from humor_env.llm.ledger import Ledger
    from humor_env.llm.protocol import Request


class LedgerError(HumorEnvError, RuntimeError):
    """A ledger that cannot be read or written. The message says why, and what happens to the replies."""


class LedgerBusy(LedgerError):
    """Another process holds the ledger's lock."""


@dataclass(frozen=True, slots=True)
class Reservation:
    """The most that one call may use."""

    tokens: int
    cost: float
    turn: Turn = ()


@dataclass(frozen=True, slots=True)
class Account:
    """Usage counted against the limits: settled calls at their actual usage, open ones at their worst case."""

    calls: int = 0
    tokens: int = 0
    cost: float = 0.0

    def plus(self, calls: int, tokens: int, cost: float) -> Account:
        return Account(self.calls + calls, self.tokens + tokens, self.cost + cost)


# Tokens that a service may add to a request (roles, a preamble for structured output), for the worst case.
_ENVELOPE_TOKENS = 1000


def most_tokens(request: Request) -> int:
    """The most tokens that a request can have: a token is at least one byte."""
    schema = len(json.dumps(request.schema).encode()) if request.schema is not None else 0
    return len(request.system.encode()) + len(request.user_text.encode()) + schema + _ENVELOPE_TOKENS


LARGEST_COUNT = 10_000_000
"""Tokens. No context is larger: a larger reported count is a mistake and is ignored."""


def reported(usage: object, name: str) -> int | None:
    """A token count as reported by a service; None if the value cannot be one."""
    value = getattr(usage, name, None)
    # Excludes True (1 in Python), -1, which would refund money, and an unsigned -1.
    return value if type(value) is int and 0 <= value <= LARGEST_COUNT else None


OTHERS_PATIENCE = 90.0
"""Seconds to wait for calls of others on the same account: as long as one call takes, but not as long as a batch."""

# The budgets of this process that share an account, by ledger and scope.
_sharers: dict[tuple[str, str], weakref.WeakSet[Budget]] = {}
_sharers_lock = threading.Lock()


Change = Callable[[Account], Account | None]
"""From the current account to the new one; None leaves it unchanged."""


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
            raise InvalidOption("A budget kept in a ledger needs both the ledger and a scope.")
        self.max_calls, self.max_tokens, self.max_cost = max_calls, max_tokens, max_cost
        self._ledger, self._scope = ledger, scope
        self.paces: dict[tuple[float | None, float | None], Pace] = {}  # by their limits, each of which counts once
        self.keep_pace(requests_per_minute, tokens_per_minute)
        self._lock = threading.Lock()
        self._account = Account()
        self._open: dict[int, Reservation] = {}
        self._next = 0
        self._spent = NO_USAGE
        # Settled here, but not yet written to the ledger, which was unavailable: calls, tokens, dollars.
        self._owed = (0, 0, 0.0)
        self._others_since: float | None = None
        if ledger is not None:
            where = f"{id(ledger)}" if ledger.path == ":memory:" else str(Path(ledger.path).resolve())
            with _sharers_lock:
                self._sharing = _sharers.setdefault((where, scope), weakref.WeakSet())
                self._sharing.add(self)

    def keep_pace(self, requests_per_minute: float | None = None, tokens_per_minute: float | None = None) -> None:
        """Limit requests and tokens per minute from now on, besides the limits kept already: all of them hold.

        Clients of one account share those that are equal.
        """
        limits = (requests_per_minute, tokens_per_minute)
        if limits == (None, None) or limits in self.paces:
            return
        if self._ledger is None or self._ledger.path == ":memory:":
            self.paces[limits] = Pace(*limits)
        else:
            self.paces[limits] = shared_pace(f"{self._ledger.path}\n{self._scope}", *limits)

    @property
    def spent(self) -> Usage:
        """This process's usage, as the services reported it."""
        return self._spent

    @property
    def account(self) -> Account:
        """The usage counted against the limits."""
        return self._ledger.account(self._scope).plus(*self._owed) if self._ledger is not None else self._account

    @property
    def calls_left(self) -> int | None:
        return None if self.max_calls is None else max(0, self.max_calls - self.account.calls)

    def reserve(self, tokens: int, cost: float | None, *, patience: float = 60.0, paced: bool = True) -> int | None:
        """A ticket for one call; None if it may fit once open calls are settled, or if it is not its turn yet.

        Raises BudgetExceeded if it can no longer fit, LedgerBusy if the ledger stays locked for `patience`
        seconds.
        """
        until = time.monotonic() + patience
        while True:
            try:
                return self._reserve(tokens, cost, list(self.paces.values()) if paced else [])
            except LedgerBusy:
                if time.monotonic() >= until:
                    raise
            time.sleep(0.05)

    def _reserve(self, tokens: int, cost: float | None, paces: Sequence[Pace]) -> int | None:
        if cost is None and self.max_cost is not None:
            raise InvalidOption(
                "A limit in money cannot be enforced for a model whose price is unknown. Give its price "
                "(prices = {model = {input = ..., output = ...}}, dollars per million), or limit calls or tokens."
            )
        with self._lock:
            turn = enter_all(paces, tokens)
            if turn is None:
                return None
            worst = Reservation(tokens, cost or 0.0, turn)
            refused: list[str] = []

            def book(account: Account) -> Account | None:
                after = account.plus(1, worst.tokens, worst.cost)
                refused.extend(self._over(after))
                return None if refused else after

            entered = False
            try:
                entered = self._change(book)
            finally:
                if not entered:
                    cancel(turn)
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
        """Replace a reservation by the call's usage; with None (unknown) the worst case stays."""
        with self._lock:
            worst = self._open.pop(ticket)
            if usage is None:
                settle(worst.turn, None)
                self._spent += Usage(calls=1)
                return
            used = usage.input_tokens + usage.output_tokens
            if not 0 <= used <= 2 * LARGEST_COUNT:
                used = worst.tokens
            settle(worst.turn, used)
            has_cost = usage.cost is not None and usage.cost >= 0 and math.isfinite(usage.cost)
            cost = usage.cost if has_cost and usage.cost is not None else worst.cost
            self._give_back(0, worst.tokens - used, worst.cost - cost)
            self._spent += replace(usage, calls=1)

    def release(self, ticket: int) -> None:
        """Release the reservation of a call that was not made after all."""
        with self._lock:
            worst = self._open.pop(ticket)
            cancel(worst.turn)
            self._give_back(1, worst.tokens, worst.cost)

    def portions(self, worst: Sequence[tuple[int, float | None]]) -> Iterator[tuple[list[int], list[int]]]:
        """For calls made in this process: indices and tickets of as many at a time as the limits allow.

        Those that fit are yielded before BudgetExceeded is raised for the rest.
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
                except BaseException:  # an unknown price, a locked ledger: none of these calls is made
                    for open_ticket in tickets:
                        self.release(open_ticket)
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
        """Write settled usage to the ledger that could not be written earlier."""
        with self._lock:
            if self._owed != (0, 0, 0.0):
                self._change(lambda account: account)

    def _give_back(self, calls: int, tokens: int, cost: float) -> None:
        """Never fails: if the ledger cannot be written, its account stays too high until it can."""
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

    def _over(self, account: Account) -> list[str]:
        limits = (
            ("calls", account.calls, self.max_calls),
            ("tokens", account.tokens, self.max_tokens),
            # Sums of floats: tolerate a millionth of a cent.
            ("cost", account.cost - 1e-8, self.max_cost),
        )
        return [name for name, value, limit in limits if limit is not None and value > limit]

    def _sentence(self, what: str, worst: Reservation) -> str:
        account = self.account
        if what == "calls":
            return f"The limit of {self.max_calls} calls is reached. Raise max_calls to continue; nothing is lost."
        if what == "tokens":
            return (
                f"{account.tokens} of at most {self.max_tokens} tokens are used, and one more call may take up to "
                f"{worst.tokens}. Raise max_tokens to continue; nothing is lost."
            )
        return (
            f"${account.cost:.4f} of at most ${self.max_cost:.4f} are spent, and one more call may cost up to "
            f"${worst.cost:.4f}. Raise max_cost to continue; nothing is lost."
        )
