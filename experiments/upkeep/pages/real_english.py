"""The tables of docs/real-english.md, from the folder of a run, or of the benchmark `everyday-smollm2`.

    python -m humor_env.experiments.upkeep.pages.real_english runs/everyday-smollm2 --page docs/real-english.md
    python -m humor_env.experiments.upkeep.pages.real_english runs/everyday-smollm2 --as-run runs/rloo --learner rloo
    humor-env report runs/rloo --picture docs/images/real-english.svg

    python -m humor_env.experiments.upkeep.pages.real_english runs/everyday-smollm2 --judge runs/minilm-judge \\
        --page docs/real-english.md

With `--judge`, all lines are scored again by another critic, a folder of `train-critic`, and only its table is made.

For a benchmark, `--as-run` combines the cells of one learner and of the imitation that it started from into the folder
of one run, so that a report and a picture can be made of it.

The tables go between the comments `<!-- real: scores -->` (or another name, with `--mark`), `<!-- real: lines -->` and
`<!-- real: other-judge -->` and the next `<!-- end -->`: the held-out judge's scores of each stage; twenty sentences
with the lines before and after, taken by rank of the trained student's scores, evenly spaced from the worst to the
best, so that nobody picks them; and the other judge's scores.
"""

from __future__ import annotations

import argparse
import re
import shutil
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from humor_env.experiments.compare import stats
from humor_env.experiments.runs.joke_file import joke_of
from humor_env.experiments.runs.paired_line import paired_line
from humor_env.experiments.runs.run_folder import RECORD, RESULTS, SPEC, read_results, write_json
from humor_env.experiments.upkeep.graded_lines import read_jsonl
from humor_env.experiments.upkeep.reference_tables import fill_page
from humor_env.rewards.everyday import TIE
from humor_env.rewards.reward_model import RewardModelCritic
from humor_env.shared import text_stats
from humor_env.shared.markdown import table_cell
from humor_env.types import Critic

SHOWN = 20
CELL_OF_IMITATION = "sft"  # a benchmark cell's name for the stage that a run calls imitation
MARK = r"(<!-- (real): (%s) -->\n)(.*?)(<!-- end -->)"

Lines = Sequence[Mapping[str, Any]]


def measured_in(folder: Path) -> list[tuple[str, str, Path]]:
    """Seed, stage and file of all measured lines of a run or of the cells of a benchmark."""
    evaluations = []
    cells = "cells/**/" if (folder / "cells").is_dir() else ""
    for results in sorted(folder.glob(f"{cells}seed-*/{RESULTS}")):
        for stage in read_results(results)["stages"]:
            name = "imitation" if stage == CELL_OF_IMITATION else stage
            evaluations.append((results.parent.name, name, results.parent / f"evaluation-{stage}.jsonl"))
    return evaluations


def read_run(folder: Path) -> dict[str, list[Lines]]:
    """Stage -> for each measured seed, its lines with their judgements, in the order of the prompts."""
    stages: dict[str, list[Lines]] = {}
    for _, stage, file in measured_in(folder):
        stages.setdefault(stage, []).append(read_jsonl(file))
    if not stages:
        sys.exit(f"'{folder}' holds no run with measured lines.")
    return stages


def in_order(stages: Mapping[str, Any]) -> list[str]:
    """The stages in the order of a run, the teacher last."""
    return sorted(stages, key=lambda stage: {"base": 0, "imitation": 1, "teacher": 3}.get(stage, 2))


def lines_each(stages: Mapping[str, Sequence[Lines]]) -> int:
    """How many lines a prompt has: `eval.lines`; the teacher may have fewer."""
    return max(max(Counter(line["prompt_id"] for line in lines).values()) for of in stages.values() for lines in of)


def numbers(seeds: Sequence[Lines], part: str, each: int = 1) -> np.ndarray[Any, np.dtype[np.float64]]:
    """`[seeds, prompts, lines]` with `each` lines for a prompt, NaN if there is no judgement. If there are fewer
    lines, they repeat, so that line k of one stage is paired with line k of another."""
    rows = []
    for lines in seeds:
        by_prompt: dict[str, list[float]] = {}
        for line in lines:
            value = line["score"] if part == "score" else line["parts"].get(part, np.nan)
            by_prompt.setdefault(line["prompt_id"], []).append(np.nan if value is None else value)
        rows.append([[paired_line(values, k) for k in range(each)] for values in by_prompt.values()])
    return np.array(rows, dtype=float)


def against(seeds: Sequence[Lines], others: Sequence[Lines], each: int = 1) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Line by line: 1 for a win over the other system's line, 0.5 for a tie. The judge reads each line alone, so the
    order of the two does not matter."""
    return won(numbers(seeds, "score", each) - numbers(others, "score", each)[: len(seeds)])


def won(gap: np.ndarray[Any, np.dtype[np.float64]]) -> np.ndarray[Any, np.dtype[np.float64]]:
    return np.where(np.isnan(gap), np.nan, np.where(np.abs(gap) < TIE, 0.5, (gap > 0).astype(float)))


def bounds(values: Any, digits: int = 3, scale: float = 1.0) -> str:
    interval = stats.interval([values])
    value, low, high = (f"{scale * number:.{digits}f}" for number in (interval.value, interval.low, interval.high))
    return f"{value} ({low} to {high})" if np.isfinite(interval.low + interval.high) else value


def score_table(stages: Mapping[str, list[Lines]]) -> str:
    rows = [
        "| | seeds | score | funny | meaning | wins or ties with imitation, % | with the teacher, % | distinct-2 "
        "| commonest line, % |",
        "|---|---:|---|---|---|---|---|---:|---:|",
    ]
    each = lines_each(stages)
    for stage in in_order(stages):
        seeds = stages[stage]
        cells = [bounds(numbers(seeds, part, each)) for part in ("score", "funny", "meaning")]
        for other in ("imitation", "teacher"):
            is_comparable = stage != other and (
                len(stages.get(other, ())) == 1 or len(stages.get(other, ())) >= len(seeds)
            )
            cells.append(bounds(against(seeds, stages[other], each), 0, 100) if is_comparable else "–")
        texts = [[line["text"] for line in lines] for lines in seeds]
        cells.append(f"{np.mean([text_stats.distinct_n(of_seed, 2) for of_seed in texts]):.2f}")
        cells.append(f"{100 * np.mean([text_stats.commonest_line(of_seed)[1] for of_seed in texts]):.1f}")
        rows.append(f"| {stage} | {1 if stage == 'teacher' else len(seeds)} | " + " | ".join(cells) + " |")
    prompts = len({line["prompt_id"] for line in stages["imitation"][0]})
    lines = "one line" if each == 1 else f"{each} lines"
    note = f"{prompts} test sentences, {lines} each; 95 % intervals over seeds and sentences."
    return "\n".join(rows) + f"\n\n{note}{noise_floor(stages, each)}"


def noise_floor(stages: Mapping[str, list[Lines]], each: int) -> str:
    """The effect of chance alone: the second lines of the imitation compared with its first."""
    if each < 2:
        return ""
    by_line = numbers(stages["imitation"], "score", each)
    gap = by_line[:, :, 1] - by_line[:, :, 0]
    return (
        f" Chance alone: imitation's second lines differ from its first by {bounds(gap)} in score, and win or tie "
        f"against them in {bounds(won(gap), 0, 100)} %."
    )


def judged_again(stages: Mapping[str, list[Lines]], critic: Critic) -> dict[str, list[Lines]]:
    """The same lines with the scores of another critic."""
    again: dict[str, list[Lines]] = {}
    for stage, seeds in stages.items():
        for lines in seeds:
            jokes = [joke_of(stage, number, line).joke for number, line in enumerate(lines, 1)]
            scored = [
                {**line, "score": judgement.score, "parts": judgement.parts}
                for line, judgement in zip(lines, critic(jokes), strict=True)
            ]
            again.setdefault(stage, []).append(scored)
    return again


def other_judge_table(stages: Mapping[str, list[Lines]]) -> str:
    each = lines_each(stages)
    rows = ["| | seeds | score | minus imitation |", "|---|---:|---|---|"]
    imitation = numbers(stages["imitation"], "score", each)
    for stage in in_order(stages):
        scores = numbers(stages[stage], "score", each)
        gap = "–" if stage == "imitation" else bounds(scores - imitation[: len(scores)])
        rows.append(f"| {stage} | {1 if stage == 'teacher' else len(scores)} | {bounds(scores)} | {gap} |")
    return "\n".join(rows)


def first_lines(lines: Lines) -> dict[str, Mapping[str, Any]]:
    """The first line of each prompt."""
    first: dict[str, Mapping[str, Any]] = {}
    for line in lines:
        first.setdefault(line["prompt_id"], line)
    return first


def line_table(stages: Mapping[str, list[Lines]]) -> str:
    """Lines of the first seed; with several learners, of the one with the most seeds, then with the highest score."""
    learners = [stage for stage in in_order(stages) if stage not in ("base", "imitation", "teacher")]
    learner = max(learners, key=lambda s: (len(stages[s]), float(np.nanmean(numbers(stages[s], "score")))))
    before, after = first_lines(stages["imitation"][0]), first_lines(stages[learner][0])
    judged = sorted((line for line in after.values() if line["score"] is not None), key=lambda line: line["score"])
    places = np.linspace(len(judged) - 1, 0, min(SHOWN, len(judged))).round().astype(int)
    rows = ["| sentence | after imitation | | after " + learner.upper() + " | |", "|---|---|---:|---|---:|"]
    for line in (judged[place] for place in places):
        old = before[line["prompt_id"]]
        prompt, was, now = (table_cell(text) for text in (line["prompt"], old["text"], line["text"]))
        rows.append(f"| {prompt} | {was} | {old['score']:.2f} | {now} | {line['score']:.2f} |")
    return "\n".join(rows)


def as_run(bench: Path, learner: str, out: Path) -> None:
    """Write the cells of one learner, and the imitation that it started from, as the folder of a run."""
    cells = sorted((bench / "cells" / learner).glob(f"**/seed-*/{RESULTS}"))
    if not cells:
        sys.exit(f"'{bench}' holds no finished cell of a learner '{learner}'.")
    measured = measured_in(bench)
    for results in cells:
        seed = out / results.parent.name
        seed.mkdir(parents=True, exist_ok=True)
        merged = dict(read_results(results))
        for log in ("metrics.jsonl", "timings.jsonl", "jokes.jsonl"):
            shutil.copy(results.parent / log, seed / log)
        merged["stages"] = {}
        for name, stage, file in measured:
            if name == seed.name and (stage in ("base", "imitation", "teacher") or file.parent == results.parent):
                shutil.copy(file, seed / f"evaluation-{stage}.jsonl")
                numbers = read_results(file.parent / RESULTS)["stages"]
                merged["stages"][stage] = numbers[CELL_OF_IMITATION if stage == "imitation" else stage]
        write_json(seed / RESULTS, merged)
    for name in (SPEC, RECORD):
        shutil.copy(cells[0].parent.parent / name, out / name)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="real_english", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--page", type=Path, help="the page whose tables to fill; default: print")
    parser.add_argument("--table", choices=("scores", "lines"), help="fill only this one")
    parser.add_argument("--mark", metavar="NAME", help="fill the scores at the comment `real: NAME`, and nothing else")
    parser.add_argument(
        "--judge", type=Path, metavar="FOLDER", help="a critic of train-critic, to score all lines again"
    )
    parser.add_argument("--as-run", type=Path, help="write one learner's cells of a benchmark as the folder of a run")
    parser.add_argument("--learner", default="ppo", help="the learner for --as-run")
    options = parser.parse_args(arguments)
    if options.as_run:
        as_run(options.run, options.learner, options.as_run)
        return 0
    stages = read_run(options.run)
    if options.judge:
        tables = {"other-judge": other_judge_table(judged_again(stages, RewardModelCritic(options.judge)))}
    else:
        tables = {"scores": score_table(stages), "lines": line_table(stages)}
    if options.mark:
        tables = {options.mark: tables["scores"]}
    if options.page:
        marks = re.compile(MARK % (options.table or "|".join(tables)), re.DOTALL)
        page = fill_page(options.page.read_text(encoding="utf-8"), lambda _, name: tables[name], marks)
        options.page.write_text(page, encoding="utf-8")
    else:
        print("\n\n".join(tables.values()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
