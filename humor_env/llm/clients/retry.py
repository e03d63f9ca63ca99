"""The one retry loop. The services' own loops are switched off: two loops multiply their calls.

    caller = Caller(send, Policy(concurrency=32), Budget(max_calls=1000), worst_case)
    replies = caller.ask(requests, on_reply)

`send` makes one attempt and either returns a reply or raises CallFailed, which says what the failure means:

    408, 409, 429, 5xx, a lost connection      retry, with growing waits, until the deadline
    no answer in time                          the same, with fewer calls in flight: the service cannot keep up
    no connection at all                       the same; but if nothing has answered yet, everything stops after about
                                               5 s, and if nothing answers any more, at the first deadline
    an answer that is not a message (a web     retry a few times; then the request fails as a transport error, and a
    page, nothing, cut or unreadable JSON)     later run asks again. Never a verdict, never stored as one
    400, 413, 414, 422, 451                    no retry: it concerns this request (a content filter, too long).
                                               Everything stops if every call so far got the same 400 (at least three,
                                               and as many as were in flight), or after twenty in a row
    404, a redirect, other 4xx                 no retry, and a later run asks again; three in a row stop everything
    401, 402; 403 before any success           stop everything at once; a later 403 only after three in a row
    a reply of the wrong form, or cut off      one new try
    a refusal                                  a reply like any other: counted, never retried
    the budget is reached                      stop; calls in flight are awaited and kept
    the ledger is locked                       wait for it up to a minute, without delaying other calls

A client has a single Caller, shared by all threads: `concurrency` is the client's, not each call's.
"""

from __future__ import annotations

import asyncio
import random
import re
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace

from humor_env.errors import BudgetExceeded, CredentialError, HumorEnvError, JudgingFailed
from humor_env.llm.budget import Budget, LedgerBusy
from humor_env.llm.clients import background
from humor_env.llm.clients.failed_calls import ABOUT_THE_REQUEST, ODD_ANSWER, CallFailed, garbled, lasting_kind, redact
from humor_env.llm.clients.throttle import Throttle
from humor_env.llm.protocol import OnReply, Reply, Request
from humor_env.shared.plain_numbers import check_number
from humor_env.types import NO_USAGE, Usage


@dataclass(frozen=True, slots=True)
class Policy:
    """How hard to try. Times are in seconds; `deadline` covers all attempts at a request, from the first one.

    `absent` is how long to try a service that has never answered; `garbled_tries` how often to try if the answer
    is not a message.
    """

    concurrency: int = 32
    timeout: float = 60.0
    deadline: float = 300.0
    first_wait: float = 0.5
    longest_wait: float = 30.0
    longest_retry_after: float = 60.0
    fresh_tries: int = 1
    rejected_in_a_row: int = 3
    same_rejections: int = 20
    garbled_tries: int = 4
    absent: float = 5.0

    def __post_init__(self) -> None:
        for name in ("concurrency", "rejected_in_a_row", "same_rejections", "garbled_tries"):
            check_number(name, getattr(self, name), least=1, whole=True)
        check_number("fresh_tries", self.fresh_tries, least=0, whole=True)
        for name in ("timeout", "deadline"):
            check_number(name, getattr(self, name), above=0)
        for name in ("first_wait", "longest_wait", "longest_retry_after", "absent"):
            check_number(name, getattr(self, name), least=0)


LEDGER_PATIENCE = 60.0
"""Seconds to wait for a ledger that another process has locked."""


Send = Callable[[Request], Awaitable[Reply]]
WorstCase = Callable[[Request], tuple[int, float | None]]
"""The most tokens and dollars that one attempt at a request can use; dollars are None if the price is unknown."""


OnWait = Callable[[str], None]
"""Called in the client's own thread with a message (which service, and why) when a call waits for a retry."""


class Caller:
    """Sends a client's batches under one policy and one budget, and remembers the service's behaviour.

    `where` names the service in messages; `remedy` says what to do if it does not answer.
    """

    def __init__(
        self,
        send: Send,
        policy: Policy,
        budget: Budget,
        worst_case: WorstCase,
        secret: str = "",
        where: str = "the service",
        remedy: str = "Check the address and the network.",
        refused: str = "The service refuses this key: check which key is set, and its permissions.",
        on_wait: OnWait | None = None,
        home: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        self.send, self.policy, self.budget, self.worst_case = send, policy, budget, worst_case
        self.where, self.remedy, self.refused, self.on_wait = where, remedy, refused, on_wait
        self._secret = secret
        self.home = home  # the loop that calls wait on; a forked process has another
        self.throttle = Throttle(policy.concurrency)
        self.heard = False  # anything at all, including an error
        self.succeeded = False
        self.absent_since: float | None = None
        self.garbled_in_a_row = 0
        self.rejected_in_a_row = 0
        self.same_rejections = 0
        self.last_rejection = ""
        self._told_at = -1.0

    def ask(self, requests: Sequence[Request], on_reply: OnReply | None = None) -> list[Reply]:
        """A reply for every request. An error that stops everything is raised once the calls in flight are stored."""
        if not requests:
            return []
        return background.run(_Batch(self, requests, on_reply).run())

    def redacted(self, text: str) -> str:
        return redact(text, self._secret)

    def answered(self) -> None:
        """Note that a message came, whatever it said."""
        self.heard = self.succeeded = True
        self.absent_since = None
        self.garbled_in_a_row = self.rejected_in_a_row = self.same_rejections = 0

    def rejected(self, detail: str) -> None:
        self.rejected_in_a_row += 1
        # Without digits: services put the request's id into the message.
        what = re.sub(r"\w*\d\w*", "#", detail)
        self.same_rejections = self.same_rejections + 1 if what == self.last_rejection else 1
        self.last_rejection = what

    def report_wait(self, detail: str, wait: float) -> None:
        """Report the reason for waiting, at most once a second."""
        now = time.monotonic()
        if self.on_wait is not None and now - self._told_at >= 1.0:
            self._told_at = now
            self.on_wait(f"{self.where}: {self.redacted(detail)}; trying again in {wait:.1f} s")


class _Batch:
    """One call of Caller.ask, on the background loop."""

    def __init__(self, caller: Caller, requests: Sequence[Request], on_reply: OnReply | None) -> None:
        self.caller, self.requests, self.on_reply = caller, requests, on_reply
        self.policy = caller.policy
        self.throttle = caller.throttle
        self.replies: list[Reply | None] = [None] * len(requests)
        self.stopped = asyncio.Event()
        self.problem: BaseException | None = None
        # Only jitters retries: no result depends on it.
        self.jitter = random.Random()

    async def run(self) -> list[Reply]:
        if self.throttle.in_air == 0:
            self.caller.absent_since = None
        tasks = [asyncio.create_task(self._one(i)) for i in range(len(self.requests))]
        watch = asyncio.create_task(self._cancel_when_hopeless(tasks))
        try:
            await asyncio.gather(*tasks, return_exceptions=True)
        finally:
            watch.cancel()
            for task in tasks:
                task.cancel()
        if self.problem is not None:
            raise self.problem
        return [reply for reply in self.replies if reply is not None]

    async def _cancel_when_hopeless(self, tasks: list[asyncio.Task[None]]) -> None:
        """After a stop: calls in flight are awaited if the budget ended (they are paid for), else cancelled."""
        await self.stopped.wait()
        if not isinstance(self.problem, BudgetExceeded):
            for task in tasks:
                task.cancel()

    def _stop(self, problem: BaseException) -> None:
        if self.problem is None:
            self.problem = problem
        self.stopped.set()

    async def _one(self, index: int) -> None:
        try:
            reply = await self._until_settled(self.requests[index])
            if reply is not None:
                self.replies[index] = reply
                if self.on_reply is not None:
                    self.on_reply(index, reply)
        except asyncio.CancelledError:
            raise
        except BaseException as problem:
            # A reply that cannot be stored (or a bug here) must end the batch, not vanish in a task.
            self._stop(problem)

    async def _until_settled(self, request: Request) -> Reply | None:
        """The final reply, with the usage of all attempts; None if the batch was stopped first."""
        usage = NO_USAGE
        attempts = garbled_tries = 0
        last: Reply | None = None
        failure: CallFailed | None = None
        last_detail = ""  # the last that was heard of the service
        fresh_left = self.policy.fresh_tries
        deadline: float | None = None
        while True:
            await self.throttle.enter(again=attempts > 0)
            try:
                waits_since = time.monotonic()
                if deadline is not None and waits_since >= deadline - self.policy.timeout / 10:
                    # It waited behind other calls, and there is no time left to answer it.
                    return last if failure is None or self.stopped.is_set() else self._failed(failure, attempts, usage)
                ticket = await self._reserve(request)
                if ticket is None:
                    return last
                sent_at, answered = time.monotonic(), self.throttle.successes
                # Time spent waiting for our own limits does not count against the service.
                deadline = sent_at + self.policy.deadline if deadline is None else deadline + sent_at - waits_since
                outcome = await self._attempt(request, ticket, min(self.policy.timeout, deadline - sent_at))
            finally:
                self.throttle.leave()
            attempts += 1
            failure = None if isinstance(outcome, Reply) else outcome
            if isinstance(outcome, Reply):
                usage += outcome.usage
                self.throttle.succeeded()
                self.caller.answered()
                last = replace(outcome, usage=usage, detail=self.caller.redacted(outcome.detail))
                if outcome.error in ("cut", "invalid") and fresh_left > 0:
                    fresh_left -= 1
                    continue
                return last
            usage += Usage(calls=1)
            wait = self._wait(outcome, attempts)
            # An attempt with almost no time left would only end as "no answer" and hide the real problem.
            late = time.monotonic() + wait >= deadline - self.policy.timeout / 10
            if outcome.trouble == "timeout":
                self.throttle.timed_out(sent_at, self.throttle.successes - answered)
            if outcome.trouble == "absent":
                self._absent(outcome, sent_at, wait, late)
            garbled_tries += outcome.trouble == "garbled"
            if garbled_tries >= self.policy.garbled_tries:
                self._garbled(outcome)
                late = True
            final = self._after_failure(outcome, sent_at)
            if final or late:
                return last if self.stopped.is_set() else self._failed(outcome, attempts, usage, last_detail)
            last_detail = outcome.detail if outcome.trouble != "timeout" or outcome.status is not None else last_detail
            self.caller.report_wait(outcome.detail, wait)
            if await self._sleep(wait):
                return last

    async def _reserve(self, request: Request) -> int | None:
        tokens, cost = self.caller.worst_case(request)
        until = time.monotonic() + LEDGER_PATIENCE
        while not self.stopped.is_set():
            try:
                ticket = self.caller.budget.reserve(tokens, cost, patience=0.0)
            except LedgerBusy as problem:
                if time.monotonic() > until:
                    self._stop(problem)
                    return None
                self.caller.report_wait(str(problem), 0.05)
                ticket = None
            except HumorEnvError as problem:
                self._stop(problem)
                return None
            if ticket is not None:
                return ticket
            await self._sleep(0.05)
        return None

    async def _attempt(self, request: Request, ticket: int, seconds: float) -> Reply | CallFailed:
        spent: Usage | None = None
        try:
            async with asyncio.timeout(seconds):
                reply = await self.caller.send(request)
            spent = reply.usage
            return reply
        except TimeoutError:
            return CallFailed(
                "unreachable", f"no answer within {round(seconds, 1):g} s", billed_unknown=True, trouble="timeout"
            )
        except CallFailed as failure:
            spent = None if failure.billed_unknown else Usage(calls=1)
            return failure
        except HumorEnvError:
            raise
        except ODD_ANSWER as problem:
            # One odd answer (JSON nested a thousand deep, a number of 400 digits) must not end a batch of two thousand.
            return garbled(self.caller.where, type(problem).__name__)
        finally:
            # Also when cancelled: then usage is unknown, and the worst case stays counted.
            self.caller.budget.settle(ticket, spent)

    def _absent(self, failure: CallFailed, sent_at: float, wait: float, late: bool) -> None:
        """No connection was made. Stop if none ever was for a while, or none for a whole deadline."""
        caller = self.caller
        if caller.absent_since is None:
            caller.absent_since = sent_at
        missing = time.monotonic() - caller.absent_since
        if caller.heard:
            if late and missing >= 0.5 * self.policy.deadline:
                self._stop(JudgingFailed(f"{self._nobody(failure)} It answered before. {caller.remedy}"))
        elif missing + wait >= self.policy.absent:
            self._stop(JudgingFailed(f"{self._nobody(failure)} {caller.remedy}"))

    def _nobody(self, failure: CallFailed) -> str:
        return f"No server answers at {self.caller.where} ({self.caller.redacted(failure.detail)})."

    def _garbled(self, failure: CallFailed) -> None:
        """A request ended without a message. Stop if no call has got one yet."""
        caller = self.caller
        caller.garbled_in_a_row += 1
        if not caller.succeeded and caller.garbled_in_a_row >= max(
            self.policy.rejected_in_a_row, caller.throttle.in_air
        ):
            self._stop(
                JudgingFailed(
                    f"No call has got a valid message so far. The last answer: "
                    f"{caller.redacted(failure.detail)}. Check that {caller.where} is the service's address."
                )
            )

    def _after_failure(self, failure: CallFailed, sent_at: float) -> bool:
        """Apply a failed attempt's consequences to the batch; return whether the request itself has failed for good."""
        caller, status = self.caller, failure.status
        detail = caller.redacted(failure.detail)
        if status is not None:
            caller.heard = True
        if failure.trouble != "absent":
            caller.absent_since = None
        if failure.kind == "rejected":
            caller.rejected(detail)
        if status == 401 or (
            status == 403 and (not caller.succeeded or caller.same_rejections >= self.policy.rejected_in_a_row)
        ):
            self._stop(CredentialError(f"{detail}. {caller.refused}"))
        elif status == 402:
            self._stop(CredentialError(f"{detail}. The service wants payment: check the account's credit."))
        elif status is not None and self._concerns_every_call(status):
            self._stop(
                JudgingFailed(
                    f"{caller.rejected_in_a_row} calls in a row were rejected, so probably every call would be. "
                    f"The last answer: {detail}. Check the model's name and the options."
                )
            )
        elif status in (429, 503, 529):
            self.throttle.overloaded(sent_at)
        return failure.kind == "rejected"

    def _concerns_every_call(self, status: int) -> bool:
        """Whether the rejections so far suggest that every call would be rejected."""
        caller, few = self.caller, self.policy.rejected_in_a_row
        if status not in ABOUT_THE_REQUEST:
            return caller.rejected_in_a_row >= few
        if status != 400:
            return False
        # A filter rejects quickly, while a model answers slowly: while as many calls are still in flight, the first
        # rejections do not represent them.
        never = not caller.succeeded and caller.same_rejections >= max(few, self.throttle.in_air)
        return never or caller.same_rejections >= self.policy.same_rejections

    def _wait(self, failure: CallFailed, attempts: int) -> float:
        grown = min(self.policy.longest_wait, self.policy.first_wait * 2 ** min(attempts - 1, 20))
        wait = grown * (0.75 + 0.25 * self.jitter.random())
        if failure.retry_after is not None:
            wait = max(wait, min(failure.retry_after, self.policy.longest_retry_after))
        return wait

    def _failed(self, failure: CallFailed, attempts: int, usage: Usage, last_detail: str = "") -> Reply:
        """`last_detail` is the last real answer, which explains more than a last attempt without one."""
        detail = failure.detail + ("" if attempts == 1 else f" (after {attempts} attempts)")
        if last_detail and failure.trouble == "timeout" and failure.status is None:
            detail += f"; before: {last_detail}"
        return Reply(error=lasting_kind(failure), detail=self.caller.redacted(detail), usage=usage)

    async def _sleep(self, seconds: float) -> bool:
        """Sleep; True if the batch was stopped meanwhile."""
        try:
            async with asyncio.timeout(seconds):
                await self.stopped.wait()
        except TimeoutError:
            return False
        return True
