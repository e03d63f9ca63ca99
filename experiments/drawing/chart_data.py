"""The data that charts are drawn from: lines, marks, dots, bars, points, values and sample texts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Line:
    """A curve, with a band between `low` and `high` if given. Lines of one name share colour and legend; a `faint` line
    is background, such as one seed behind the mean of all. A value that is not finite leaves a gap."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float] | None = None
    high: Sequence[float] | None = None
    faint: bool = False


@dataclass(frozen=True)
class Mark:
    """A notable point on the x axis, such as where two curves diverge."""

    x: float
    label: str


@dataclass(frozen=True)
class Dot:
    """A value with its interval, on a row called `label`; several `series` may share the row."""

    label: str
    value: float | None
    low: float | None = None
    high: float | None = None
    series: str = ""


@dataclass(frozen=True)
class Bar:
    """A row of parts that add up, such as seconds by phase."""

    label: str
    parts: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Points:
    """A cloud of points, or with `joined` a curve through them; `labels` are shown on hover."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    labels: Sequence[str] = ()
    joined: bool = False


@dataclass(frozen=True)
class Values:
    """Numbers under one name whose distribution is shown."""

    name: str
    values: Sequence[float]


@dataclass(frozen=True)
class Sample:
    heading: str
    lines: Sequence[tuple[float, str]]
