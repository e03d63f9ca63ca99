"""The charts of a benchmark, as SVG that follows the reader's light or dark theme.

make_chart(load_benchmark(folder), "curves")        # a whole file's text
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from humor_env.errors import InvalidOption
from humor_env.experiments.compare import stats
from humor_env.experiments.compare.benchmark_spec import WRITTEN_AGAIN, critic_table, gives_win_rate
from humor_env.experiments.compare.benchmark_tables import FIXED, System, curve_of, ratings_of, score, systems_of
from humor_env.experiments.drawing.charts import Dot, Line, Points, dot_chart, line_chart, scatter_chart, standalone

if TYPE_CHECKING:
    from humor_env.experiments.compare.benchmark import Benchmark

MOST = 8  # as many curves as an eye can tell apart


def _scores(bench: Benchmark) -> str:
    dots = []
    for system in systems_of(bench):
        mean = score(system)
        dots.append(Dot(system.label, mean.value, mean.low, mean.high))
    return dot_chart(dots, title="Held-out score", x_label="score, 95 % interval", digits=3)


def _ratings(bench: Benchmark) -> str:
    dots = [
        Dot(system.label, rating.points.value, rating.points.low, rating.points.high, f"tier {rating.tier}")
        for system, rating in ratings_of(bench)
    ]
    return dot_chart(dots, title="Bradley-Terry ratings", x_label="points", digits=0, reference=0.0)


def _learners(bench: Benchmark) -> list[System]:
    return [s for s in systems_of(bench) if s.name not in FIXED and curve_of(bench, s, "score")][:MOST]


def _line(system: System, at: stats.Array, intervals: Sequence[stats.Interval]) -> Line:
    return Line(
        system.label, at.tolist(), [f.value for f in intervals], [f.low for f in intervals], [f.high for f in intervals]
    )


def _curves(over: str, label: str) -> Callable[[Benchmark], str]:
    def draw(bench: Benchmark) -> str:
        lines = []
        for system in _learners(bench):
            curves = curve_of(bench, system, "score", over)
            longest = max(max(x) for x, _ in curves)
            at = np.linspace(min(max(x[0] for x, _ in curves), longest), longest, 12)
            intervals = stats.mean_curve(curves, at)
            lines.append(_line(system, at, intervals))
        return line_chart(
            lines,
            title=f"Held-out score on dev prompts against {label}",
            x_label=label,
            y_label="score, intervals over seeds",
        )

    return draw


def _profiles(bench: Benchmark) -> str:
    at = np.linspace(0, 1, 21)[:-1]
    systems = [s for s in systems_of(bench) if s.name != WRITTEN_AGAIN]
    chosen = [s for s in systems if s.name in FIXED or s.name.startswith("best-of")]
    chosen += [s for s in systems if s not in chosen][: MOST - len(chosen)]
    lines = []
    for system in chosen:
        intervals = stats.performance_profile(system.lines("scores"), at, resamples=300)
        lines.append(_line(system, at, intervals))
    return line_chart(
        lines, title="Share of lines above each score", x_label="held-out score", y_label="share of lines"
    )


def _gaps(bench: Benchmark, system: System) -> Points:
    """√KL and the difference of the two win rates, of all points that have both. The score of a critic that rates lines
    is no win rate: where that is all that was measured, there is nothing to subtract from."""
    [feedback] = [f for f in bench.spec.feedback if f.name == system.feedback]
    training = "feedback_score" if gives_win_rate(*critic_table(feedback).values()) else "feedback_wins"
    points = [
        p
        for p in bench.curves
        if (p["system"], p["feedback"]) == (system.name, system.feedback) and {"kl", "held_out_wins", training} <= {*p}
    ]
    xs, ys = stats.overoptimisation(*([p[key] for p in points] for key in ("kl", training, "held_out_wins")))
    return Points(system.label, xs.tolist(), ys.tolist())


def without_gaps(bench: Benchmark) -> list[str]:
    """The learners that the chart of overoptimisation leaves out, because the training judge's win rate was not
    measured during their training."""
    return [system.label for system in _learners(bench) if not _gaps(bench, system).x]


def _overoptimisation(bench: Benchmark) -> str:
    points = [gaps for system in _learners(bench) if (gaps := _gaps(bench, system)).x]
    return scatter_chart(
        points,
        title="Training judge minus held-out judge",
        x_label="√KL to the imitation",
        y_label="difference in win rates",
    )


CHARTS: Mapping[str, tuple[str, Callable[[Benchmark], str]]] = {
    "scores-chart": ("Held-out score of each system with its interval", _scores),
    "ratings-chart": ("Ratings of all systems with intervals and tiers", _ratings),
    "samples-chart": ("Score against lines written", _curves("samples", "lines written")),
    "judgements-chart": ("Score against judgements", _curves("judgements", "judgements")),
    "seconds-chart": ("Score against seconds of learning", _curves("seconds", "seconds of learning")),
    "profiles-chart": ("Share of lines above each score", _profiles),
    "overoptimisation-chart": (
        "Win rate by the training judge minus that by the held-out judge, against √KL",
        _overoptimisation,
    ),
}


def make_chart(bench: Benchmark, name: str) -> str:
    """One chart as a standalone file, with light and dark styles."""
    if name not in CHARTS:
        raise InvalidOption(f"No chart is called '{name}'. Known: {', '.join(CHARTS)}.")
    return standalone(CHARTS[name][1](bench))
