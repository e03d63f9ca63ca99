"""The result of an audit, as frozen dataclasses and as plain data for a file.

    report.pairs.accuracy, report.pairs.interval, report.beats_coin
    AuditReport.load(report.data())          # and back

A report holds no text of the set unless examples were requested; those are not in `data()` or on any page.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

from humor_env.rewards.audits.audit_stats import Bin, Interval

Kind = Literal["critic", "judge"]
# Between chance and a critic worth learning from.
LEAST_CONTEXT = 0.6


@dataclass(frozen=True, slots=True)
class GapRow:
    """Accuracy on the pairs whose ratings differ by `low` to `high` grades (the last bin has no upper end)."""

    low: float
    high: float | None
    count: int
    accuracy: float
    interval: Interval | None


@dataclass(frozen=True, slots=True)
class PairScores:
    """Results of a critic or judge on pairs. Shares are of the `count` decided pairs that it judged.

    `forward` and `back` are the accuracies in each order alone (None if the judge gives only the average); `first` is
    how often it prefers the line shown first. `length_errors`: it prefers the longer line and people the shorter.
    `controlled`: its accuracy if people preferred the longer line in half of the pairs. `one_person`: how often it
    agrees with a single rater. `calibration_error` is only for judges, whose probabilities are claims.
    """

    count: int
    failed: int
    accuracy: float | None = None
    interval: Interval | None = None
    by_gap: tuple[GapRow, ...] = ()
    forward: float | None = None
    back: float | None = None
    first: float | None = None
    flips: float | None = None
    length_errors: float | None = None
    controlled: float | None = None
    one_person: float | None = None
    calibration: tuple[Bin, ...] = ()
    calibration_error: float | None = None


@dataclass(frozen=True, slots=True)
class TextScores:
    """Rank correlations of a critic's scores of single texts with people's; `partial` controls for length.
    `offence` is the correlation with rated offensiveness; `people_offence` is that of people's own grades."""

    count: int
    failed: int
    spearman: float | None = None
    interval: Interval | None = None
    partial: float | None = None
    offence: float | None = None
    people_offence: float | None = None
    by_kind: Mapping[str, float | None] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ContextRow:
    """Context of the lines with grades from `low` to `high` (the last bin has no upper end)."""

    low: float
    high: float | None
    count: int
    share: float
    interval: Interval | None
    lift: float


@dataclass(frozen=True, slots=True)
class ContextScores:
    """Whether a critic reads the prompt: each of `count` lines compared with itself under `draws` other prompts.

    `share` is how often it scores higher with its own prompt (a draw counts half), `lift` its mean score there minus
    that with the others. `failed` comparisons were not judged.
    """

    count: int
    failed: int
    draws: int
    share: float | None = None
    interval: Interval | None = None
    lift: float | None = None
    lift_interval: Interval | None = None
    by_grade: tuple[ContextRow, ...] = ()

    @property
    def held(self) -> bool | None:
        """Whether it reads the prompt: its own wins in six of ten cases, and significantly more than half. None if
        nothing could be judged."""
        if self.share is None:
            return None
        return self.share >= LEAST_CONTEXT and (self.interval is None or self.interval[0] > 0.5)

    @classmethod
    def load(cls, data: Mapping[str, Any] | None) -> ContextScores | None:
        """From plain data, as made by `dataclasses.asdict`."""
        if data is None:
            return None
        rows = tuple(ContextRow(**_tuples(row)) for row in data["by_grade"])
        return cls(**{**_tuples(data), "by_grade": rows})


@dataclass(frozen=True, slots=True)
class Reference:
    """A row to compare the critic with: a simple rule, a person, the ceiling, or a published figure."""

    name: str
    accuracy: float | None = None
    interval: Interval | None = None
    spearman: float | None = None
    source: str = ""


@dataclass(frozen=True, slots=True)
class Example:
    """A pair on which the critic was confident and people disagreed. Contains text of the set."""

    asked: str
    preferred: str
    named: str
    margin: float


@dataclass(frozen=True)
class AuditReport:
    """One critic on one set. `examples` are empty unless requested, and appear on no page."""

    critic: str
    kind: Kind
    set: str
    options: Mapping[str, Any]
    pairs: PairScores | None
    texts: TextScores | None
    references: tuple[Reference, ...]
    alpha: float | None
    notes: tuple[str, ...] = ()
    examples: tuple[Example, ...] = field(default=(), repr=False)
    context: ContextScores | None = None
    rated_by: str = "people"

    @property
    def beats_coin(self) -> bool | None:
        """Whether the whole interval is above chance; None if there is too little data."""
        if self.pairs is not None and self.pairs.interval is not None:
            return self.pairs.interval[0] > 0.5
        if self.texts is not None and self.texts.interval is not None:
            return self.texts.interval[0] > 0
        return None

    def summary(self) -> str:
        """One line."""
        from humor_env.rewards.audits.page import percent, rho

        points = []
        if self.pairs is not None and self.pairs.accuracy is not None:
            points.append(f"{percent(self.pairs.accuracy, self.pairs.interval)} of {self.pairs.count} pairs")
        if self.texts is not None and self.texts.spearman is not None:
            points.append(f"rank correlation {rho(self.texts.spearman, self.texts.interval)}, {self.texts.count} texts")
        if points:
            verdicts = {
                True: "better than chance",
                False: "not significantly better than chance",
                None: "too few to tell whether it beats chance",
            }
            points[-1] += f" ({verdicts[self.beats_coin]})"
        if self.context is not None and self.context.share is not None:
            points.append(f"prefers the line's own prompt in {percent(self.context.share, self.context.interval)}")
        return f"{self.critic} on {self.set}: {'; '.join(points) or 'nothing could be judged'}"

    def data(self) -> dict[str, Any]:
        """All figures as plain data, without text of the set."""
        figures = asdict(replace(self, options={}, examples=()))
        del figures["examples"]
        return figures | {"options": dict(self.options), "beats_coin": self.beats_coin}

    def markdown(self) -> str:
        from humor_env.rewards.audits.page import audit_markdown

        return audit_markdown(self)

    @classmethod
    def load(cls, data: Mapping[str, Any]) -> AuditReport:
        """A report from its data."""
        fields = {k: v for k, v in data.items() if k != "beats_coin"}
        if fields.get("pairs") is not None:
            pairs = dict(fields["pairs"])
            pairs["by_gap"] = tuple(GapRow(**_tuples(row)) for row in pairs["by_gap"])
            pairs["calibration"] = tuple(Bin(**row) for row in pairs["calibration"])
            fields["pairs"] = PairScores(**_tuples(pairs))
        if fields.get("texts") is not None:
            fields["texts"] = TextScores(**_tuples(fields["texts"]))
        fields["context"] = ContextScores.load(fields.get("context"))
        fields["references"] = tuple(Reference(**_tuples(row)) for row in fields["references"])
        fields["notes"] = tuple(fields["notes"])
        return cls(**fields)


def _tuples(row: Mapping[str, Any]) -> dict[str, Any]:
    """Restore tuples, which JSON stores as lists."""
    return {key: tuple(value) if isinstance(value, list) else value for key, value in row.items()}
