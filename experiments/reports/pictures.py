"""The pictures of a report, chosen by what a run measured.

for picture in pictures(runs, headline_rows): page.add(picture.section, picture.svg, picture.caption)
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from humor_env.experiments.drawing.charts import (
    WIDTH,
    Bar,
    Dot,
    Line,
    Mark,
    Points,
    Sample,
    Values,
    arranged,
    bar_chart,
    dot_chart,
    histogram,
    line_chart,
    samples,
    scatter_chart,
)
from humor_env.experiments.reports.lines_by_stage import (
    last_stage,
    lines_of_stage,
    scores,
    spread,
    stage_names,
    thirds_of_training,
)
from humor_env.experiments.reports.report_data import RunData, SeedData, begun_from, first_lines
from humor_env.experiments.reports.report_numbers import (
    Curve,
    Headline,
    at_steps,
    headline,
    mean_curve,
    parting,
    phase_seconds,
    series,
    smooth,
    window_for,
)
from humor_env.experiments.reports.tables import percent

MOST_PARTS = 8
# The metric, the section, the picture's title, the y label, and what it shows.
_ONE_NUMBER = (
    (
        "kl/per_line",
        "trainer",
        "Distance to the imitation",
        "KL, nats a line",
        "How far the student has moved from its start.",
    ),
    ("update/clip_share", "trainer", "Clip share", "share of tokens", "Tokens whose ratio left the clip range."),
    (
        *("value/explained_variance", "trainer", "Explained variance", "share"),
        "How much of the returns the values predict: 0 is nothing, and below 0 they do harm.",
    ),
    ("update/grad_norm", "trainer", "Gradient norm", "norm before clipping", "A run may break at a jump."),
    ("update/entropy", "trainer", "Entropy", "nats a token", "Near 0 the student has stopped trying anything else."),
    ("tokens_per_second", "trainer", "Speed", "tokens a second", "For whole steps: writing, judging and learning."),
    (
        "length/tokens",
        "curves",
        "Length",
        "tokens a line",
        "A steady climb or fall may be a habit that pleases the critic.",
    ),
    (
        "failures/share",
        "judge",
        "Failed judgements",
        "share of lines",
        "They are left out of learning and of every mean.",
    ),
)
_SOME_NOT_ZERO = ("failures/share", "update/clip_share")  # drawn only if not always 0
_DIVERSITY = (
    ("text/distinct_2", "different word pairs"),
    ("text/self_overlap", "4-grams shared by lines"),
    ("text/commonest_share", "ten commonest lines"),
    ("text/commonest_frame", "the commonest frame"),
)


@dataclass(frozen=True)
class Picture:
    section: str  # "result", "scores", "curves", "trainer", "judge" or "cost"
    svg: Markup
    caption: str


def pictures(runs: Sequence[RunData], heads: Sequence[Headline]) -> list[Picture]:
    drawn = [_headline(runs, heads)] if heads else []
    for run in runs:
        drawn += [*_score(run, len(runs) > 1), *_parts(run, len(runs) > 1), *_histograms(run, len(runs) > 1)]
    for name, section, title, label, caption in _ONE_NUMBER:
        drawn += _by_run(runs, name, section, title, label, caption)
    for run in runs:
        drawn += _diversity(run, len(runs) > 1)
    for run in runs:
        drawn += [*_drift(run, len(runs) > 1), *_two_critics(run, len(runs) > 1)]
        drawn += [*_imitation(run, len(runs) > 1), *_time(run, len(runs) > 1)]
    return drawn


def result_picture(run: RunData) -> str:
    """A run in one picture: the held-out score by stage, the score while learning, and lines below them."""
    drawn = [_headline([run], headline(run)), *_score(run, False)]
    rows = [[str(p.svg) for p in drawn]]
    groups = before_and_after(run)
    if groups:
        rows.append([samples(groups, title=f"Before and after {run.learner}", width=WIDTH * 2)])
    return arranged(rows, title=f"{run.name}: {drawn[0].caption}")


def before_and_after(run: RunData, count: int = 3) -> list[Sample]:
    """The student's lines for the same held-out prompts before and after learning: not picked, but the middle of the
    best, middle and worst third of the first seed by the learner's score."""
    seed = next((s for s in run.seeds if s.trained and s.stages.get(s.trained)), None)
    if seed is None or seed.trained is None:
        return []
    before = first_lines(seed.stages.get(begun_from(seed.trained, seed.stages), ()))
    after = first_lines(seed.stages[seed.trained])
    both = [(before[i], after[i]) for i in sorted(before.keys() & after.keys())]
    chosen = [
        Sample(now.prompt, ((was.score, was.text), (now.score, now.text)))
        for was, now in both
        if was.score is not None and now.score is not None
    ]
    chosen.sort(key=lambda sample: sample.lines[-1][0])
    if len(chosen) < count:
        return []
    return spread(chosen, count)[::-1]


def _picture(section: str, svg: str, caption: str) -> Picture:
    return Picture(section, Markup(svg), caption)


def _of(run: RunData, several: bool, title: str) -> str:
    return f"{title}: {run.name}" if several else title


def _headline(runs: Sequence[RunData], heads: Sequence[Headline]) -> Picture:
    several = len(runs) > 1
    dots = [Dot(h.stage, h.score.mean, h.score.low, h.score.high, h.run if several else "") for h in heads]
    top = max((d.high or d.value or 0.0) for d in dots)
    end = next((end for end in (0.25, 0.5, 1.0) if top <= end), top)
    svg = dot_chart(dots, title="Held-out score", x_label="score with its 95 % interval", x_range=(0.0, end))
    return _picture("result", svg, "On held-out prompts; the interval is over prompts, seeds averaged.")


def _score(run: RunData, several: bool) -> list[Picture]:
    trained = [series(seed.metrics, "reward/mean") for seed in run.seeds]
    mean = mean_curve(trained)
    if not mean.steps:
        return []
    window = window_for(mean)
    thick = smooth(mean, window)
    lines = [Line("training critic", c.steps, c.values, faint=True) for c in trained if c.steps]
    lines.append(Line("training critic", thick.steps, thick.values))
    marks = drift_marks(run)
    caption = f"Thin: each seed and step. Thick: the mean over seeds, smoothed over {window} steps."
    held_out = mean_curve([series(seed.metrics, "eval/score") for seed in run.seeds])
    if held_out.steps:
        low, high = (mean_curve([series(seed.metrics, f"eval/{end}") for seed in run.seeds]) for end in ("low", "high"))
        banded = len(low.steps) == len(high.steps) == len(held_out.steps)
        band = (low.values, high.values) if banded else (None, None)
        lines.append(Line("held-out judge", held_out.steps, held_out.values, *band))
        where = parting(held_out.steps, at_steps(thick, held_out.steps), held_out.values)
        if where is None:
            caption += " The held-out judge (dev prompts) and the training critic do not diverge."
        else:
            marks = [*marks, Mark(where, "they diverge")]
            caption += f" From step {where:g} on, the training critic's score rises and the held-out judge's does not."
    else:
        ends = _held_out_ends(run)
        if len(ends) == 2:
            # Two points and no line: nothing was measured between them.
            last = thick.steps[-1]
            lines.append(Line("held-out judge", [0.0, last / 2, last], [ends[0], math.nan, ends[1]]))
            caption += (
                " The held-out judge was asked only before and after; learner.evaluate_every asks it during learning."
            )
    svg = line_chart(lines, title=_of(run, several, "Score while learning"), y_label="mean score", marks=marks)
    return [_picture("curves", svg, caption)]


def _held_out_ends(run: RunData) -> list[float]:
    """The held-out judge's mean before and after learning, from the stages' numbers."""
    by_stage = {row.stage: row.score for row in headline(run)}
    start = by_stage.get("imitation") or by_stage.get("base")
    end = next((s for s in (seed.trained for seed in run.seeds) if s), None)
    ends = [start, by_stage.get(end or "")]
    return [estimate.mean for estimate in ends if estimate is not None and math.isfinite(estimate.mean)]


def drift_marks(run: RunData) -> list[Mark]:
    """The steps at which the monitor first raised each alarm, from drift.jsonl."""
    first: dict[str, float] = {}
    for seed in run.seeds:
        for row in seed.drift:
            for mark in row.get("marks", []):
                first[mark["limit"]] = min(row["step"], first.get(mark["limit"], row["step"]))
    return [Mark(step, what[:24]) for what, step in sorted(first.items(), key=lambda kv: kv[1])]


def _parts(run: RunData, several: bool) -> list[Picture]:
    prefix = "reward/part/"
    names = list(dict.fromkeys(n for s in run.seeds for row in s.metrics[:1] for n in row if n.startswith(prefix)))
    if not names:
        return []
    lines = []
    for name in names[:MOST_PARTS]:
        mean = mean_curve([series(seed.metrics, name) for seed in run.seeds])
        mean = smooth(mean, window_for(mean))
        lines.append(Line(name.removeprefix(prefix), mean.steps, mean.values))
    note = f" The other {len(names) - MOST_PARTS} are in metrics.jsonl." if len(names) > MOST_PARTS else ""
    svg = line_chart(
        lines, title=_of(run, several, "Parts of the reward"), y_label="mean of the training critic's part"
    )
    return [_picture("curves", svg, f"What the gain is made of.{note}")]


def _by_run(runs: Sequence[RunData], name: str, section: str, title: str, label: str, caption: str) -> list[Picture]:
    lines = []
    for run in runs:
        curves = [c for seed in run.seeds if (c := series([*seed.metrics, *seed.timings], name)).steps]
        if not curves:
            continue
        what = run.name if len(runs) > 1 else title.lower()
        lines += [Line(what, c.steps, c.values, faint=True) for c in curves]
        mean = smooth(mean_curve(curves), window_for(curves[0]))
        lines.append(Line(what, mean.steps, mean.values))
    if not lines or (name in _SOME_NOT_ZERO and not any(v for line in lines for v in line.y)):
        return []
    return [_picture(section, line_chart(lines, title=title, y_label=label), caption)]


def _histograms(run: RunData, several: bool) -> list[Picture]:
    """The held-out scores before and after learning, and the training critic's early and late."""
    stages = stage_names(run)
    late = next((stage for seed in run.seeds if (stage := last_stage(seed))), "")
    compared = [stage for stage in dict.fromkeys((begun_from(late, stages), late)) if stage in stages]
    held_out = {stage: scores(lines_of_stage(run, stage)) for stage in compared}
    training = {part: scores(lines) for part, lines in thirds_of_training(run).items()}
    drawn = []
    for title, groups, caption in (
        ("Held-out scores", held_out, "All held-out lines of these stages, all seeds together."),
        (
            "Scores while learning",
            training,
            "The training critic on the lines of the first and last third of the steps.",
        ),
    ):
        if all(groups.values()) and groups:
            svg = histogram([Values(name, values) for name, values in groups.items()], title=_of(run, several, title))
            drawn.append(_picture("scores", svg, f"{caption} {_ends(groups)}"))
    return drawn


def _ends(groups: Mapping[str, Sequence[float]]) -> str:
    """The lowest and the highest score of each group, and the share of its lines that have it."""
    phrases = []
    for name, values in groups.items():
        low, high = min(values), max(values)
        if low == high:
            phrases.append(f"{name}: all at {low:.2f}")
            continue
        shares = [percent(sum(abs(v - end) < 1e-6 for v in values) / len(values)) for end in (low, high)]
        phrases.append(f"{name}: {shares[0]} at its lowest, {low:.2f}, and {shares[1]} at its highest, {high:.2f}")
    return "; ".join(phrases) + "."


def _diversity(run: RunData, several: bool) -> list[Picture]:
    lines = []
    for name, what in _DIVERSITY:
        mean = mean_curve([series(seed.metrics, name) for seed in run.seeds])
        if mean.steps:
            mean = smooth(mean, window_for(mean))
            lines.append(Line(what, mean.steps, mean.values))
    if not lines:
        return []
    svg = line_chart(lines, title=_of(run, several, "Diversity of a batch"), y_label="share", y_range=(0.0, 1.0))
    return [
        _picture(
            "curves",
            svg,
            "If different word pairs fall while the other two rise, the student writes one line for all prompts.",
        )
    ]


def _drift(run: RunData, several: bool) -> list[Picture]:
    curves = {
        name: mean_curve([series(seed.drift, f"drift/{name}") for seed in run.seeds])
        for name in ("training", "held_out")
        if any(f"drift/{name}" in check for seed in run.seeds for check in seed.drift)
    }
    if not curves:
        return []
    names = {"training": "training critic", "held_out": "held-out judge"}
    lines = [Line(names[name], curve.steps, curve.values) for name, curve in curves.items()]
    svg = line_chart(lines, title=_of(run, several, "Drift monitor"), y_label="score", marks=drift_marks(run))
    return [
        _picture(
            "curves",
            svg,
            "The same prompts at each check, by both critics, and where the monitor first raised each alarm.",
        )
    ]


def _two_critics(run: RunData, several: bool) -> list[Picture]:
    """The lines that a second critic scored afterwards (`humor-env rescore`)."""
    clouds: dict[str, tuple[list[float], list[float]]] = {}
    for seed in run.seeds:
        for lines in (seed.training[-1000:], seed.stages.get(seed.trained or "", ())):
            for line in lines:
                for other, score in line.others.items():
                    if line.score is not None:
                        xs, ys = clouds.setdefault(other, ([], []))
                        xs.append(line.score)
                        ys.append(score)
    if not clouds:
        return []
    svg = scatter_chart(
        [Points(name, xs, ys) for name, (xs, ys) in clouds.items()],
        title=_of(run, several, "Two critics on the same lines"),
        x_label="the critic of the run",
        y_label="the other critic",
        diagonal=True,
        x_range=(0.0, 1.0),
        y_range=(0.0, 1.0),
    )
    return [_picture("curves", svg, "Far below the diagonal are lines that only the run's critic likes.")]


def _imitation(run: RunData, several: bool) -> list[Picture]:
    lines = []
    for name, what in (("sft/loss", "training loss"), ("sft/dev_loss", "dev loss")):
        mean = mean_curve([series(seed.imitation, name) for seed in run.seeds])
        if mean.steps:
            mean = smooth(mean, window_for(mean) if name == "sft/loss" else 1)
            lines.append(Line(what, mean.steps, mean.values))
    if not lines:
        return []
    svg = line_chart(lines, title=_of(run, several, "Imitation of the teacher"), y_label="nats a token")
    return [_picture("curves", svg, "The warm start, before the student learned from the critic.")]


def _time(run: RunData, several: bool) -> list[Picture]:
    drawn = []
    stages = [Bar(_seed_name(seed), dict(seed.seconds)) for seed in run.seeds if seed.seconds]
    if stages:
        svg = bar_chart(stages, title=_of(run, several, "Time by stage"), unit="s")
        drawn.append(_picture("cost", svg, "Wall-clock seconds of the whole run."))
    phases = [Bar(_seed_name(seed), parts) for seed in run.seeds if (parts := phase_seconds(seed))]
    if phases:
        svg = bar_chart(phases, title=_of(run, several, "Time of learning by phase"), unit="s")
        drawn.append(_picture("cost", svg, "The critic's time counts only while the learner waited for it."))
    return drawn


def _seed_name(seed: SeedData) -> str:
    return seed.name.replace("seed-", "seed ")


__all__ = ["Curve", "Picture", "drift_marks", "pictures"]
