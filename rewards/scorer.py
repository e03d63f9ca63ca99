"""A language model scores each joke on a rubric: wit, meaning kept, originality, kindness.

    critic = ScorerCritic("anthropic:claude-haiku-4-5", ledger="verdicts.sqlite", budget={"max_cost": 2.0})
    [judgement] = critic([joke])
    judgement.score, judgement.parts        # 0.62, {"wit": 0.6, "meaning": 0.8, ...}

The score is the weighted mean of the parts, each a whole number from 0 to 5 divided by 5. The middle, 0.5, means "some
wit, meaning mostly kept": it is absolute, not a comparison. A model with answer probabilities gets one question at a
time, and each part is the *mean* of its answer's distribution, which is more informative than the top answer.

Your own questions, in plain words, add to these or replace them; each part is named after its question:

    ScorerCritic(questions={"turn": "how well does the end turn on the beginning?"}, weights={"wit": 2, "turn": 1})

A refusal, a reply of the wrong form or an unreachable service is a failed judgement, never a score.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from humor_env.errors import InvalidOption, did_you_mean
from humor_env.llm.budget import Budget
from humor_env.llm.ledger import Ledger
from humor_env.llm.ledgered_client import Estimate, LedgeredClient, OnProgress, OverBudget
from humor_env.llm.protocol import Client, Reply, Request
from humor_env.llm.template import fill, load
from humor_env.types import NO_USAGE, Joke, Judgement

VERSION = 1
WEIGHTS = {"wit": 0.5, "meaning": 0.2, "originality": 0.2, "kindness": 0.1}
QUESTIONS = {
    "wit": "how funny is the line to an attentive reader?",
    "meaning": "how well does the line keep what the input says or asks for?",
    "originality": "how much is the line an idea of its own, neither a stock joke nor a copy of the input?",
    "kindness": "how free is the line of contempt for a group or a person?",
}
MOST = 5
_SYMBOLS = tuple(str(n) for n in range(MOST + 1))
_NAME = re.compile(r"[a-z][a-z0-9_]{0,39}\Z")
_TAKEN = ("reason", "answer")  # fields of a reply that are not parts


def reply_schema(parts: Iterable[str]) -> dict[str, Any]:
    return {
        "type": "object",
        "additionalProperties": False,
        "required": ["reason", *parts],
        # The reason comes first, so that it does not justify numbers already given.
        "properties": {
            "reason": {"type": "string"},
            **{name: {"type": "integer", "enum": list(range(MOST + 1))} for name in parts},
        },
    }


SCHEMA = reply_schema(WEIGHTS)


class ScorerCritic:
    """`rubric` is a built-in template's name or the path of your own; `options` go to the client.

    `questions` adds questions or rewords existing ones. With it, exactly the parts in `weights` are asked for; a
    weight of 0 asks and reports, but does not count.

    `over_budget` says what happens when a limit is reached: "stop" raises (all paid replies are in the ledger),
    "unscored" leaves the rest without a score. Jokes longer than `longest` characters are not sent and stay unscored.
    """

    def __init__(
        self,
        client: str | Client = "anthropic",
        *,
        rubric: str | None = None,
        weights: Mapping[str, float] | None = None,
        questions: Mapping[str, str] | None = None,
        words: int = 20,
        max_tokens: int = 300,
        longest: int = 4000,
        ledger: str | Path | Ledger | None = None,
        budget: Budget | Mapping[str, Any] | None = None,
        over_budget: OverBudget = "stop",
        options: Mapping[str, Any] | None = None,
        on_progress: OnProgress | None = None,
        name: str = "scorer",
    ) -> None:
        self.name = name
        own_questions = _checked_questions(questions)
        self.questions = {**QUESTIONS, **own_questions}
        self.weights = _checked_weights(weights, self.questions)
        self.max_tokens, self.longest = max_tokens, longest
        self.ledgered = LedgeredClient(
            f"scorer {VERSION}",
            client,
            ledger=ledger,
            budget=budget,
            over_budget=over_budget,
            options=options,
            on_progress=on_progress,
        )
        self._by_symbol = self.ledgered.client.probabilities
        built_in = "scorer_symbol" if self._by_symbol else "scorer_questions" if own_questions else "scorer"
        template = load("humor_env.rewards", rubric or built_in)
        parts = list(self.weights if own_questions else WEIGHTS)
        self._schema = reply_schema(parts)
        if self._by_symbol:
            self._systems = {part: fill(template, question=self.questions[part]) for part in self.weights}
            return
        if own_questions and "{{questions}}" not in template:
            raise InvalidOption(
                f"The rubric '{rubric}' has no place for questions: write {{{{questions}}}} where they belong, and "
                "{{parts}} for their names."
            )
        listed = "\n".join(f'- "{part}": {self.questions[part]}' for part in parts)
        self._systems = {"": fill(template, words=words, questions=listed, parts=", ".join(f'"{p}"' for p in parts))}

    def __call__(self, jokes: Sequence[Joke], /) -> list[Judgement]:
        short_jokes = [joke for joke in jokes if len(joke.text) <= self.longest]
        replies = iter(self.ledgered.ask([request for joke in short_jokes for request in self.requests(joke)]))
        judgements = []
        for joke in jokes:
            if len(joke.text) > self.longest:
                error = f"too long: {len(joke.text)} characters, at most {self.longest} are sent"
                judgements.append(Judgement(self.name, None, error=error))
            else:
                judgements.append(self._judgement([next(replies) for _ in self._systems]))
        return judgements

    def requests(self, joke: Joke) -> list[Request]:
        """The requests for a joke: one, or one per part if the model gives probabilities."""
        data = {"task": joke.prompt.task, "input": joke.prompt.text, "line": joke.text}
        if not self._by_symbol:
            return [Request(system, data, self._schema, self.max_tokens) for system in self._systems.values()]
        schema = symbol_schema(_SYMBOLS)
        return [Request(system, data, schema, 16, _SYMBOLS) for system in self._systems.values()]

    def estimate(self, jokes: Sequence[Joke]) -> Estimate:
        """The estimated usage of judging these jokes, without sending anything."""
        sent = [request for joke in jokes if len(joke.text) <= self.longest for request in self.requests(joke)]
        return self.ledgered.estimate(sent)

    def close(self) -> None:
        self.ledgered.close()

    def _judgement(self, replies: Sequence[Reply]) -> Judgement:
        usage = sum((reply.usage for reply in replies), NO_USAGE)
        parts: dict[str, float] = {}
        reason = ""
        for (part, _), reply in zip(self._systems.items(), replies, strict=True):
            if reply.error is not None or reply.data is None:
                return Judgement(self.name, None, error=failure(reply), usage=usage)
            if self._by_symbol:
                parts[part] = _mean(reply) / MOST
            else:
                parts = {name: reply.data[name] / MOST for name in self.weights}
                reason = reply.data["reason"]
        score = sum(weight * parts[name] for name, weight in self.weights.items())
        # Weights sum to 1 only up to rounding, so clip a perfect line's score.
        return Judgement(self.name, min(1.0, max(0.0, score)), parts, reason, usage=usage)


def failure(reply: Reply) -> str:
    """A judgement's `error` for a failed reply."""
    return f"{reply.error or 'invalid'}: {reply.detail}" if reply.detail else str(reply.error or "invalid")


def symbol_schema(symbols: Sequence[str]) -> dict[str, Any]:
    return {
        "type": "object",
        "additionalProperties": False,
        "required": ["answer"],
        "properties": {"answer": {"type": "string", "enum": list(symbols)}},
    }


def _mean(reply: Reply) -> float:
    if reply.probabilities:
        return sum(int(symbol) * probability for symbol, probability in reply.probabilities.items())
    return float(reply.data["answer"]) if reply.data is not None else 0.0


def _checked_questions(questions: Mapping[str, str] | None) -> dict[str, str]:
    if questions is not None and not isinstance(questions, Mapping):
        raise InvalidOption(
            f'questions is {questions!r}; expected a table such as {{turn = "how well does the end turn?"}}.'
        )
    for name, question in (questions or {}).items():
        if not isinstance(name, str) or not _NAME.match(name) or name in _TAKEN:
            raise InvalidOption(
                f"A question is called {name!r}; expected up to 40 lower-case letters, digits and _, "
                f"starting with a letter, and not {' or '.join(_TAKEN)}."
            )
        if not isinstance(question, str) or not question.strip():
            raise InvalidOption(f"The question '{name}' is {question!r}; expected a sentence that a number answers.")
    return {name: " ".join(question.split()) for name, question in (questions or {}).items()}


def _checked_weights(weights: Mapping[str, float] | None, questions: Mapping[str, str]) -> dict[str, float]:
    """Weights by part, summing to 1. Without a weight, a part is not asked for if parts are asked one by one."""
    by_part = dict(WEIGHTS if weights is None else weights)
    for part, weight in by_part.items():
        if part not in questions:
            raise InvalidOption(
                f"The scorer has no part '{part}'.{did_you_mean(part, questions)} Known: {list(questions)}. "
                f'For your own, give questions = {{ {part} = "…" }}.'
            )
        if not weight >= 0:
            raise InvalidOption(f"The weight of '{part}' is {weight}; expected a number of at least 0.")
    for part in questions:
        if part not in by_part and part not in QUESTIONS:
            # A default would change the weights of all others.
            raise InvalidOption(f"The question '{part}' has no weight. Name all in weights = {{ {part} = 1, … }}.")
    total = sum(by_part.values())
    if total <= 0:
        raise InvalidOption("All weights are 0: give at least one part a weight.")
    return {part: weight / total for part, weight in by_part.items()}
