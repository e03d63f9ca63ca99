"""The client that critics and teachers use, with its ledger and its budget.

    client = LedgeredClient("scorer 1", "anthropic:claude-haiku-4-5", ledger="verdicts.sqlite", budget={"max_calls": 9})
    replies = client.ask(requests)
    client.usage, client.counts      # spent in this process; numbers asked, replayed, and failed by kind

Questions answered in the ledger are not sent; a question that occurs twice in a batch is sent once; every reply is
stored before it is returned; if several threads ask the same at once, one sends it and all get its reply.
Without a key, a client whose ledger has replies still opens, and only raises (before sending
anything) for a question that the ledger cannot answer.
"""

from __future__ import annotations

import threading
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

from humor_env.errors import BudgetExceeded, CredentialError, InvalidOption, did_you_mean
from humor_env.llm.budget import Budget, LedgerError, most_tokens
from humor_env.llm.factory import make_client
from humor_env.llm.ledger import Ledger
from humor_env.llm.ledger_rows import request_key
from humor_env.llm.prices import Price
from humor_env.llm.protocol import TRANSIENT, Client, ErrorKind, Reply, Request
from humor_env.llm.replies import ReplyError, check
from humor_env.types import NO_USAGE, Usage

OverBudget = Literal["stop", "unscored"]

_refusals: ContextVar[list[str] | None] = ContextVar("refusals", default=None)


@contextmanager
def leaving_unscored() -> Iterator[list[str]]:
    """Within the block, clients asked in this thread leave unscored what a limit refuses, whatever their `over_budget`.

    For callers that can do without an answer, but not without those already paid. Gives the refusals' messages: none
    until a limit is reached.
    """
    refusals: list[str] = []
    token = _refusals.set(refusals)
    try:
        yield refusals
    finally:
        _refusals.reset(token)


@dataclass(frozen=True, slots=True)
class Progress:
    """The progress of a batch. `usage` is its cost so far; `waiting` is the reason for waiting, if a call must be
    retried."""

    done: int
    total: int
    replayed: int
    failed: int
    usage: Usage
    waiting: str = ""


OnProgress = Callable[[Progress], None]


@dataclass(frozen=True, slots=True)
class Estimate:
    """Estimated usage of a batch: input at 3.5 bytes per token, output at its limit."""

    requests: int
    replayed: int
    calls: int
    input_tokens: int
    output_tokens: int
    cost: float | None

    def __add__(self, other: Estimate) -> Estimate:
        cost = None if self.cost is None or other.cost is None else self.cost + other.cost
        return Estimate(
            self.requests + other.requests,
            self.replayed + other.replayed,
            self.calls + other.calls,
            self.input_tokens + other.input_tokens,
            self.output_tokens + other.output_tokens,
            cost,
        )

    def __str__(self) -> str:
        money = "an unknown sum (no price for this model)" if self.cost is None else f"at most about ${self.cost:.4f}"
        return (
            f"{self.requests} questions: {self.replayed} answered by the ledger or asked once for several, "
            f"{self.calls} calls, about {self.input_tokens} tokens read, at most {self.output_tokens} written, {money}"
        )


class LedgeredClient:
    """Questions of one purpose (a critic and its version) to one client.

    In `options`, `ask_again = ["invalid"]` retries stored failures of these kinds, once in the client's lifetime; other
    options go to the client. The caller closes a ledger or client that it passed in.
    """

    def __init__(
        self,
        purpose: str,
        client: str | Client,
        *,
        ledger: str | Path | Ledger | None = None,
        budget: Budget | Mapping[str, Any] | None = None,
        over_budget: OverBudget = "stop",
        options: Mapping[str, Any] | None = None,
        on_progress: OnProgress | None = None,
    ) -> None:
        if over_budget not in ("stop", "unscored"):
            raise InvalidOption(
                f"over_budget is {over_budget!r}; expected 'stop' or 'unscored'."
                f"{did_you_mean(str(over_budget), ['stop', 'unscored'])}"
            )
        self.purpose = purpose
        self.over_budget = over_budget
        self.on_progress = on_progress
        if options is not None and not isinstance(options, Mapping):
            raise InvalidOption(
                f'A client\'s options are a table, such as {{dtype = "float32"}}; found {options!r}. (On a command '
                "line it is written as in TOML, with = and not a colon.)"
            )
        client_options = dict(options or {})
        self.ask_again = _error_kinds(client_options.pop("ask_again", ()))
        self._made_ledger, self._made_client = not isinstance(ledger, Ledger), isinstance(client, str)
        self.ledger = ledger if isinstance(ledger, Ledger) else Ledger(ledger or ":memory:")
        if isinstance(client, str):
            self.budget = self._budget(budget)
            must_have_key = client_options.pop("must_have_key", len(self.ledger) == 0)
            if client.partition(":")[0] == "anthropic-batch":
                client_options.setdefault("ledger", self.ledger)
            self.client: Client = make_client(client, budget=self.budget, must_have_key=must_have_key, **client_options)
        else:
            if budget is not None or client_options:
                raise InvalidOption(
                    "A live client already has its budget and options: give them when making the client."
                )
            self.client = client
            self.budget = getattr(client, "budget", None) or Budget()
        self.usage = NO_USAGE
        self.counts: Counter[str] = Counter()
        self._lock = threading.RLock()
        self._in_air: dict[str, threading.Event] = {}  # being asked by some thread
        self._asked_again: set[str] = set()
        self._told_of_former = False

    def _budget(self, budget: Budget | Mapping[str, Any] | None) -> Budget:
        if isinstance(budget, Budget):
            return budget
        names = ("max_calls", "max_tokens", "max_cost", "requests_per_minute", "tokens_per_minute", "scope")
        if budget is not None and not isinstance(budget, Mapping):
            raise InvalidOption(
                f"A budget is a table of {', '.join(names)}, such as {{max_calls = 5}}; found {budget!r}."
            )
        for name in budget or {}:
            if name not in names:
                raise InvalidOption(f"A budget has no '{name}'.{did_you_mean(name, names)} Known: {', '.join(names)}.")
        limits = dict(budget or {})
        return Budget(**limits, ledger=self.ledger if "scope" in limits else None)

    def close(self) -> None:
        try:
            self._settle_accounts()
            if self._made_client:
                self.client.close()
        finally:
            if self._made_ledger:
                self.ledger.close()

    def _settle_accounts(self) -> None:
        """Write pending replies to the ledger. Raises LedgerError if that still fails."""
        self.ledger.write_down()
        self.budget.write_down()

    def key(self, request: Request) -> str:
        return request_key(self.purpose, self._name_for(request), request)

    def _name_for(self, request: Request) -> str:
        name_for = getattr(self.client, "name_for", None)
        return str(name_for(request)) if callable(name_for) else self.client.name

    def ask(self, requests: Sequence[Request]) -> list[Reply]:
        """A reply for each request, in order. Replies that cost nothing now are marked `replayed` and have no usage."""
        keys = [self.key(request) for request in requests]
        first: dict[str, int] = {}
        for index, key in enumerate(keys):
            first.setdefault(key, index)
        fresh: dict[str, Reply] = {}
        waited: set[str] = set()
        while True:
            # Under one lock: between lookup and claim, another thread's reply could come unnoticed.
            with self._lock:
                stored, over = self._known({key: requests[index] for key, index in first.items()})
                missing = [key for key in first if key not in fresh and (key not in stored or key in over - waited)]
                others = {key: self._in_air[key] for key in missing if key in self._in_air}
                claimed = [key for key in missing if key not in others]
                done = threading.Event()
                self._in_air.update(dict.fromkeys(claimed, done))
            try:
                if claimed:
                    self._ask_missing([requests[first[key]] for key in claimed], claimed, len(requests), fresh, over)
            finally:
                with self._lock:
                    for key in claimed:
                        del self._in_air[key]
                done.set()
            if not others:
                break
            # Another thread asks these. If it was stopped, they are not in the ledger, and this one asks them.
            waited |= set(others)
            for event in others.values():
                event.wait()
        replies = []
        for index, key in enumerate(keys):
            reply = fresh.get(key)
            if reply is None or first[key] != index:
                # Replayed, or a duplicate within the batch.
                reply = replace(reply or stored.get(key) or _unsent(), usage=NO_USAGE, replayed=True)
            replies.append(reply)
            with self._lock:
                self._count(reply)
        return replies

    def _known(self, requests: Mapping[str, Request]) -> tuple[dict[str, Reply], set[str]]:
        """The stored replies to these, and the keys among them to ask again.

        A stored reply without the requested form (a damaged row, another program's) does not count.
        """
        stored = self.ledger.find(list(requests))
        stored |= self._under_former_names({key: requests[key] for key in requests if key not in stored})
        over = set()
        for key, reply in stored.items():
            if not _fits(reply, requests[key]) or self._worth_another_try(key, reply):
                over.add(key)
        return stored, over

    def _under_former_names(self, requests: Mapping[str, Request]) -> dict[str, Reply]:
        """Replies from ledgers that named the client without a setting: those that have the probabilities which are
        wanted, and if it is unknown whether the schema was sent, the valid ones (without a key, all that there are)."""
        stored: dict[str, Reply] = {}
        for name in dict.fromkeys((self.client.name, getattr(self.client, "bare_name", self.client.name))):
            keys = {request_key(self.purpose, name, r): key for key, r in requests.items() if key not in stored}
            former = {old: key for old, key in keys.items() if old != key}
            for old, reply in (self.ledger.find(list(former)) if former else {}).items():
                request = requests[former[old]]
                has_form = not reply.failed or self._name_for(request) == self.client.name
                has_shares = name == self.client.name or reply.probabilities or not request.choices
                if has_shares and (has_form or getattr(self.client, "lacks_key", False)):
                    stored[former[old]] = reply
        return stored

    def _worth_another_try(self, key: str, reply: Reply) -> bool:
        """A transient failure is retried, unless there is no key: then it is part of the replayed run."""
        may_change = reply.error in TRANSIENT or (reply.error in self.ask_again and key not in self._asked_again)
        return may_change and not getattr(self.client, "lacks_key", False)

    def _ask_missing(
        self, requests: list[Request], keys: list[str], total: int, fresh: dict[str, Reply], over: set[str]
    ) -> None:
        failed = 0
        spent = NO_USAGE
        if self.ledger.read_only:
            raise LedgerError(
                f"{len(keys)} of {total} questions are not in the ledger '{self.ledger.path}', which is "
                "read-only. Nothing was asked: copy the ledger to a writable place, or give another path."
            )
        self._look_under_former_name(requests)
        if over and hasattr(self.client, "ask_anew"):  # offline batches remember what came back
            stored = self.ledger.find([key for key in keys if key in over])
            failed_keys = {key for key, reply in stored.items() if reply.failed and reply.error not in TRANSIENT}
            self.client.ask_anew([request for key, request in zip(keys, requests, strict=True) if key in failed_keys])

        def progress(waiting: str = "") -> None:
            if self.on_progress is not None:
                done = total - len(requests) + len(fresh)
                self.on_progress(Progress(done, total, total - len(requests), failed, spent, waiting))

        def store(index: int, reply: Reply) -> None:
            nonlocal failed, spent
            key = keys[index]
            in_ledger = self.ledger.put(
                key, self.purpose, self._name_for(requests[index]), requests[index], reply, over=key in over
            )
            # Another process may have stored its reply first: use that one, but report our cost.
            fresh[key] = replace(in_ledger, usage=reply.usage, replayed=False)
            failed += in_ledger.failed
            spent += reply.usage
            with self._lock:
                self.usage += reply.usage
                self._asked_again.add(key)
            progress()

        if self.on_progress is not None and hasattr(self.client, "on_wait"):
            self.client.on_wait = progress
        try:
            self.client(requests, store)
        except BudgetExceeded as problem:
            refusals = _refusals.get()
            if self.over_budget == "stop" and refusals is None:
                raise
            if refusals is not None:
                refusals.append(str(problem))
            for key in keys:
                # Not stored: a later run with a larger budget asks them.
                fresh.setdefault(key, Reply(error="budget", detail=str(problem)))
        except CredentialError as problem:
            if getattr(self.client, "lacks_key", False):
                raise CredentialError(
                    f"{len(keys)} of {total} questions are not in the ledger '{self.ledger.path}'. {problem}"
                ) from None
            raise
        # Before paying for more: write pending replies now, or raise.
        self._settle_accounts()

    def _look_under_former_name(self, requests: Sequence[Request]) -> None:
        """Warn once if a ledger of an earlier version, whose name for the client lacks something, has replies to these:
        version 0.1 did not record the server, and later ones a local model's chat template."""
        former = getattr(self.client, "former_name", self.client.name)
        if self._told_of_former or former == getattr(self.client, "bare_name", self.client.name):
            return
        self._told_of_former = True
        count = len(self.ledger.find([request_key(self.purpose, former, request) for request in requests]))
        if count:
            lacks = getattr(self.client, "former_lacks", "all that they depend on")
            remedy = getattr(self.client, "former_remedy", "")
            warnings.warn(
                f"The ledger '{self.ledger.path}' has {count} of these replies without {lacks}; {self.client.name} is "
                f"asked again. {remedy}".rstrip(),
                stacklevel=4,
            )

    def _count(self, reply: Reply) -> None:
        self.counts["replayed" if reply.replayed else "asked"] += 1
        if reply.error is not None:
            self.counts[reply.error] += 1

    def estimate(self, requests: Sequence[Request]) -> Estimate:
        """The estimated usage of `ask`, without sending anything."""
        by_key = {self.key(request): request for request in requests}
        stored, over = self._known(by_key)
        todo = [r for key, r in by_key.items() if key not in stored or key in over]
        read = sum(round(most_tokens(request) / 3.5) for request in todo)
        written = sum(request.max_tokens for request in todo)
        price: Price | None = getattr(self.client, "price", None)
        free = not hasattr(self.client, "price")
        cost = 0.0 if free or not todo else None if price is None else price.cost(read, written)
        return Estimate(len(requests), len(requests) - len(todo), len(todo), read, written, cost)


def _unsent() -> Reply:
    return Reply(error="budget", detail="not asked")


def _fits(reply: Reply, request: Request) -> bool:
    """Whether a stored reply has the requested form; a stored failure always does."""
    if reply.error is not None or request.schema is None:
        return True
    try:
        check(reply.data, request.schema)
    except ReplyError:
        return False
    return True


def _error_kinds(names: str | Sequence[str]) -> frozenset[str]:
    kinds = [names] if isinstance(names, str) else list(names)
    for kind in kinds:
        if kind not in get_args(ErrorKind):
            known_kinds = ", ".join(get_args(ErrorKind))
            raise InvalidOption(f"ask_again names {kind!r}, which is not a kind of failure. Known: {known_kinds}.")
    return frozenset(kinds)
