"""The lines of a run by stage: the same prompts at several steps, floor and ceiling of scores, parts, frames.

    same_prompts(run)[0].versions          # ("base", 0.1, "…"), ("imitation", 0.4, "…"), ("ppo", 0.7, "…")
    floor_table(run, "Floor and ceiling")  # how many lines have the lowest and the highest score
    frame_table(run, "Frames")             # ("was so _ that", 12 % at first, 61 % at the end)

Pure functions from `RunData` to small records and tables; no HTML and no files.
"""

from __future__ import annotations

import statistics
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

from humor_env.experiments.reports.report_data import Judged, RunData, SeedData, begun_from, first_lines
from humor_env.experiments.reports.report_numbers import Estimate, paired, part_of, recent
from humor_env.experiments.reports.tables import Table, TableRow, percent
from humor_env.shared.text_stats import BLANK, frames

MOST_FRAMES = 8
Ranked = TypeVar("Ranked")


@dataclass(frozen=True)
class Version:
    when: str
    score: float | None
    text: str


@dataclass(frozen=True)
class SamePrompt:
    """One prompt and its lines, from early to late."""

    prompt: str
    versions: Sequence[Version]


def same_prompts(run: RunData, count: int = 6) -> list[SamePrompt]:
    """Held-out prompts with the first line of every stage: not picked, but evenly spread over the first seed's lines
    by the last student's score, best first. Empty if only one stage was measured."""
    seed = next((s for s in run.seeds if s.stages.get(last_stage(s))), None)
    if seed is None:
        return []
    tables = {stage: first_lines(lines) for stage, lines in seed.stages.items()}
    late = tables[last_stage(seed)]
    if len([stage for stage in tables if stage != "teacher"]) < 2:
        return []
    in_all = [i for i in late if all(i in table for table in tables.values())]
    score_of = {i: -1.0 if (score := late[i].score) is None else score for i in in_all}
    ranked = sorted(in_all, key=lambda i: (-score_of[i], i))
    return [
        SamePrompt(late[i].prompt, [Version(stage, table[i].score, table[i].text) for stage, table in tables.items()])
        for i in spread(ranked, count)
    ]


def same_prompts_while_learning(run: RunData, count: int = 6) -> list[SamePrompt]:
    """Training prompts that occurred early and late: the first line of their first step, of the step nearest to the
    middle of the run, and of their last step. Only if first and last are at least half the run apart."""
    for seed in run.seeds:
        lines_of: dict[str, dict[int, Judged]] = defaultdict(dict)
        for line in seed.training:
            if line.step:
                lines_of[line.prompt_id].setdefault(line.step, line)  # siblings: the first, so that none is picked
        last = max((line.step for line in seed.training), default=0)
        far = {i: steps for i, steps in lines_of.items() if len(steps) > 1 and 2 * (max(steps) - min(steps)) >= last}
        if far:
            ranked = sorted(far, key=lambda i: (min(far[i]) - max(far[i]), i))[:count]
            return [_on_the_way(far[i], last) for i in ranked]
    return []


def _on_the_way(lines: Mapping[int, Judged], last: int) -> SamePrompt:
    first, end = min(lines), max(lines)
    between = [step for step in lines if first < step < end]
    steps = [first, *sorted(between, key=lambda step: (abs(2 * step - last), step))[:1], end]
    return SamePrompt(
        lines[first].prompt, [Version(f"step {step}", lines[step].score, lines[step].text) for step in steps]
    )


def last_stage(seed: SeedData) -> str:
    """The learner's stage or, if it was not measured yet, the one it started from."""
    return seed.trained or next((stage for stage in ("imitation", "base") if stage in seed.stages), "")


def spread(ranked: Sequence[Ranked], count: int) -> list[Ranked]:
    """`count` items, each from the middle of its part of the list; all if there are no more."""
    if len(ranked) <= count:
        return list(ranked)
    return [ranked[len(ranked) * (2 * i + 1) // (2 * count)] for i in range(count)]


def stage_names(run: RunData) -> list[str]:
    """The stages with lines in any seed, in order."""
    return list(dict.fromkeys(stage for seed in run.seeds for stage in seed.stages))


def lines_of_stage(run: RunData, stage: str) -> list[Judged]:
    return [line for seed in run.seeds for line in seed.stages.get(stage, ())]


def thirds_of_training(run: RunData) -> dict[str, list[Judged]]:
    """The lines of the first and the last third of the steps with lines, over all seeds."""
    parts: dict[str, list[Judged]] = {"first third": [], "last third": []}
    for seed in run.seeds:
        lines = recent(seed.training)
        steps = sorted({line.step for line in lines})
        if len(steps) < 3:
            continue
        size = len(steps) // 3
        early, late = set(steps[:size]), set(steps[-size:])
        parts["first third"] += [line for line in lines if line.step in early]
        parts["last third"] += [line for line in lines if line.step in late]
    return parts if all(parts.values()) else {}


def scores(lines: Sequence[Judged]) -> list[float]:
    return [line.score for line in lines if line.score is not None]


def floor_table(run: RunData, title: str) -> Table:
    """How many lines of each stage have the lowest and the highest score of all held-out lines of this run. If many
    lines are at one end, the judge cannot tell them apart."""
    by_stage = {stage: scores(lines_of_stage(run, stage)) for stage in stage_names(run)}
    by_stage = {stage: values for stage, values in by_stage.items() if values}
    every = [round(score, 6) for values in by_stage.values() for score in values]
    if not every or min(every) == max(every):
        return Table(title, (), ())
    low, high = min(every), max(every)
    rows = []
    for stage, values in by_stage.items():
        at = [sum(round(score, 6) == end for score in values) / len(values) for end in (low, high)]
        cells = (stage, percent(at[0]), f"{statistics.median(values):.3f}", percent(at[1]), f"{len(values):,}")
        rows.append(TableRow(cells, max(at) > 0.5))
    return Table(
        title,
        ("stage", f"at the lowest, {low:.2f}", "median", f"at the highest, {high:.2f}", "lines"),
        rows,
        "Shares of the held-out lines with the lowest and with the highest score of all stages. If most lines have "
        "one of them (marked), the judge cannot tell these lines apart.",
    )


def part_table(run: RunData, title: str) -> Table:
    """The mean of each part of the held-out judge's score by stage, and what learning changed, prompt by prompt."""
    stages = stage_names(run)
    names = list(dict.fromkeys(n for stage in stages for line in lines_of_stage(run, stage) for n in line.parts))
    late = next((stage for seed in run.seeds if (stage := last_stage(seed))), "")
    before = begun_from(late, stages)
    changes = bool(late) and late != before and {late, before} <= set(stages)
    rows = []
    for name in names:
        values = [[line.parts[name] for line in lines_of_stage(run, stage) if name in line.parts] for stage in stages]
        cells = [name.replace("_", " "), *(f"{statistics.fmean(v):.3f}" if v else "–" for v in values)]
        if changes:
            change = paired(run, late, before, value=partial(part_of, name=name))
            cells.append("–" if change is None else with_interval(change))
        rows.append(TableRow(cells))
    head = ["part", *stages, *([f"change from {before}"] if changes else [])]
    return Table(title, head, rows, "Means of the held-out judge’s parts; the change with its 95 % interval.")


def with_interval(change: Estimate) -> str:
    """A difference with its sign, and its interval if it has one."""
    if change.low is None or change.high is None:
        return f"{change.mean:+.3f}"
    return f"{change.mean:+.3f} [{change.low:+.3f}, {change.high:+.3f}]"


def frame_table(run: RunData, title: str) -> Table:
    """The commonest frames of the last student's lines, and how common they are at every other stage and early and
    late in training. A frame that is a listed one shifted by a word is left out."""
    groups = {stage: [line.text for line in lines_of_stage(run, stage)] for stage in stage_names(run)}
    groups |= {f"training, {part}": [line.text for line in lines] for part, lines in thirds_of_training(run).items()}
    late = next((stage for seed in run.seeds if (stage := last_stage(seed))), "")
    chosen_from = late if groups.get(late) else "training, last third"
    shares = {group: _frame_shares(texts) for group, texts in groups.items() if texts}
    commonest: list[str] = []
    for frame, share in sorted(
        shares.get(chosen_from, {}).items(), key=lambda each: (-each[1], each[0].count(BLANK), each[0])
    ):
        if len(commonest) == MOST_FRAMES or share < 0.02:
            break
        if not any(_moved_by_a_word(frame, other) for other in commonest):
            commonest.append(frame)
    rows = [TableRow([frame, *(percent(share.get(frame, 0.0)) for share in shares.values())]) for frame in commonest]
    return Table(
        title,
        ("four words", *shares),
        rows,
        "Share of lines with a frame: four words in a row, with blanks for content words. A frame whose share rises "
        "during learning is one joke repeated with other words.",
    )


def _frame_shares(texts: Sequence[str]) -> dict[str, float]:
    counts = Counter(frame for text in texts for frame in frames(text))
    return {frame: count / len(texts) for frame, count in counts.items() if count > 1}


def _moved_by_a_word(frame: str, other: str) -> bool:
    a, b = frame.split(), other.split()
    return a[1:] == b[:-1] or b[1:] == a[:-1]


@dataclass(frozen=True)
class SamePrompts:
    """Prompts with their lines, from early to late."""

    title: str
    caption: str
    prompts: Sequence[SamePrompt]


def sections_of_same_prompts(run: RunData, several: bool) -> list[SamePrompts]:
    """Both sections, if not empty; titles name the run if there are several."""
    of = f": {run.name}" if several else ""
    sections = (
        SamePrompts(
            f"Held-out prompts, stage by stage{of}",
            "Not picked: evenly spread from the best to the worst line of the last student. Scores are the held-out "
            "judge’s.",
            same_prompts(run),
        ),
        SamePrompts(
            f"Training prompts, early and late{of}",
            "Prompts that occurred repeatedly. Scores are the training critic’s.",
            same_prompts_while_learning(run),
        ),
    )
    return [section for section in sections if section.prompts]
