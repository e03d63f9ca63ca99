"""The numbers that a report computes: scores with intervals, where two judges diverge, suspected hacks, repeats.

    [row.mean for row in headline(run)]              # base, imitation, the learner, teacher
    parting([10, 20, 30], [.5, .6, .7], [.5, .6, .4])    # 20: after it, the critic's score rises and the judge's falls
    flagged(lines, gates)                            # for each line, the gates that it fails and why

Pure functions from `RunData` to small records; no HTML and no files.
"""

from __future__ import annotations

import math
import operator
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from humor_env.experiments.reports.report_data import (
    REFERENCES,
    Judged,
    Row,
    RunData,
    SeedData,
    begun_from,
    lines_by_prompt,
)
from humor_env.experiments.runs.interval import bootstrap_interval
from humor_env.experiments.runs.paired_line import paired_line
from humor_env.rewards.rules import Fault
from humor_env.shared.text_stats import distinct_n, ngrams
from humor_env.types import Joke, Prompt

FAR = 0.3  # a critic's score this far above another's is flagged
_MOST_SCANNED = 20_000


@dataclass(frozen=True)
class Estimate:
    """A mean with its 95 % interval; None if there is too little data for one."""

    mean: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Headline:
    """One stage of a run over all its seeds."""

    run: str
    stage: str
    score: Estimate
    by_seed: Sequence[float]
    change: Estimate | None  # from where it started (the imitation, or else the base), prompt by prompt
    matches_teacher: Estimate | None  # share of lines that score at least as high as the teacher's for that prompt
    distinct_2: float | None
    length_ratio: float | None
    failures: int
    count: int


@dataclass(frozen=True)
class Column:
    """A column of the table of stages: its heading, the text of a row's cell, and small print after it."""

    heading: str
    cell: Callable[[Headline], str]
    small: Callable[[Headline], str] = lambda row: ""


def shown(number: float | None, form: str) -> str:
    return "–" if number is None or not math.isfinite(number) else format(number, form)


def _with_interval(estimate: Estimate | None, form: str) -> str:
    if estimate is None:
        return shown(None, form)
    if estimate.low is None or estimate.high is None or not math.isfinite(estimate.mean):
        return shown(estimate.mean, form)
    return f"{estimate.mean:{form}} [{estimate.low:{form}}, {estimate.high:{form}}]"


# The columns of the page's table of stages.
COLUMNS = (
    Column(
        "score",
        lambda row: _with_interval(row.score, ".3f"),
        lambda row: "by seed " + ", ".join(f"{s:.3f}" for s in row.by_seed) if len(row.by_seed) > 1 else "",
    ),
    Column("change", lambda row: _with_interval(row.change, "+.3f")),
    Column("at least the teacher’s", lambda row: _with_interval(row.matches_teacher, ".0%")),
    Column("distinct-2", lambda row: shown(row.distinct_2, ".2f")),
    Column("length", lambda row: f"{shown(row.length_ratio, '.2f')} × prompt"),
    Column("lines", lambda row: f"{row.count}, {row.failures} not judged" if row.failures else str(row.count)),
)


def headline(run: RunData) -> list[Headline]:
    names = dict.fromkeys(n for seed in run.seeds for n in [*seed.stages, *seed.numbers])
    return [_headline(run, name) for name in names]


def _headline(run: RunData, stage: str) -> Headline:
    tables = [by_prompt(seed.stages[stage]) for seed in run.seeds if stage in seed.stages]
    if not tables:  # only the numbers were saved
        by_seed = [seed.numbers[stage] for seed in run.seeds if stage in seed.numbers]
        scores = [s for n in by_seed if (s := n.get("score")) is not None]
        low, high = (by_seed[0].get("low"), by_seed[0].get("high")) if len(by_seed) == 1 else (None, None)
        values = {key: [v for n in by_seed if (v := n.get(key)) is not None] for key in ("distinct_2", "length_ratio")}
        return Headline(
            run=run.name,
            stage=stage,
            score=Estimate(_mean(scores), low, high),
            by_seed=scores,
            change=None,
            matches_teacher=None,
            distinct_2=_mean(values["distinct_2"]) if values["distinct_2"] else None,
            length_ratio=_mean(values["length_ratio"]) if values["length_ratio"] else None,
            failures=int(sum(n.get("failures") or 0 for n in by_seed)),
            count=int(sum(n.get("count") or 0 for n in by_seed)),
        )
    stages = {name for seed in run.seeds for name in seed.stages}
    start = begun_from(stage, stages)
    change = None
    if stage not in REFERENCES or stage == "imitation":
        change = paired(run, stage, start)
    at_least = None if stage == "teacher" else paired(run, stage, "teacher", lambda now, then: float(now >= then), 0.0)
    lines = [seed.stages[stage] for seed in run.seeds if stage in seed.stages]
    return Headline(
        run=run.name,
        stage=stage,
        score=interval(list(over_seeds(tables).values()), seed=_seed_of(run)),
        by_seed=[_mean(list(table.values())) for table in tables],
        change=change,
        matches_teacher=at_least,
        distinct_2=_mean([distinct_n([line.text for line in seed_lines], 2) for seed_lines in lines]),
        length_ratio=_mean(
            [
                sum(len(r.text) for r in seed_lines) / max(1, sum(len(r.prompt) for r in seed_lines))
                for seed_lines in lines
            ]
        ),
        failures=sum(line.score is None for seed_lines in lines for line in seed_lines),
        count=sum(map(len, lines)),
    )


def _seed_of(run: RunData) -> int:
    """The seed of a run with a single seed, to get the same interval as this seed's own files; otherwise 0."""
    number = run.seeds[0].name.removeprefix("seed-")
    return int(number) if len(run.seeds) == 1 and number.isdecimal() else 0


Value = Callable[[Judged], float | None]


def score_of(line: Judged) -> float | None:
    return line.score


def part_of(line: Judged, name: str) -> float | None:
    return line.parts.get(name)


def by_prompt(lines: Sequence[Judged], value: Value = score_of) -> dict[str, float]:
    """The mean score, or another value, by prompt; lines without a score are left out."""
    values_of: dict[str, list[float]] = defaultdict(list)
    for line in lines:
        number = value(line)
        if number is not None:
            values_of[line.prompt_id].append(number)
    return {prompt: _mean(values) for prompt, values in values_of.items()}


def over_seeds(tables: Iterable[Mapping[str, float]]) -> dict[str, float]:
    """Each prompt's mean over the seeds: prompts are resampled, because a new test would have other prompts."""
    scores_of: dict[str, list[float]] = defaultdict(list)
    for table in tables:
        for prompt, score in table.items():
            scores_of[prompt].append(score)
    return {prompt: _mean(scores) for prompt, scores in scores_of.items()}


def paired(
    run: RunData,
    stage: str,
    other: str,
    compare: Callable[[float, float], float] = operator.sub,
    lowest: float = -1.0,
    value: Value = score_of,
) -> Estimate | None:
    """The mean of the comparison within each seed; None if nothing can be paired. Each line of a stage is paired with
    the other's for the same prompt, the first with the first; the lines of a prompt are averaged."""
    measured = [seed.stages for seed in run.seeds if stage in seed.stages]
    if not measured or any(other not in stages for stages in measured):
        return None
    tables: list[dict[str, float]] = []
    for stages in measured:
        others = lines_by_prompt(stages[other])
        table: dict[str, float] = {}
        for prompt, prompt_lines in lines_by_prompt(stages[stage]).items():
            pairs = [(line, paired_line(others.get(prompt, ()), place)) for place, line in enumerate(prompt_lines)]
            values = [(value(line), value(then)) for line, then in pairs if then is not None]
            compared = [compare(a, b) for a, b in values if a is not None and b is not None]
            if compared:
                table[prompt] = _mean(compared)
        tables.append(table)
    means = list(over_seeds(tables).values())
    return interval(means, lowest) if means else None


def interval(values: Sequence[float], lowest: float = 0.0, seed: int = 0) -> Estimate:
    """Mean and 95 % interval over prompts, for one seed's scores the same as in its results.json; no interval for few
    prompts. `lowest` is the least possible value: -1 for differences."""
    low, high = bootstrap_interval(values, seed=seed, lowest=lowest)
    return Estimate(_mean(values)) if math.isnan(low) else Estimate(_mean(values), low, high)


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values) if values else math.nan


@dataclass(frozen=True)
class Curve:
    steps: Sequence[float]
    values: Sequence[float]


def series(rows: Sequence[Row], name: str) -> Curve:
    points = [(row["step"], row[name]) for row in rows if name in row and "step" in row]
    return Curve([s for s, _ in points], [v for _, v in points])


def mean_curve(curves: Sequence[Curve]) -> Curve:
    """The mean over seeds at the steps that all of them have; a single curve is returned as it is."""
    curves = [c for c in curves if c.steps]
    if len(curves) <= 1:
        return curves[0] if curves else Curve([], [])
    tables = [dict(zip(c.steps, c.values, strict=True)) for c in curves]
    steps = sorted(set.intersection(*(set(t) for t in tables)))
    return Curve(steps, [_mean([t[s] for t in tables]) for s in steps])


def smooth(curve: Curve, window: int) -> Curve:
    """A centred running mean, over fewer points at the ends."""
    if window <= 1:
        return curve
    half = window // 2
    values = [_mean(curve.values[max(0, i - half) : i + half + 1]) for i in range(len(curve.values))]
    return Curve(curve.steps, values)


def window_for(curve: Curve) -> int:
    return max(1, 2 * (len(curve.steps) // 40) + 1)


def parting(
    steps: Sequence[float], trained: Sequence[float], held_out: Sequence[float], least: float = 0.03
) -> float | None:
    """The step from which the training critic's score keeps rising while the held-out judge's falls; None if there is
    none. It is the held-out judge's best step, if afterwards (mean of up to three last measurements) the judge has lost
    more than `least` and the critic has gained more than that."""
    if len(steps) < 3:
        return None
    best = max(range(len(steps)), key=lambda i: held_out[i])
    after = range(max(best + 1, len(steps) - 3), len(steps))
    if not after:
        return None
    lost = held_out[best] - _mean([held_out[i] for i in after])
    gained = _mean([trained[i] for i in after]) - trained[best]
    return steps[best] if lost > least and gained > least else None


def at_steps(curve: Curve, steps: Sequence[float]) -> list[float]:
    """The curve's value at each step, or at the nearest one before it."""
    if not curve.steps:
        return [math.nan] * len(steps)
    index = np.clip(np.searchsorted(curve.steps, steps, side="right") - 1, 0, len(curve.steps) - 1)
    return [curve.values[i] for i in index]


@dataclass(frozen=True)
class ScannedLine:
    """A line with its origin; `flags` are the gates it fails, or that critics disagree on it, and `why` explains."""

    run: str
    seed: str
    stage: str
    line: Judged
    flags: tuple[str, ...]
    why: str


Gates = Callable[[Joke], Mapping[str, Fault]]


def flagged(lines: Sequence[Judged], gates: Gates) -> list[tuple[tuple[str, ...], str]]:
    """For each line, the gates it clearly fails (below a half), and why."""
    jokes = [Joke(Prompt(r.prompt_id, r.prompt), r.text, "student", r.stop_reason) for r in lines]
    flagged_lines = []
    for line, joke in zip(lines, jokes, strict=True):
        faults = {gate: fault for gate, fault in gates(joke).items() if fault.value < 0.5}
        flags, why = tuple(faults), [f"{gate}: {fault.why}" for gate, fault in faults.items()]
        best = max(line.others.items(), key=lambda kv: abs(kv[1] - (line.score or 0)), default=None)
        if best is not None and line.score is not None and line.score - best[1] >= FAR:
            flags += ("critics_disagree",)
            why.append(f"{line.critic or 'its critic'} says {line.score:.2f}, {best[0]} says {best[1]:.2f}")
        flagged_lines.append((flags, "; ".join(why)))
    return flagged_lines


def disagreement(line: Judged) -> float | None:
    """The range of the scores that this line's critics gave; None if there was only one."""
    scores = [s for s in (line.score, *line.others.values()) if s is not None]
    return max(scores) - min(scores) if len(scores) > 1 else None


def recent(lines: Sequence[Judged]) -> Sequence[Judged]:
    """The lines written while learning that are scanned: only the latest if there are very many."""
    return lines[-_MOST_SCANNED:]


@dataclass(frozen=True)
class Repeat:
    """A sequence of words that is in many lines but in none of their prompts."""

    words: str
    share: float
    teacher_share: float


def repeats(seeds: Sequence[SeedData], stage: str, n: int = 4, most: int = 5, least: float = 0.02) -> list[Repeat]:
    """The commonest sequences of `n` words of a stage: a joke that is repeated. Overlapping ones count once."""
    shares, teacher = _gram_shares(seeds, stage, n), _gram_shares(seeds, "teacher", n)
    repeated: list[tuple[tuple[str, ...], float]] = []
    for gram, share in sorted(shares.items(), key=lambda kv: (-kv[1], kv[0])):
        if share < least or len(repeated) >= most:
            break
        if not any(len(set(gram) & set(other)) >= n - 1 for other, _ in repeated):
            repeated.append((gram, share))
    return [Repeat(" ".join(gram), share, teacher.get(gram, 0.0)) for gram, share in repeated]


def _gram_shares(seeds: Sequence[SeedData], stage: str, n: int) -> dict[tuple[str, ...], float]:
    counts: Counter[tuple[str, ...]] = Counter()
    total = 0
    for seed in seeds:
        for line in seed.stages.get(stage, ()):
            total += 1
            counts.update(set(ngrams(line.text, n)) - set(ngrams(line.prompt, n)))
    return {gram: count / total for gram, count in counts.items() if count > 1}


def phase_seconds(seed: SeedData) -> dict[str, float]:
    """The learner's time by phase. The critic's own time counts only while the learner waited for it."""
    totals: dict[str, float] = defaultdict(float)
    for row in seed.timings:
        for name, value in row.items():
            if name.startswith("seconds/"):
                totals[name.removeprefix("seconds/")] += value
    whole = totals.pop("step", 0.0)
    for name in ("judge", "spent"):  # hidden behind other work; a running total
        totals.pop(name, None)
    by_phase = {_PHASES.get(name, name): value for name, value in totals.items()}
    other = whole - sum(by_phase.values())
    return by_phase | ({"other": other} if other > 0.005 * whole else {})


_PHASES = {"generate": "writing", "judge_wait": "waiting for the critic", "reference": "reference", "update": "update"}


def spent(run: RunData) -> dict[str, float]:
    """Calls and dollars of the training critic over all seeds, if they were logged."""
    totals: dict[str, float] = {}
    for name in ("critic/calls", "critic/cost"):
        values = [row[name] for seed in run.seeds for row in seed.metrics if name in row]
        if values:
            totals[name.removeprefix("critic/")] = math.fsum(values)
    return totals
