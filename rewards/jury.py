"""Several pair judges as one: their mean, and their disagreement.

    jury = Jury(["multiple-choice", {"judge": "my_package:DryJudge", "weight": 2, "options": {"taste": 2}}])
    [verdict] = jury([(first, second)])
    verdict.probability, verdict.disagreement      # 0.6 and 0.3: they lean to the first, but disagree

A jury averages out errors that its judges make *independently*. Models that learned from the same text share their
taste in jokes, and a jury does not remove shared errors: choose judges of different families. Low disagreement proves
nothing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from humor_env.episodes.closing import close_all
from humor_env.episodes.verdicts import checked_verdicts
from humor_env.errors import InvalidOption, did_you_mean
from humor_env.registry import judges as registered
from humor_env.shared.plain_numbers import real_number
from humor_env.types import NO_USAGE, Joke, Judge, Verdict, critic_name

_KEYS = ("judge", "weight", "options")


@dataclass(frozen=True, slots=True)
class JuryVerdict(Verdict):
    """A verdict with each judge's probability (None if it failed) and `disagreement`: the weighted standard deviation
    of the probabilities, from 0 (unanimous) to 0.5 (two certain halves)."""

    votes: tuple[float | None, ...] = ()
    disagreement: float = 0.0


class Jury:
    """`judges` are names, live judges, or tables with `judge`, `weight` and `options`. A verdict needs answers
    from judges with at least the share `quorum` of the total weight."""

    name = "jury"

    def __init__(
        self,
        judges: Sequence[str | Judge | Mapping[str, Any]] = ("pocket", "pocket-crowd"),
        quorum: float = 0.5,
    ) -> None:
        if isinstance(judges, (str, Mapping)) or not judges:
            raise InvalidOption(f"judges must be a list of at least one judge, found {judges!r}.")
        if not 0 < quorum <= 1:
            raise InvalidOption(
                f"quorum is the share of the jury that must answer; it must be above 0 and at most 1, found {quorum}."
            )
        seats = [_seat(entry) for entry in judges]
        self.judges = [judge for judge, _ in seats]
        self.weights = [weight for _, weight in seats]
        self.quorum = quorum

    def __call__(self, pairs: Sequence[tuple[Joke, Joke]]) -> list[JuryVerdict]:
        if not pairs:
            return []
        columns = [checked_verdicts(judge, pairs) for judge in self.judges]
        return [self._agree(row) for row in zip(*columns, strict=True)]

    @property
    def inner_judges(self) -> list[Judge]:
        return self.judges

    def close(self) -> None:
        close_all(self.judges)

    def _agree(self, verdicts: Sequence[Verdict]) -> JuryVerdict:
        usage = sum((v.usage for v in verdicts), NO_USAGE)
        votes = tuple(v.probability for v in verdicts)
        answered = [(w, p, v) for w, p, v in zip(self.weights, votes, verdicts, strict=True) if p is not None]
        weight = math.fsum(w for w, _, _ in answered)
        if not answered or weight < self.quorum * math.fsum(self.weights) - 1e-12:
            errors = [
                f"{critic_name(judge)}: {v.error}" for judge, v in zip(self.judges, verdicts, strict=True) if v.failed
            ]
            return JuryVerdict(self.name, None, error="; ".join(errors), usage=usage, votes=votes)
        mean = min(1.0, max(0.0, math.fsum(w * p for w, p, _ in answered) / weight))
        spread = math.sqrt(math.fsum(w * (p - mean) ** 2 for w, p, _ in answered) / weight)
        flips = [v.flipped for _, _, v in answered if v.flipped is not None]
        first = sum(p > 0.5 for _, p, _ in answered)
        return JuryVerdict(
            self.name,
            mean,
            tie=min(1.0, math.fsum(w * v.tie for w, _, v in answered) / weight),
            reason=f"{first} of {len(answered)} judges prefer the first; disagreement {spread:.2f}",
            flipped=2 * sum(flips) >= len(flips) if flips else None,
            usage=usage,
            votes=votes,
            disagreement=spread,
        )


def _seat(entry: str | Judge | Mapping[str, Any]) -> tuple[Judge, float]:
    if not isinstance(entry, Mapping):
        return cast(Judge, registered.make(entry)), 1.0
    for key in entry:
        if key not in _KEYS:
            raise InvalidOption(
                f"A judge of a jury has no '{key}'.{did_you_mean(key, _KEYS)} Known: {', '.join(_KEYS)}."
            )
    if "judge" not in entry:
        raise InvalidOption(f"Each table of a jury must name its judge, found {dict(entry)!r}.")
    weight = entry.get("weight", 1.0)
    number = real_number(weight)
    if number is None or not 0 < number < float("inf"):
        raise InvalidOption(f"A weight in a jury must be a number above 0, found {weight!r}.")
    return cast(Judge, registered.make(entry["judge"], **dict(entry.get("options") or {}))), number
