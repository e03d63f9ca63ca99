"""The basic types: prompts, jokes, judgements, pairs and their verdicts.

    joke = Joke(Prompt("p1", "The meeting was slow."), "The meeting was so slow that glaciers overtook it.")
    [judgement] = critic([joke])
    judgement.score          # 0.93, or None if the critic could not judge

Scores are in [0, 1]; higher is funnier. A critic that cannot judge returns a judgement *without* a score:
a failure is never a zero, so that it can be masked from learning and counted.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import numpy as np

from humor_env.errors import ScoreError

SPLITS = ("train", "dev", "test", "ood")


@dataclass(frozen=True, slots=True)
class Prompt:
    """A student's task: a literal sentence to paraphrase, a topic, a headline, words that must appear.

    `text` is what the student reads. `extra` holds plain data that critics may need (required words, the subject
    and complaint of a pocket prompt) and that the student never sees.
    """

    id: str
    text: str
    task: str = "paraphrase"
    split: str = "train"
    extra: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Joke:
    """One attempt at a prompt. Siblings (other attempts at the same prompt) share `prompt.id`.

    `stop_reason` says how the text ended: "end" (the author ended it), "length" (cut off), or None (unknown).
    """

    prompt: Prompt
    text: str
    author: str = "student"
    stop_reason: str | None = None


@dataclass(frozen=True, slots=True)
class Usage:
    """Calls, tokens and cost. `cost` is in US dollars; None means *unknown*, which is not the same as free."""

    calls: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    cached_tokens: int = 0
    cost: float | None = 0.0

    def __add__(self, other: Usage) -> Usage:
        cost = None if self.cost is None or other.cost is None else self.cost + other.cost
        return Usage(
            self.calls + other.calls,
            self.input_tokens + other.input_tokens,
            self.output_tokens + other.output_tokens,
            self.cached_tokens + other.cached_tokens,
            cost,
        )


NO_USAGE = Usage()


def _check_unit_interval(what: str, value: float | None) -> None:
    try:
        sound = value is None or (math.isfinite(value) and 0.0 <= value <= 1.0)
    except (TypeError, ValueError, OverflowError):  # a text, several numbers, one of 400 digits
        sound = False
    if not sound:
        raise ScoreError(f"{what} must be in [0, 1], found {value!r}")


def _make_plain(holder: object, *names: str) -> None:
    """Convert numpy numbers to Python's: numpy bools do not support True - True, and JSON supports none of them."""
    for name in names:
        value = getattr(holder, name)
        if type(value) is not float and isinstance(value, (int, np.integer, np.floating)):
            object.__setattr__(holder, name, float(value))


@dataclass(frozen=True, slots=True)
class Judgement:
    """A critic's judgement of one joke: a score in [0, 1], or an error and no score."""

    critic: str
    score: float | None
    parts: Mapping[str, float] = field(default_factory=dict)
    reason: str = ""
    error: str | None = None
    usage: Usage = NO_USAGE

    def __post_init__(self) -> None:
        _check_unit_interval("a judgement's score", self.score)
        _make_plain(self, "score")
        if (self.score is None) != (self.error is not None):
            raise ScoreError(
                f"a judgement must have either a score or an error, found score={self.score!r} and error={self.error!r}"
            )

    @property
    def failed(self) -> bool:
        return self.score is None


@dataclass(frozen=True, slots=True)
class Verdict:
    """A judge's verdict on a pair (A, B), averaged over both orders of presentation.

    `probability` is P(A wins) + P(tie) / 2, so 0.5 means "as good as each other". `flipped` says whether the raw
    answer changed with the order; None if only one order was asked.
    """

    judge: str
    probability: float | None
    tie: float = 0.0
    reason: str = ""
    flipped: bool | None = None
    error: str | None = None
    usage: Usage = NO_USAGE

    def __post_init__(self) -> None:
        _check_unit_interval("a verdict's probability", self.probability)
        _check_unit_interval("a verdict's tie share", self.tie)
        _make_plain(self, "probability", "tie")
        if (self.probability is None) != (self.error is not None):
            raise ScoreError(
                "a verdict must have either a probability or an error, "
                f"found probability={self.probability!r} and error={self.error!r}"
            )

    @property
    def failed(self) -> bool:
        return self.probability is None


@dataclass(frozen=True, slots=True)
class Demonstration:
    """A line that a teacher wrote for a prompt."""

    prompt: Prompt
    text: str
    source: str
    licence: str = "unknown"
    score: float | None = None

    def __post_init__(self) -> None:
        _make_plain(self, "score")


@dataclass(frozen=True, slots=True)
class Preference:
    """The better of two lines for one prompt. `probability` is the source's confidence that `chosen` wins.

    `chosen_ended` and `rejected_ended` are false for a line that was cut off: its author never wrote its end, so
    learners do not learn it either.
    """

    prompt: Prompt
    chosen: str
    rejected: str
    probability: float
    source: str
    chosen_ended: bool = True
    rejected_ended: bool = True

    def __post_init__(self) -> None:
        _check_unit_interval("a preference's probability", self.probability)
        _make_plain(self, "probability")


@runtime_checkable
class Critic(Protocol):
    """Scores single jokes: a list in, a list of the same length and order out. No base class is needed."""

    def __call__(self, jokes: Sequence[Joke], /) -> list[Judgement]: ...


@runtime_checkable
class Judge(Protocol):
    """Compares pairs, internally in both orders: the probability that the first of each pair is better."""

    def __call__(self, pairs: Sequence[tuple[Joke, Joke]], /) -> list[Verdict]: ...


def critic_name(critic: object) -> str:
    """The name of a critic or judge in logs and judgements: its `name`, else its name in the code."""
    name = getattr(critic, "name", None)
    if isinstance(name, str) and name:
        return name
    return getattr(critic, "__name__", type(critic).__name__)
