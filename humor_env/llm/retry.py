"""The one retry loop. The services' own loops are switched off: two loops multiply their calls.

    caller = Caller(send, Policy(concurrency=32), Budget(max_calls=1000), worst_case)
    replies = caller.ask(requests, on_reply)

`send` makes one attempt and either returns a reply or raises CallFailed, which says what the failure means:

    408, 409, 429, 5xx, no connection, no answer   again, after a wait that grows, until the deadline
    400, 404, 413, 422                             not again; 400 and 404 stop everything after a few in a row
    401, 402, 403                                  stop everything at once
    a reply of the wrong form, or cut off          one fresh try
    a refusal                                      a reply like any other: counted, never asked again
    the budget is reached                          stop; calls in the air are waited for, and kept
"""

from __future__ import annotations

import asyncio
import random
import re
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from email.utils import parsedate_to_datetime

from humor_env.errors import BudgetExceeded, CredentialError, HumorEnvError, InvalidOption, JudgingFailed
from humor_env.llm import background
from humor_env.llm.budget import Budget
from humor_env.llm.protocol import ErrorKind, OnReply, Reply, Request
from humor_env.types import NO_USAGE, Usage


@dataclass(frozen=True, slots=True)
class Policy:
    """How hard to try. Times are in seconds; `deadline` counts from a request's first attempt, all attempts in it."""

    concurrency: int = 32
    timeout: float = 60.0
    deadline: float = 300.0
    first_wait: float = 0.5
    longest_wait: float = 30.0
    longest_retry_after: float = 60.0
    fresh_tries: int = 1
    rejected_in_a_row: int = 3

    def __post_init__(self) -> None:
        if self.concurrency < 1 or self.timeout <= 0 or self.deadline <= 0:
            raise InvalidOption(
                f"concurrency must be at least 1, timeout and deadline above 0; found {self.concurrency}, "
                f"{self.timeout}, {self.deadline}."
            )


class CallFailed(Exception):
    """One attempt failed. `billed_unknown`: the service may have worked, and charged, without our seeing it."""

    def __init__(
        self,
        kind: ErrorKind,
        detail: str,
        *,
        status: int | None = None,
        retry_after: float | None = None,
        billed_unknown: bool = False,
    ) -> None:
        super().__init__(detail)
        self.kind, self.detail, self.status = kind, detail, status
        self.retry_after, self.billed_unknown = retry_after, billed_unknown


Send = Callable[[Request], Awaitable[Reply]]
WorstCase = Callable[[Request], tuple[int, float | None]]
"""The most tokens and dollars that one attempt at a request can take; dollars None where the price is unknown."""


def from_status(service: str, status: int, message: str, retry_after: str | None = None) -> CallFailed:
    """What an HTTP status means, as a CallFailed."""
    transient = status in (408, 409, 429) or status >= 500
    return CallFailed(
        "overloaded" if transient else "rejected",
        f"{service} answered {status}: {message}"[:300],
        status=status,
        retry_after=parse_retry_after(retry_after),
        # A gateway's 504 or 502 says nothing of what happened behind it.
        billed_unknown=status in (408, 502, 504),
    )


def parse_retry_after(value: str | None) -> float | None:
    """Seconds from a `retry-after` header, a number or a date; None where there is none or it makes no sense."""
    if not value:
        return None
    try:
        seconds = float(value)
    except ValueError:
        try:
            seconds = parsedate_to_datetime(value).timestamp() - time.time()
        except (ValueError, TypeError):
            return None
    return seconds if seconds >= 0 and seconds == seconds else None


def redact(text: str, *secrets: str | None) -> str:
    """`text` without keys: services repeat them in their error messages."""
    for secret in secrets:
        if secret:
            text = text.replace(secret, "[key]")
    return re.sub(r"\b(?:sk|key)-[A-Za-z0-9_*\-]{6,}|(?i:bearer)\s+\S+", "[key]", text)


class Throttle:
    """How many calls may be in the air: fewer after an overload, one more after each round of successes.

    It is cut at most once per round trip: of 32 calls that fail together, one tells the news. Second tries go before
    first ones, or a request's deadline would pass while it waits behind all that have not begun.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self.limit = float(most)
        self._in_air = 0
        self._cut_at = -1.0
        self._again: deque[asyncio.Future[None]] = deque()
        self._first: deque[asyncio.Future[None]] = deque()

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
        self.limit = min(float(self.most), self.limit + 1.0 / self.limit)

    def overloaded(self, sent_at: float) -> None:
        if sent_at > self._cut_at:
            self.limit = max(1.0, self.limit * 0.7)
            self._cut_at = time.monotonic()


class Caller:
    """Sends batches through one policy and one budget."""

    def __init__(self, send: Send, policy: Policy, budget: Budget, worst_case: WorstCase, secret: str = "") -> None:
        self.send, self.policy, self.budget, self.worst_case = send, policy, budget, worst_case
        self._secret = secret

    def ask(self, requests: Sequence[Request], on_reply: OnReply | None = None) -> list[Reply]:
        """A reply for every request. What stops everything is raised after calls in the air have been stored."""
        if not requests:
            return []
        return background.run(_Batch(self, requests, on_reply).run())

    def redacted(self, text: str) -> str:
        return redact(text, self._secret)


class _Batch:
    """One call of Caller.ask, on the background loop."""

    def __init__(self, caller: Caller, requests: Sequence[Request], on_reply: OnReply | None) -> None:
        self.caller, self.requests, self.on_reply = caller, requests, on_reply
        self.policy = caller.policy
        self.throttle = Throttle(min(self.policy.concurrency, len(requests)))
        self.replies: list[Reply | None] = [None] * len(requests)
        self.stopped = asyncio.Event()
        self.problem: BaseException | None = None
        self.rejected_in_a_row = 0
        # Only spreads retries in time: no result depends on it.
        self.jitter = random.Random()

    async def run(self) -> list[Reply]:
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
        """Once stopped: out of budget, calls in the air are paid for and waited for; otherwise they are given up."""
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
            # A reply that cannot be stored (or our own bug) must end the batch, not vanish in a task.
            self._stop(problem)

    async def _until_settled(self, request: Request) -> Reply | None:
        """The final reply, with the usage of all attempts; None where the batch was stopped before there was one."""
        usage = NO_USAGE
        attempts = 0
        last: Reply | None = None
        fresh_left = self.policy.fresh_tries
        deadline: float | None = None
        while True:
            await self.throttle.enter(again=attempts > 0)
            try:
                ticket = await self._reserve(request)
                if ticket is None:
                    return last
                sent_at = time.monotonic()
                deadline = deadline or sent_at + self.policy.deadline
                outcome = await self._attempt(request, ticket, min(self.policy.timeout, deadline - sent_at))
            finally:
                self.throttle.leave()
            attempts += 1
            if isinstance(outcome, Reply):
                usage += outcome.usage
                self.throttle.succeeded()
                self.rejected_in_a_row = 0
                last = replace(outcome, usage=usage, detail=self.caller.redacted(outcome.detail))
                if outcome.error in ("cut", "invalid") and fresh_left > 0:
                    fresh_left -= 1
                    continue
                return last
            usage += Usage(calls=1)
            final = self._after_failure(outcome, sent_at)
            wait = self._wait(outcome, attempts)
            # An attempt with next to no time left would only end as "no answer", and hide what is wrong.
            if final or time.monotonic() + wait >= deadline - self.policy.timeout / 10:
                return last if self.stopped.is_set() else self._failed(outcome, attempts, usage)
            if await self._sleep(wait):
                return last

    async def _reserve(self, request: Request) -> int | None:
        tokens, cost = self.caller.worst_case(request)
        while not self.stopped.is_set():
            try:
                ticket = self.caller.budget.reserve(tokens, cost)
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
            # A reply that came without a count of tokens was billed all the same.
            spent = reply.usage if reply.usage.input_tokens else None
            return reply
        except TimeoutError:
            return CallFailed("unreachable", f"no answer within {seconds:.0f} s", billed_unknown=True)
        except CallFailed as failure:
            spent = None if failure.billed_unknown else Usage(calls=1)
            return failure
        finally:
            # Also when cancelled: then nothing is known, and the worst case stays counted.
            self.caller.budget.settle(ticket, spent)

    def _after_failure(self, failure: CallFailed, sent_at: float) -> bool:
        """Draw the consequences of a failed attempt for the batch; whether the request itself is beyond help."""
        detail = self.caller.redacted(failure.detail)
        if failure.status in (401, 403):
            self._stop(
                CredentialError(f"{detail}. The service refuses this key: check which key is set, and its rights.")
            )
        elif failure.status == 402:
            self._stop(CredentialError(f"{detail}. The service wants payment: check the account's credit."))
        elif failure.status in (400, 404):
            self.rejected_in_a_row += 1
            if self.rejected_in_a_row >= self.policy.rejected_in_a_row:
                self._stop(
                    JudgingFailed(
                        f"{self.rejected_in_a_row} calls in a row were rejected, so probably every call would be. "
                        f"The last answer: {detail}. Check the model's name and the options."
                    )
                )
        elif failure.status in (429, 503, 529):
            self.throttle.overloaded(sent_at)
        return failure.kind == "rejected"

    def _wait(self, failure: CallFailed, attempts: int) -> float:
        grown = min(self.policy.longest_wait, self.policy.first_wait * 2 ** min(attempts - 1, 20))
        wait = grown * (0.75 + 0.25 * self.jitter.random())
        if failure.retry_after is not None:
            wait = max(wait, min(failure.retry_after, self.policy.longest_retry_after))
        return wait

    def _failed(self, failure: CallFailed, attempts: int, usage: Usage) -> Reply:
        tries = "" if attempts == 1 else f" (after {attempts} attempts)"
        return Reply(error=failure.kind, detail=self.caller.redacted(failure.detail) + tries, usage=usage)

    async def _sleep(self, seconds: float) -> bool:
        """Sleep; True where the batch was stopped meanwhile."""
        try:
            async with asyncio.timeout(seconds):
                await self.stopped.wait()
        except TimeoutError:
            return False
        return True
