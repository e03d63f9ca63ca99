"""Anthropic's Message Batches: half the price, an answer within a day. For scoring files, not for training loops.

    client = make_client("anthropic-batch:claude-haiku-4-5", ledger="verdicts.sqlite")

The same protocol as every client, so critics need not know. With a ledger, the batch of each request is recorded as
soon as the service has accepted it, so a process that is killed while waiting finds its batches again and does not pay
twice. Results arrive in any order and are matched by their id. Reading a reply a second time costs nothing; a failed
one is forgotten, and the next request for it is sent again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from humor_env.errors import BudgetExceeded, CredentialError, HumorEnvError, JudgingFailed
from humor_env.llm.budget import Budget
from humor_env.llm.clients import background
from humor_env.llm.clients.address import never_connected
from humor_env.llm.clients.anthropic import DEFAULT_MODEL, AnthropicClient, read_message
from humor_env.llm.clients.failed_calls import ODD_ANSWER, redact
from humor_env.llm.clients.retry import Policy
from humor_env.llm.ledger import Ledger
from humor_env.llm.ledger_rows import request_key
from humor_env.llm.protocol import OnReply, Reply, Request
from humor_env.shared.plain_numbers import check_number
from humor_env.types import NO_USAGE, Usage


@dataclass(frozen=True, slots=True)
class _Work:
    """The distinct requests of one call by key, and the indices that each one's reply goes to."""

    requests: dict[str, Request]
    places: dict[str, list[int]]
    replies: list[Reply | None]
    on_reply: OnReply | None


class AnthropicBatchClient(AnthropicClient):
    """`poll` is the pause between checks of a batch, in seconds; `largest` the most requests in one batch."""

    def __init__(
        self,
        model: str = DEFAULT_MODEL,
        *,
        ledger: Ledger | str | None = None,
        poll: float = 30.0,
        largest: int = 10_000,
        base_url: str | None = None,
        budget: Budget | None = None,
        prices: Mapping[str, Mapping[str, float]] | None = None,
        policy: Policy | None = None,
        effort: str | None = None,
        thinking: str | None = None,
        must_have_key: bool = True,
        called: str | None = None,
    ) -> None:
        super().__init__(
            model,
            base_url=base_url,
            budget=budget,
            prices=prices,
            policy=policy,
            effort=effort,
            thinking=thinking,
            must_have_key=must_have_key,
            called=called,
        )
        check_number("largest", largest, least=1, whole=True)
        check_number("poll", poll, above=0)
        self.poll, self.largest = poll, largest
        # By key, for requests in accepted batches: an interrupted call leaves them to the next one.
        self._tickets: dict[str, list[int]] = {}
        self._made_memory = not isinstance(ledger, Ledger)
        self.memory = ledger if isinstance(ledger, Ledger) else Ledger(ledger or ":memory:")

    def close(self) -> None:
        super().close()
        if self._made_memory:
            self.memory.close()

    def __repr__(self) -> str:
        return f"AnthropicBatchClient({self.name!r})"

    def __call__(self, requests: Sequence[Request], on_reply: OnReply | None = None) -> list[Reply]:
        if not requests:
            return []
        self._connect()
        work = _Work({}, {}, [None] * len(requests), on_reply)
        for index, request in enumerate(requests):
            key = self._key(request)
            work.requests.setdefault(key, request)
            work.places.setdefault(key, []).append(index)
        return background.run(self._run(work))

    def ask_anew(self, requests: Sequence[Request]) -> None:
        """Send these again although their replies are stored, unless they are already on their way."""
        keys = [self._key(request) for request in requests]
        sent = self.memory.batch_states(keys)
        self.memory.forget_batch([key for key in keys if sent.get(key) != "sent"])

    def _key(self, request: Request) -> str:
        return request_key("batch", self.name, request)

    async def _run(self, work: _Work) -> list[Reply]:
        import anthropic

        secret = self._sdk.api_key or self._sdk.auth_token or ""
        try:
            batches = await self._submit(work)
            for batch, keys in batches.items():  # the service works on all of them meanwhile
                await self._collect(batch, keys, work)
        except anthropic.APIStatusError as problem:
            message = redact(f"Anthropic answered {problem.status_code}: {problem.api_message or problem.type}", secret)
            if problem.status_code in (401, 402, 403):
                raise CredentialError(f"{message}. Check the key, its permissions and the account's credit.") from None
            raise JudgingFailed(
                f"{message}. Batches that the service accepted are remembered: run again to continue."
            ) from None
        except anthropic.AnthropicError as problem:
            raise JudgingFailed(
                f"The batch service could not be reached ({type(problem).__name__}). Batches that were accepted are "
                "remembered in the ledger: start again to continue."
            ) from None
        except ODD_ANSWER as problem:
            if isinstance(problem, HumorEnvError):
                raise
            raise JudgingFailed(
                f"{self.where} answered with something that is not a batch ({type(problem).__name__}). Batches "
                "that were accepted are remembered in the ledger: start again to continue."
            ) from None
        return [reply if reply is not None else _lost() for reply in work.replies]

    async def _submit(self, work: _Work) -> dict[str, list[str]]:
        """The batches that hold the requests: recorded ones, and new ones for the rest."""
        import anthropic

        batches: dict[str, list[str]] = {}
        remembered = self.memory.batches_of(list(work.requests))
        for key, batch in remembered.items():
            batches.setdefault(batch, []).append(key)
        new_keys = [key for key in work.requests if key not in remembered]
        for start in range(0, len(new_keys), self.largest):
            keys = new_keys[start : start + self.largest]
            sent = [{"custom_id": key, "params": self.parameters(work.requests[key])} for key in keys]
            tickets = self._reserve(keys, work)
            try:
                created = await self._sdk.messages.batches.create(requests=sent)
            except anthropic.AnthropicError as problem:
                for ticket in tickets if _was_not_taken(problem) else ():
                    self.budget.release(ticket)
                raise
            for key, ticket in zip(keys, tickets, strict=True):
                self._tickets.setdefault(key, []).append(ticket)
            self.memory.record_batch(created.id, keys)
            batches[created.id] = keys
        return batches

    def _reserve(self, keys: Sequence[str], work: _Work) -> list[int]:
        """Reserve a whole batch at its worst case, or nothing."""
        tickets: list[int] = []
        try:
            for key in keys:
                tokens, cost = self.worst_case(work.requests[key])
                # On the loop that all clients share: do not wait for a locked ledger here.
                ticket = self.budget.reserve(tokens, None if cost is None else cost / 2, patience=0.5, paced=False)
                if ticket is None:
                    raise BudgetExceeded("The batch as a whole may not fit the budget. Raise it, or send fewer jokes.")
                tickets.append(ticket)
        except HumorEnvError:
            for ticket in tickets:
                self.budget.release(ticket)
            raise
        return tickets

    async def _collect(self, batch: str, keys: list[str], work: _Work) -> None:
        import anthropic

        service = self._sdk.messages.batches
        try:
            while (await service.retrieve(batch)).processing_status != "ended":
                await asyncio.sleep(self.poll)
        except anthropic.NotFoundError:
            # Results are kept for a few weeks only, and belong to one account.
            self.memory.forget_batch(keys)
            for ticket in [ticket for key in keys for ticket in self._tickets.pop(key, ())]:
                self.budget.settle(ticket, None)
            raise
        expected = set(keys)
        read_before = {key for key, state in self.memory.batch_states(keys).items() if state == "read"}
        delivered: dict[str, Reply] = {}

        def deliver(key: str, reply: Reply) -> None:
            expected.discard(key)
            self._deliver(key, replace(reply, usage=NO_USAGE, replayed=True) if key in read_before else reply, work)
            delivered[key] = reply

        try:
            async for answer in await service.results(batch):
                if answer.custom_id in expected:
                    deliver(answer.custom_id, self._read_result(answer.result, work, answer.custom_id))
            for key in list(expected):
                deliver(key, _lost())
        finally:
            # Only now, when the caller has stored them.
            self.memory.batch_was_read([key for key, reply in delivered.items() if not reply.failed])
            self.memory.forget_batch([key for key, reply in delivered.items() if reply.failed])

    def _deliver(self, key: str, reply: Reply, work: _Work) -> None:
        for ticket in self._tickets.pop(key, ()):
            # A request without a result is not charged; one with a message was, whatever the message says.
            self.budget.settle(ticket, reply.usage if reply.usage.calls else Usage(calls=1))
        for number, index in enumerate(work.places[key]):
            work.replies[index] = reply if number == 0 else replace(reply, usage=NO_USAGE, replayed=True)
            if work.on_reply is not None:
                work.on_reply(index, work.replies[index] or reply)

    def _read_result(self, result: Any, work: _Work, key: str) -> Reply:
        if result.type == "succeeded":
            request = work.requests[key]
            if not isinstance(getattr(result.message, "content", None), list):
                # No model answered: not a verdict; the next run asks again.
                return replace(_lost(), usage=self.usage(result.message, request, batch=True))
            return read_message(result.message, request, self.usage(result.message, request, batch=True))
        if result.type == "errored":
            kind = getattr(getattr(result.error, "error", None), "type", "error")
            lasting = kind == "invalid_request_error"
            return Reply(error="rejected" if lasting else "overloaded", detail=f"the batch service: {kind}")
        return Reply(error="unreachable", detail=f"the batch service: {result.type}")


def _was_not_taken(problem: Exception) -> bool:
    """Whether the service certainly did not accept the batch, and so will not charge for it."""
    status = getattr(problem, "status_code", None)
    if status is None:
        return never_connected(problem)
    return (status < 500 and status != 408) or status in (503, 529)


def _lost() -> Reply:
    return Reply(error="unreachable", detail="the batch service returned no result for this request")
