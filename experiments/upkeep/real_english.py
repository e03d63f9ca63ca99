"""The tables of docs/real-english.md, from the folder of a run of `everyday-smollm2`.

    python -m humor_env.experiments.upkeep.real_english runs/real --page docs/real-english.md

Two tables go between the comments `<!-- real: scores -->` and `<!-- real: lines -->` and the next `<!-- end -->`: what
the held-out judge says of each stage, and twenty sentences with the lines before and after. Those are taken by rank of
the trained student's scores, at equal distances from the worst to the best, so that nobody picks them.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from humor_env.experiments.compare import stats
from humor_env.experiments.runs.run_folder import RESULTS, read_results
from humor_env.experiments.upkeep.reference_tables import fill_page
from humor_env.rewards.everyday import TIE
from humor_env.shared import text_stats
from humor_env.shared.markdown import table_cell

SHOWN = 20
MARK = re.compile(r"(<!-- (real): (\w+) -->\n)(.*?)(<!-- end -->)", re.DOTALL)

Lines = Sequence[Mapping[str, Any]]


def read_run(folder: Path) -> dict[str, list[Lines]]:
    """Stage -> for each seed that was measured, its lines with their judgements, in the order of the prompts."""
    stages: dict[str, list[Lines]] = {}
    for results in sorted(folder.glob(f"seed-*/{RESULTS}")):
        for stage in read_results(results)["stages"]:
            file = results.parent / f"evaluation-{stage}.jsonl"
            stages.setdefault(stage, []).append([json.loads(line) for line in file.read_text("utf-8").splitlines()])
    if not stages:
        sys.exit(f"'{folder}' holds no run that has measured anything.")
    return stages


def in_order(stages: Mapping[str, Any]) -> list[str]:
    """As a run goes, the teacher last."""
    return sorted(stages, key=lambda stage: {"base": 0, "imitation": 1, "teacher": 3}.get(stage, 2))


def lines_each(stages: Mapping[str, Sequence[Lines]]) -> int:
    """How many lines a prompt has: `eval.lines`, of which the teacher may have fewer."""
    return max(max(Counter(line["prompt_id"] for line in lines).values()) for of in stages.values() for lines in of)


def numbers(seeds: Sequence[Lines], part: str, each: int = 1) -> np.ndarray[Any, np.dtype[np.float64]]:
    """`[seeds, prompts, lines]` with `each` lines for a prompt, NaN where there is no judgement. Where there are fewer
    they begin again, so that line k of one stage stands beside line k of another."""
    rows = []
    for lines in seeds:
        own: dict[str, list[float]] = {}
        for line in lines:
            value = line["score"] if part == "score" else line["parts"].get(part, np.nan)
            own.setdefault(line["prompt_id"], []).append(np.nan if value is None else value)
        rows.append([[known[k % len(known)] for k in range(each)] for known in own.values()])
    return np.array(rows, dtype=float)


def against(seeds: Sequence[Lines], others: Sequence[Lines], each: int = 1) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Line by line: 1 for a win over the other system's line, 0.5 for a tie. The judge reads each line alone, so
    that the order of the two cannot matter."""
    gap = numbers(seeds, "score", each) - numbers(others, "score", each)[: len(seeds)]
    return np.where(np.isnan(gap), np.nan, np.where(np.abs(gap) < TIE, 0.5, (gap > 0).astype(float)))


def bounds(values: Any, digits: int = 3, scale: float = 1.0) -> str:
    interval = stats.interval([values])
    value, low, high = (f"{scale * number:.{digits}f}" for number in (interval.value, interval.low, interval.high))
    return f"{value} ({low} to {high})"


def score_table(stages: Mapping[str, list[Lines]]) -> str:
    rows = [
        "| | score | funny | meaning | wins or ties with imitation, % | with the teacher, % | distinct-2 "
        "| commonest line, % |",
        "|---|---|---|---|---|---|---:|---:|",
    ]
    each = lines_each(stages)
    for stage in in_order(stages):
        seeds = stages[stage]
        cells = [bounds(numbers(seeds, part, each)) for part in ("score", "funny", "meaning")]
        for other in ("imitation", "teacher"):
            known = stage != other and other in stages and len(stages[other]) in (1, len(seeds))
            cells.append(bounds(against(seeds, stages[other], each), 0, 100) if known else "–")
        texts = [[line["text"] for line in lines] for lines in seeds]
        cells.append(f"{np.mean([text_stats.distinct_n(of_seed, 2) for of_seed in texts]):.2f}")
        cells.append(f"{100 * np.mean([text_stats.commonest_line(of_seed)[1] for of_seed in texts]):.1f}")
        rows.append(f"| {stage} | " + " | ".join(cells) + " |")
    seeds_of = {stage: len(stages[stage]) for stage in stages}
    prompts = len({line["prompt_id"] for line in stages["imitation"][0]})
    lines = "one line" if each == 1 else f"{each} lines"
    note = f"{prompts} test sentences, {lines} each, {max(seeds_of.values())} seed(s); 95 % intervals."
    return "\n".join(rows) + f"\n\n{note}"


def first_lines(lines: Lines) -> dict[str, Mapping[str, Any]]:
    """Of each prompt the first of its lines."""
    first: dict[str, Mapping[str, Any]] = {}
    for line in lines:
        first.setdefault(line["prompt_id"], line)
    return first


def line_table(stages: Mapping[str, list[Lines]]) -> str:
    """Of the first seed, and of the learner with the highest score where there are several."""
    learners = [stage for stage in in_order(stages) if stage not in ("base", "imitation", "teacher")]
    learner = max(learners, key=lambda stage: float(np.nanmean(numbers(stages[stage], "score"))))
    before, after = first_lines(stages["imitation"][0]), first_lines(stages[learner][0])
    judged = sorted((line for line in after.values() if line["score"] is not None), key=lambda line: line["score"])
    places = np.linspace(len(judged) - 1, 0, min(SHOWN, len(judged))).round().astype(int)
    rows = ["| sentence | after imitation | | after " + learner.upper() + " | |", "|---|---|---:|---|---:|"]
    for line in (judged[place] for place in places):
        old = before[line["prompt_id"]]
        prompt, was, now = (table_cell(text) for text in (line["prompt"], old["text"], line["text"]))
        rows.append(f"| {prompt} | {was} | {old['score']:.2f} | {now} | {line['score']:.2f} |")
    return "\n".join(rows)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="real_english", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--page", type=Path, help="the page whose tables are filled; printed without it")
    options = parser.parse_args(arguments)
    stages = read_run(options.run)
    tables = {"scores": score_table(stages), "lines": line_table(stages)}
    if options.page:
        page = fill_page(options.page.read_text(encoding="utf-8"), lambda _, name: tables[name], MARK)
        options.page.write_text(page, encoding="utf-8")
    else:
        print("\n\n".join(tables.values()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
