"""Anthropic's Message Batches: half the price, an answer within a day. For scoring files, not for training loops.

    client = make_client("anthropic-batch:claude-haiku-4-5", ledger="verdicts.sqlite")

The same protocol as every client, so critics need not know. With a ledger, the batch of each request is recorded as
soon as the service has accepted it, so a process that is killed while waiting finds its batches again and does not pay
twice. Results arrive in any order and are matched by their id.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from humor_env.errors import BudgetExceeded, CredentialError, HumorEnvError, InvalidOption, JudgingFailed
from humor_env.llm.budget import Budget
from humor_env.llm.clients import background
from humor_env.llm.clients.anthropic import DEFAULT_MODEL, AnthropicClient, read_message
from humor_env.llm.clients.failed_calls import redact
from humor_env.llm.clients.retry import Policy
from humor_env.llm.ledger import Ledger
from humor_env.llm.ledger_rows import request_key
from humor_env.llm.protocol import OnReply, Reply, Request
from humor_env.types import NO_USAGE, Usage


@dataclass(frozen=True, slots=True)
class _Work:
    """The distinct requests of one call by key, and the indices that each one's reply goes to."""

    requests: dict[str, Request]
    places: dict[str, list[int]]
    tickets: dict[str, int]
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
        if largest < 1 or poll <= 0:
            raise InvalidOption(f"largest must be at least 1 and poll above 0, found {largest} and {poll}.")
        self.poll, self.largest = poll, largest
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
        work = _Work({}, {}, {}, [None] * len(requests), on_reply)
        for index, request in enumerate(requests):
            key = request_key("batch", self.name, request)
            work.requests.setdefault(key, request)
            work.places.setdefault(key, []).append(index)
        return background.run(self._run(work))

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
        except (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError) as problem:
            if isinstance(problem, HumorEnvError):
                raise
            raise JudgingFailed(
                f"{self.where} answered with something that is not a batch ({type(problem).__name__}). Batches "
                "that were accepted are remembered in the ledger: start again to continue."
            ) from None
        return [reply if reply is not None else _lost() for reply in work.replies]

    async def _submit(self, work: _Work) -> dict[str, list[str]]:
        """The batches that hold the requests: recorded ones, and new ones for the rest."""
        batches: dict[str, list[str]] = {}
        remembered = self.memory.batches_of(list(work.requests))
        for key, batch in remembered.items():
            batches.setdefault(batch, []).append(key)
        rest = [key for key in work.requests if key not in remembered]
        for start in range(0, len(rest), self.largest):
            keys = rest[start : start + self.largest]
            self._reserve(keys, work)
            sent = [{"custom_id": key, "params": self.parameters(work.requests[key])} for key in keys]
            made = await self._sdk.messages.batches.create(requests=sent)
            self.memory.record_batch(made.id, keys)
            batches[made.id] = keys
        return batches

    def _reserve(self, keys: Sequence[str], work: _Work) -> None:
        """Reserve a whole batch at its worst case, or nothing."""
        taken: list[int] = []
        try:
            for key in keys:
                tokens, cost = self.worst_case(work.requests[key])
                # On the loop that all clients share: do not wait for a locked ledger here.
                ticket = self.budget.reserve(tokens, None if cost is None else cost / 2, patience=0.5, paced=False)
                if ticket is None:
                    raise BudgetExceeded("The batch as a whole may not fit the budget. Raise it, or send fewer jokes.")
                taken.append(ticket)
        except HumorEnvError:
            for ticket in taken:
                self.budget.release(ticket)
            raise
        work.tickets.update(zip(keys, taken, strict=True))

    async def _collect(self, batch: str, keys: list[str], work: _Work) -> None:
        import anthropic

        service = self._sdk.messages.batches
        try:
            while (await service.retrieve(batch)).processing_status != "ended":
                await asyncio.sleep(self.poll)
        except anthropic.NotFoundError:
            # Results are kept for a few weeks only, and belong to one account.
            self.memory.forget_batch(keys)
            raise
        expected = set(keys)
        async for answer in await service.results(batch):
            if answer.custom_id in expected:
                expected.discard(answer.custom_id)
                self._deliver(answer.custom_id, self._read_result(answer.result, work, answer.custom_id), work)
        for key in expected:
            self._deliver(key, _lost(), work)

    def _deliver(self, key: str, reply: Reply, work: _Work) -> None:
        ticket = work.tickets.pop(key, None)
        if ticket is not None:
            # A request without a result is not charged; one with a message was, whatever the message says.
            self.budget.settle(ticket, reply.usage if reply.usage.calls else Usage(calls=1))
        if reply.error in ("overloaded", "unreachable", "rejected"):
            self.memory.forget_batch([key])
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


def _lost() -> Reply:
    return Reply(error="unreachable", detail="the batch service returned no result for this request")
