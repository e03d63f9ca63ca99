"""Limits for user-written clients, which have none of their own.

    client = LimitedClient(OwnClient(), Budget(max_calls=2))
    client(requests)                      # BudgetExceeded before the third is sent

A client whose class takes `budget` enforces the limits itself, and better, because it knows the most a call can cost. A
client's own `worst_case(request)`, in tokens and dollars, is used; without one, tokens are bounded by bytes, and a
limit in money is refused. A reply without its usage counts at its worst case.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from humor_env.llm.budget import Budget, most_tokens
from humor_env.llm.protocol import TRANSIENT, Client, OnReply, Reply, Request
from humor_env.types import Usage


class LimitedClient:
    """Wraps a client and sends it as many requests at a time as the limits allow."""

    def __init__(self, client: Client, budget: Budget) -> None:
        self.client, self.budget = client, budget
        self.name, self.probabilities = client.name, client.probabilities

    def __getattr__(self, name: str) -> Any:
        if name == "client":  # before __init__ has run
            raise AttributeError(name)
        return getattr(self.client, name)

    def __call__(self, requests: Sequence[Request], on_reply: OnReply | None = None) -> list[Reply]:
        replies: list[Reply] = []
        worst = [self._most(request) for request in requests]
        for places, tickets in self.budget.portions(worst):
            replies += self._ask(requests, places, tickets, [worst[place][0] for place in places], on_reply)
        return replies

    def _ask(
        self,
        requests: Sequence[Request],
        places: Sequence[int],
        tickets: Sequence[int],
        most: Sequence[int],
        on_reply: OnReply | None,
    ) -> list[Reply]:
        open_tickets = dict(enumerate(tickets))

        def arrived(index: int, reply: Reply) -> None:
            self.budget.settle(open_tickets.pop(index), _used(reply, most[index]))
            if on_reply is not None:
                on_reply(places[index], reply)

        try:
            replies = list(self.client([requests[place] for place in places], arrived))
            for index in list(open_tickets):  # for a client that reports replies only at the end
                arrived(index, replies[index])
            return replies
        finally:
            for ticket in open_tickets.values():
                self.budget.settle(ticket, None)

    def _most(self, request: Request) -> tuple[int, float | None]:
        worst = getattr(self.client, "worst_case", None)
        return worst(request) if callable(worst) else (most_tokens(request) + request.max_tokens, None)

    def close(self) -> None:
        self.client.close()


def _used(reply: Reply, most: int) -> Usage | None:
    """What an answer used; None where it does not say. It may say only what it cost: then the tokens are the most."""
    usage = reply.usage
    unanswered = reply.replayed or reply.error in TRANSIENT or reply.error == "rejected"
    if unanswered or usage.input_tokens + usage.output_tokens != 0:
        return usage
    return replace(usage, input_tokens=most) if usage.cost else None
