"""Blind grading of the lines of all stages of a run: batches for the graders, and the table of docs/real-english.md.

    python -m humor_env.experiments.upkeep.pages.blind_grades batches runs/everyday-smollm2 grading
    python -m humor_env.experiments.upkeep.pages.blind_grades collect grading --out blind.jsonl
    python -m humor_env.experiments.upkeep.pages.blind_grades table blind.jsonl --page docs/real-english.md

A judge that is like the critic may share its mistakes, so the lines are graded independently. Each stage shows one line
for each sentence, its first; with several seeds, sentences alternate between them. A line that two stages have written
is graded once and counts for both. Graders get `batches/` and `batches2/`, two independent shuffles with only the
sentence and the line, and answer as for `graded_lines`, each batch in a separate file.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from humor_env.experiments.upkeep import graded_lines
from humor_env.experiments.upkeep.graded_lines import HIGHEST, PASSES, Row, read_jsonl
from humor_env.experiments.upkeep.grading_lines import write_batches, write_jsonl
from humor_env.experiments.upkeep.pages import real_english
from humor_env.experiments.upkeep.reference_tables import fill_page

MARK = re.compile(r"(<!-- (real): (blind) -->\n)(.*?)(<!-- end -->)", re.DOTALL)
BOTH = " and "  # between the names of stages that wrote the same line
WORKS = (2, 1)  # at least a mild smile, and the subject kept


def lines_of(run: Path) -> list[Row]:
    """One row for each different line of a sentence, with the stages that wrote it."""
    rows: dict[tuple[str, str], Row] = {}
    for stage, seeds in real_english.read_run(run).items():
        firsts = [real_english.first_lines(lines) for lines in seeds]
        for place, prompt_id in enumerate(firsts[0]):
            line = firsts[place % len(firsts)][prompt_id]
            row = rows.setdefault(
                (prompt_id, line["text"]),
                {
                    "id": f"line-{len(rows):04d}",
                    "prompt_id": prompt_id,
                    "literal": line["prompt"],
                    "line": line["text"],
                    "split": "test",
                    "use": "evaluation",
                },
            )
            row["writer"] = BOTH.join([row["writer"], stage]) if "writer" in row else stage
    return list(rows.values())


def write_all(run: Path, folder: Path, seed: int) -> int:
    if (folder / "lines.jsonl").exists():
        sys.exit(f"'{folder}' already holds lines to grade. Give another folder.")
    rows = lines_of(run)
    for _, batches, key in PASSES:
        write_batches(folder / batches, folder / f"{key}.jsonl", rows, 0, seed)
    write_jsonl(folder / "lines.jsonl", rows)
    return len(rows)


def table(rows: Sequence[Row]) -> str:
    """By stage: the mean grades over both passes, and the share of lines that succeed."""
    stages = real_english.in_order({stage: () for row in rows for stage in row["kind"].split(BOTH)})
    lines = [
        "| | lines | funny, of 4 | meaning, of 2 | score, of 4 | above 0, % | a smile, and the subject kept, % |",
        "|---|---:|---|---|---|---|---|",
    ]
    for stage in stages:
        stage_rows = [row for row in rows if stage in row["kind"].split(BOTH)]
        means = {name: np.array([[np.mean(row[name]) for row in stage_rows]]) for name in HIGHEST}
        score = np.array([[row["score"] for row in stage_rows]])
        works = (means["funny"] >= WORKS[0]) & (means["meaning"] >= WORKS[1])
        cells = [real_english.bounds(values, 2) for values in (means["funny"], means["meaning"], score)]
        cells += [real_english.bounds((score > 0).astype(float), 0, 100)]
        cells += [real_english.bounds(works.astype(float), 1, 100)]
        lines.append(f"| {stage} | {len(stage_rows)} | " + " | ".join(cells) + " |")
    kappas = [graded_lines.in_words(*graded_lines.agreement(rows, question)) for question in HIGHEST]
    note = f"The two passes agree with a weighted kappa of {kappas[0]} for *funny* and {kappas[1]} for *meaning*."
    return "\n".join(lines) + f"\n\n{note}"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="blind_grades", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("what", choices=("batches", "collect", "table"))
    parser.add_argument(
        "source", type=Path, help="a run, a benchmark, the folder of the grading, or the collected file"
    )
    parser.add_argument("folder", type=Path, nargs="?", help="for batches: where to write them")
    parser.add_argument("--out", type=Path, help="for collect: where to write the graded lines")
    parser.add_argument("--page", type=Path, help="for table: the page to fill; default: print")
    parser.add_argument("--seed", type=int, default=0, help="seed of the shuffles")
    options = parser.parse_args(arguments)
    if options.what == "batches":
        if options.folder is None:
            parser.error("batches needs a folder to write to")
        print(f"{write_all(options.source, options.folder, options.seed)} lines to grade in '{options.folder}'")
        return 0
    if options.what == "collect":
        if options.out is None:
            parser.error("collect needs --out")
        rows = graded_lines.collect(options.source)
        write_jsonl(options.out, rows)
        print(f"{len(rows)} lines, each graded twice, in '{options.out}'")
        return 0
    table_text = table(read_jsonl(options.source))
    if options.page:
        page = options.page.read_text(encoding="utf-8")
        options.page.write_text(fill_page(page, lambda _, __: table_text, MARK), encoding="utf-8")
    else:
        print(table_text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
