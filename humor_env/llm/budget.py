"""Spending limits that are never exceeded, however many calls are in the air.

    budget = Budget(max_calls=500, max_cost=2.0)
    client = make_client("anthropic:claude-haiku-4-5", budget=budget)
    budget.spent            # Usage(calls=..., input_tokens=..., ...)

Before each call its *worst case* is reserved: one call, every byte of the request counted as a token, and the longest
reply allowed. After it the reservation is replaced by what the service says it used. A call whose end we never saw
(no answer, a lost connection) may have been billed: its worst case stays counted against the limit.

With `ledger=` and a `scope` the account is kept in the ledger's file, so that the limit holds across restarts and
between processes; a process that is killed leaves its reservations counted.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from humor_env.errors import BudgetExceeded, InvalidOption
from humor_env.types import NO_USAGE, Usage

if TYPE_CHECKING:
    from humor_env.llm.ledger import Ledger
    from humor_env.llm.protocol import Request


@dataclass(frozen=True, slots=True)
class Reservation:
    """What one call may use at most."""

    tokens: int
    cost: float


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
        ledger: Ledger | None = None,
        scope: str = "",
    ) -> None:
        for name, limit in (("max_calls", max_calls), ("max_tokens", max_tokens), ("max_cost", max_cost)):
            if limit is not None and not limit >= 0:
                raise InvalidOption(f"{name} is {limit!r}; expected a number from 0 on, or nothing for no limit.")
        if (ledger is None) != (not scope):
            raise InvalidOption("A budget that is kept in a ledger needs both the ledger and a scope to keep it under.")
        self.max_calls, self.max_tokens, self.max_cost = max_calls, max_tokens, max_cost
        self._ledger, self._scope = ledger, scope
        self._lock = threading.Lock()
        self._account = Account()
        self._open: dict[int, Reservation] = {}
        self._next = 0
        self._spent = NO_USAGE

    @property
    def spent(self) -> Usage:
        """What this process used, as the services reported it."""
        return self._spent

    @property
    def account(self) -> Account:
        """What counts against the limits."""
        return self._ledger.account(self._scope) if self._ledger is not None else self._account

    @property
    def calls_left(self) -> int | None:
        return None if self.max_calls is None else max(0, self.max_calls - self.account.calls)

    def reserve(self, tokens: int, cost: float | None) -> int | None:
        """A ticket for one call; None where it may fit once calls in the air are settled.

        Raises BudgetExceeded where it cannot fit any more.
        """
        if cost is None and self.max_cost is not None:
            raise InvalidOption(
                "A limit in money cannot be kept for a model whose price is unknown. Give its price "
                "(prices = {model = {input = ..., output = ...}}, dollars per million), or limit calls or tokens."
            )
        worst = Reservation(tokens, cost or 0.0)
        with self._lock:
            refused: list[str] = []

            def book(account: Account) -> Account | None:
                wanted = account.plus(1, worst.tokens, worst.cost)
                refused.extend(self._over(wanted))
                return None if refused else wanted

            if self._change(book):
                self._next += 1
                self._open[self._next] = worst
                return self._next
            if "calls" not in refused and self._open:
                return None
            raise BudgetExceeded(self._sentence(refused[0], worst))

    def settle(self, ticket: int, usage: Usage | None) -> None:
        """Replace a reservation by what the call used; None where that is not known, and the worst case stays."""
        with self._lock:
            worst = self._open.pop(ticket)
            if usage is None:
                self._spent += Usage(calls=1)
                return
            used = usage.input_tokens + usage.output_tokens
            cost = worst.cost if usage.cost is None else usage.cost
            self._change(lambda account: account.plus(0, used - worst.tokens, cost - worst.cost))
            self._spent += replace(usage, calls=1)

    def release(self, ticket: int) -> None:
        """Give back a reservation of a call that was not made after all."""
        with self._lock:
            worst = self._open.pop(ticket)
            self._change(lambda account: account.plus(-1, -worst.tokens, -worst.cost))

    def _change(self, change: Change) -> bool:
        if self._ledger is not None:
            return self._ledger.change_account(self._scope, change)
        account = change(self._account)
        if account is None:
            return False
        self._account = account
        return True

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
