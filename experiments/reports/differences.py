"""The difference between two runs with its interval, and everything in which the two differ.

    difference(run, other).rows      # held-out score of run minus that of other, on the prompts that both have
    what_differs(run, other).rows    # ("learner.kl_weight", "0.05", "0.2"), ("commit", "abc", "def")

A difference is a number only if both were measured by the same critic on the same prompts; otherwise a sentence says
why there is none.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from humor_env.experiments.reports.lines_by_stage import (
    SamePrompt,
    Version,
    last_stage,
    spread,
    with_interval,
)
from humor_env.experiments.reports.report_data import Judged, RunData, first_lines
from humor_env.experiments.reports.report_numbers import (
    Estimate,
    Value,
    by_prompt,
    interval,
    over_seeds,
    part_of,
    score_of,
)
from humor_env.experiments.reports.tables import Table, TableRow
from humor_env.experiments.specs.toml_text import flat
from humor_env.shared.text_stats import distinct_n

LONGEST = 120  # characters of a setting that are shown
NOT_SET = "not set"


@dataclass(frozen=True)
class Comparison:
    """One run minus another: the table of differences, the same prompts by both, and the differences in their setup; or
    why they cannot be subtracted."""

    run: str
    other: str
    differences: Table
    what_differs: Table
    only_in_one: Table
    prompts: Sequence[SamePrompt] = ()
    why_none: str = ""


@dataclass(frozen=True)
class Side:
    """The measurements of one of the two runs at one stage, by seed."""

    run: str
    stage: str
    seeds: Mapping[str, Sequence[Judged]]

    @property
    def lines(self) -> list[Judged]:
        return [line for lines in self.seeds.values() for line in lines]

    @property
    def prompts(self) -> set[str]:
        return {line.prompt_id for line in self.lines}

    @property
    def critics(self) -> str:
        return ", ".join(sorted({line.critic or "an unnamed critic" for line in self.lines}))


def side(run: RunData, stage: str = "") -> Side:
    """The lines of a stage, by default the last one of learning."""
    stage = stage or next((last for seed in run.seeds if seed.stages.get(last := last_stage(seed))), "")
    return Side(run.name, stage, {seed.name: seed.stages[stage] for seed in run.seeds if seed.stages.get(stage)})


def compare(run: RunData, other: RunData) -> Comparison:
    mine, theirs = side(run), side(other)
    why = _not_comparable(mine, theirs)
    differs, one_only = what_differs(run, other), only_in_one(run, other)
    if why:
        return Comparison(run.name, other.name, Table("Held-out lines", (), ()), differs, one_only, why_none=why)
    return Comparison(run.name, other.name, difference(run, other), differs, one_only, prompts_of_both(mine, theirs))


def _not_comparable(mine: Side, theirs: Side) -> str:
    """Why the scores cannot be subtracted, in a sentence; "" if they can."""
    for each in (mine, theirs):
        if not each.seeds:
            return f"No stage of {each.run} was measured on held-out prompts, so there is no difference to give."
    if mine.critics != theirs.critics:
        return (
            f"{mine.run} was measured by {mine.critics} and {theirs.run} by {theirs.critics}: scores of different "
            "critics cannot be subtracted. Repeat one of them with the other's [[eval.critic]]."
        )
    if not mine.prompts & theirs.prompts:
        return f"{mine.run} and {theirs.run} have no held-out prompt in common, so there is no difference to give."
    return ""


def difference(run: RunData, other: RunData) -> Table:
    """The two students' scores and parts, and the stages before, `run` minus `other`, prompt by prompt."""
    mine, theirs = side(run), side(other)
    rows = [_row("score", mine, theirs)]
    parts = set.intersection(*({name for line in each.lines for name in line.parts} for each in (mine, theirs)))
    rows += [_row(name.replace("_", " "), mine, theirs, partial(part_of, name=name)) for name in sorted(parts)]
    earlier = [(side(run, stage), side(other, stage)) for stage in ("imitation", "base")]
    rows += [
        _row(f"score of the {a.stage}", a, b)
        for a, b in earlier
        if a.seeds and b.seeds and a.stage not in (mine.stage, theirs.stage)
    ]
    for what, measure, form in (("distinct-2", _distinct, ".3f"), ("characters a line", _characters, ".1f")):
        values = [measure(each.lines) for each in (mine, theirs)]
        cells = [what, *(format(value, form) for value in values), format(values[0] - values[1], f"+{form}"), "–"]
        rows.append(TableRow(cells))
    resampled = (
        "over prompts and the seeds that both have"
        if _same_seeds(mine, theirs)
        else "over prompts alone: they do not include the variation between seeds"
    )
    caption = (
        f"{mine.run} ({mine.stage}) minus {theirs.run} ({theirs.stage}), prompt by prompt. Intervals are 95 %, "
        f"{resampled}. A row is marked if its interval excludes 0."
    )
    return Table("Held-out lines", ("number", mine.run, theirs.run, "difference", "prompts"), rows, caption)


def prompts_of_both(mine: Side, theirs: Side, count: int = 6) -> list[SamePrompt]:
    """The two students' lines for the same prompts, evenly spread from the largest gain to the largest loss."""
    lines = [first_lines(next(iter(each.seeds.values()))) for each in (mine, theirs)]
    gains = {
        prompt: a - b
        for prompt in lines[0].keys() & lines[1].keys()
        if (a := lines[0][prompt].score) is not None and (b := lines[1][prompt].score) is not None
    }
    ranked = sorted(gains, key=lambda prompt: (-gains[prompt], prompt))
    names = [each.run for each in (mine, theirs)]
    return [
        SamePrompt(
            lines[0][prompt].prompt,
            [Version(name, of[prompt].score, of[prompt].text) for name, of in zip(names, lines, strict=True)],
        )
        for prompt in spread(ranked, count)
    ]


def _row(what: str, mine: Side, theirs: Side, value: Value = score_of) -> TableRow:
    tables = [{seed: by_prompt(lines, value) for seed, lines in each.seeds.items()} for each in (mine, theirs)]
    means = [over_seeds(each.values()) for each in tables]
    shared = sorted(means[0].keys() & means[1].keys())
    if not shared:
        return TableRow([what, "–", "–", "–", "0"])
    differences = [means[0][p] - means[1][p] for p in shared]
    scores = []
    if _same_seeds(mine, theirs):
        scores = [[[each[seed].get(p, math.nan) for p in shared] for seed in tables[0]] for each in tables]
    if scores and not _all_equal(*scores):
        from humor_env.experiments.compare.stats import paired_difference

        estimate = paired_difference(scores[0], scores[1])
        is_bounded = math.isfinite(estimate.low + estimate.high)
        change = Estimate(estimate.value, estimate.low, estimate.high) if is_bounded else Estimate(estimate.value)
    else:
        change = interval(differences, lowest=-1.0)  # if all are equal, by the rule of three
    sides = [f"{statistics.fmean(each[p] for p in shared):.3f}" for each in means]
    apart = change.low is not None and change.high is not None and (change.low > 0 or change.high < 0)
    return TableRow([what, *sides, with_interval(change), str(len(shared))], apart)


def _same_seeds(mine: Side, theirs: Side) -> bool:
    """Whether both have the same seeds, and more than one: then the interval includes the variance over seeds."""
    return list(mine.seeds) == list(theirs.seeds) and len(mine.seeds) > 1


def _all_equal(scores: Sequence[Sequence[float]], others: Sequence[Sequence[float]]) -> bool:
    """Whether every prompt changed by the same with every seed, but for rounding."""
    changes = [a - b for row, other in zip(scores, others, strict=True) for a, b in zip(row, other, strict=True)]
    changes = [change for change in changes if math.isfinite(change)]
    return not changes or max(changes) - min(changes) < 1e-9


def _distinct(lines: Sequence[Judged]) -> float:
    return distinct_n([line.text for line in lines], 2)


def _characters(lines: Sequence[Judged]) -> float:
    return statistics.fmean(len(line.text) for line in lines)


def what_differs(run: RunData, other: RunData) -> Table:
    """Every setting that both specs have with different values, then commit, machine and versions."""
    mine, theirs = (flat(each.spec) for each in (run, other))
    both = sorted(key for key in mine.keys() & theirs.keys() if key != "name" and mine[key] != theirs[key])
    rows = [TableRow([key, _shown(mine[key]), _shown(theirs[key])]) for key in both]
    records = [
        {k: r.record.get(k) for k in ("commit", "precision", "device", "platform")} | _versions(r) for r in (run, other)
    ]
    for key in dict.fromkeys([*records[0], *records[1]]):
        a, b = (each.get(key) for each in records)
        if a != b:
            rows.append(TableRow([key, _shown(a), _shown(b)]))
    caption = "Settings, code and versions that differ."
    return Table("What differs", ("setting", run.name, other.name), rows, caption)


def only_in_one(run: RunData, other: RunData) -> Table:
    """Settings that the other spec lacks, such as those of another learner: a run's spec lists all its settings."""
    mine, theirs = (flat(each.spec) for each in (run, other))
    keys = sorted(mine.keys() ^ theirs.keys())
    rows = [TableRow([key, _shown(mine.get(key)), _shown(theirs.get(key))]) for key in keys]
    return Table("Settings that only one of them has", ("setting", run.name, other.name), rows)


def _versions(run: RunData) -> dict[str, Any]:
    versions = run.record.get("versions")
    return {f"version of {name}": v for name, v in versions.items()} if isinstance(versions, Mapping) else {}


def _shown(value: object) -> str:
    if value is None:
        return NOT_SET
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= LONGEST else text[: LONGEST - 1] + "…"
