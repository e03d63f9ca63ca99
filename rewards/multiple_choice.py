"""The paper's judge: a language model sees two lines for one prompt as "1" and "2" and chooses the better.

    judge = MultipleChoiceJudge("anthropic:claude-haiku-4-5", ledger="verdicts.sqlite")
    [verdict] = judge([(a, b)])
    verdict.probability        # P(a wins) + P(tie) / 2
    judge.flip_rate            # share of pairs whose raw answer changed with the order

Every pair is judged in both orders and averaged before deciding. From a model with answer probabilities, the symbol's
probability is read without a preceding reason; any other writes a reason of at most 20 words and then a vote. Two equal
lines are a tie, without a call.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from humor_env.errors import InvalidOption
from humor_env.llm.budget import Budget
from humor_env.llm.ledger import Ledger
from humor_env.llm.ledgered_client import Estimate, LedgeredClient, OnProgress, OverBudget
from humor_env.llm.protocol import Client, Reply, Request
from humor_env.llm.template import fill, load
from humor_env.rewards.scorer import failure, symbol_schema
from humor_env.rewards.shared.both_orders import Pair, both_orders, both_ways
from humor_env.types import NO_USAGE, Verdict

VERSION = 1
FIRST, SECOND, TIE = "1", "2", "0"


class MultipleChoiceJudge:
    """`tie=True` allows the answer that neither is better. `votes` is the number of calls per order, for models whose
    answers vary. The remaining options are those of ScorerCritic."""

    def __init__(
        self,
        client: str | Client = "anthropic",
        *,
        template: str | None = None,
        tie: bool = False,
        votes: int = 1,
        words: int = 20,
        max_tokens: int = 200,
        longest: int = 4000,
        ledger: str | Path | Ledger | None = None,
        budget: Budget | Mapping[str, Any] | None = None,
        over_budget: OverBudget = "stop",
        options: Mapping[str, Any] | None = None,
        on_progress: OnProgress | None = None,
        name: str = "multiple-choice",
    ) -> None:
        if votes < 1:
            raise InvalidOption(f"votes must be at least 1, found {votes}.")
        self.name = name
        self.max_tokens, self.longest = max_tokens, longest
        self.ledgered = LedgeredClient(
            f"multiple-choice {VERSION}",
            client,
            ledger=ledger,
            budget=budget,
            over_budget=over_budget,
            options=options,
            on_progress=on_progress,
        )
        self._by_symbol = self.ledgered.client.probabilities
        # Probabilities are exact: a second call would give the same.
        self.votes = 1 if self._by_symbol else votes
        self.symbols = (FIRST, SECOND, TIE) if tie else (FIRST, SECOND)
        answers = f'"{FIRST}" or "{SECOND}"' + (f', or "{TIE}" where neither is better' if tie else "")
        shape = load(
            "humor_env.rewards", template or ("multiple_choice_symbol" if self._by_symbol else "multiple_choice")
        )
        self._system = fill(shape, words=words, answers=answers)
        self._schema = symbol_schema(self.symbols) if self._by_symbol else _reasoned(self.symbols)
        self._flips = self._asked = 0

    @property
    def flip_rate(self) -> float | None:
        """Share of the pairs asked so far whose raw answer changed with the order; None before the first."""
        return self._flips / self._asked if self._asked else None

    def __call__(self, pairs: Sequence[Pair], /) -> list[Verdict]:
        verdicts: list[Verdict | None] = [self._without_asking(pair) for pair in pairs]
        to_ask = [index for index, verdict in enumerate(verdicts) if verdict is None]
        for index, verdict in zip(to_ask, both_orders(self._ask, [pairs[i] for i in to_ask], self.name), strict=True):
            verdicts[index] = verdict
            if verdict.flipped is not None:
                self._asked += 1
                self._flips += verdict.flipped
        return [verdict for verdict in verdicts if verdict is not None]

    def requests(self, pair: Pair) -> list[Request]:
        """The requests for a pair in this order: one per vote."""
        first, second = pair
        data = {"task": first.prompt.task, "input": first.prompt.text, FIRST: first.text, SECOND: second.text}
        most = 16 if self._by_symbol else self.max_tokens
        return [Request(self._system, data, self._schema, most, self.symbols, vote) for vote in range(self.votes)]

    def estimate(self, pairs: Sequence[Pair]) -> Estimate:
        """The estimated usage of judging these pairs, without sending anything."""
        to_ask = [pair for pair in pairs if self._without_asking(pair) is None]
        return self.ledgered.estimate([request for pair in both_ways(to_ask) for request in self.requests(pair)])

    def close(self) -> None:
        self.ledgered.close()

    def _without_asking(self, pair: Pair) -> Verdict | None:
        first, second = pair
        if first.prompt.text != second.prompt.text:
            raise InvalidOption(
                f"A pair's lines must answer the same prompt; found '{first.prompt.id}' and '{second.prompt.id}'."
            )
        if max(len(first.text), len(second.text)) > self.longest:
            return Verdict(self.name, None, error=f"too long: at most {self.longest} characters are sent")
        if first.text == second.text:
            return Verdict(self.name, 0.5, tie=1.0)
        return None

    def _ask(self, pairs: Sequence[Pair]) -> list[Verdict]:
        replies = iter(self.ledgered.ask([request for pair in pairs for request in self.requests(pair)]))
        return [self._verdict([next(replies) for _ in range(self.votes)]) for _ in pairs]

    def _verdict(self, replies: Sequence[Reply]) -> Verdict:
        """One order's verdict. Failed votes are left out; without valid ones there is no verdict."""
        usage = sum((reply.usage for reply in replies), NO_USAGE)
        good = [reply for reply in replies if reply.data is not None and not reply.failed]
        if not good:
            return Verdict(self.name, None, error=failure(replies[0]), usage=usage)
        shares = [_shares(reply) for reply in good]
        first = sum(share.get(FIRST, 0.0) for share in shares) / len(good)
        tie = sum(share.get(TIE, 0.0) for share in shares) / len(good)
        reason = next((str(reply.data["reason"]) for reply in good if reply.data and "reason" in reply.data), "")
        return Verdict(self.name, min(1.0, first + tie / 2), min(1.0, tie), reason, usage=usage)


def _shares(reply: Reply) -> Mapping[str, float]:
    return reply.probabilities or {str(reply.data["answer"]) if reply.data else "": 1.0}


def _reasoned(symbols: Sequence[str]) -> dict[str, Any]:
    return {
        "type": "object",
        "additionalProperties": False,
        "required": ["reason", "answer"],
        "properties": {"reason": {"type": "string"}, "answer": {"type": "string", "enum": list(symbols)}},
    }
