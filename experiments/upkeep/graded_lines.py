"""Joins grades with their lines: the file that the `everyday` critics learn from, and how far two passes agree.

    python -m humor_env.experiments.upkeep.graded_lines grading --out humor_env/data/everyday_grades.jsonl
    python -m humor_env.experiments.upkeep.graded_lines                 # the agreement in the bundled file

`grading` is a folder of `grading_lines`, with the graders' answers next to the batches: `grades/003.txt` for
`batches/003.jsonl` and `grades2/` for `batches2/`, with lines of the form `row funny meaning`. Lines that only one pass
has graded are left out. Grades are not changed: the file has both, and the score is the mean over the passes of funny
(0 to 4) times meaning (0 to 2) over 2.

Agreement is Cohen's kappa with quadratic weights; its interval comes from resampling sentences.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from humor_env.rewards.rated.everyday_grades import graded_rows
from humor_env.shared.json_lines import read_lines
from humor_env.shared.streams import generator

HIGHEST = {"funny": 4, "meaning": 2}
PASSES = (("grades", "batches", "key"), ("grades2", "batches2", "key2"))
RESAMPLES = 2000

Row = dict[str, Any]


def read_jsonl(file: Path) -> list[Row]:
    return [json.loads(line) for line in read_lines(file)]


def read_grades(folder: Path, answers: str, batches: str, key: str) -> dict[str, tuple[int, int]]:
    """Line id -> (funny, meaning), of one pass."""
    line_of = {row["n"]: row["id"] for row in read_jsonl(folder / f"{key}.jsonl")}
    grades: dict[str, tuple[int, int]] = {}
    for file in sorted((folder / answers).glob("*.txt")):
        rows = {row["n"] for row in read_jsonl(folder / batches / f"{file.stem}.jsonl")}
        for text in read_lines(file):
            if not text.strip():
                continue
            number, funny, meaning = (int(word) for word in text.split())
            if not (number in rows and 0 <= funny <= HIGHEST["funny"] and 0 <= meaning <= HIGHEST["meaning"]):
                sys.exit(f"{file}: '{text}' is not a grade of a row of this batch.")
            if line_of[number] in grades:
                sys.exit(f"{file}: row {number} is graded twice.")
            grades[line_of[number]] = (funny, meaning)
    return grades


def collect(folder: Path) -> list[Row]:
    """The lines that both passes have graded, in the form that the loader `ratings` reads."""
    first, second = (read_grades(folder, *one_pass) for one_pass in PASSES)
    rows: list[Row] = []
    for line in read_jsonl(folder / "lines.jsonl"):
        if line["id"] not in first or line["id"] not in second:
            continue
        passes = (first[line["id"]], second[line["id"]])
        raters = [funny * meaning / HIGHEST["meaning"] for funny, meaning in passes]
        rows.append(
            {
                "id": line["id"],
                "prompt": line["literal"],
                "text": line["line"],
                "score": sum(raters) / len(raters),
                "raters": raters,
                "kind": line["writer"],
                "funny": [funny for funny, _ in passes],
                "meaning": [meaning for _, meaning in passes],
                "prompt_id": line["prompt_id"],
                "split": line["split"],
                "use": line["use"],
                **{name: line[name] for name in ("temperature", "taught", "trick") if name in line},
            }
        )
    return rows


def kappa(counts: np.ndarray[Any, np.dtype[np.float64]]) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Quadratically weighted kappa of tables [..., K, K] that count the two passes' pairs of grades; NaN if all grades
    are the same."""
    grades = np.arange(counts.shape[-1])
    weights = np.square(grades[:, None] - grades[None, :]).astype(float)
    total = counts.sum((-2, -1))
    chance = counts.sum(-1)[..., :, None] * counts.sum(-2)[..., None, :] / total[..., None, None]
    expected = (weights * chance).sum((-2, -1))
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(np.where(expected > 0, 1 - (weights * counts).sum((-2, -1)) / expected, np.nan))


def agreement(rows: Sequence[Row], question: str, seed: int = 0) -> tuple[float, float, float]:
    """Kappa of the two passes with its 95 % interval."""
    prompts = {name: number for number, name in enumerate(dict.fromkeys(row["prompt_id"] for row in rows))}
    tables = np.zeros((len(prompts), HIGHEST[question] + 1, HIGHEST[question] + 1))
    for row in rows:
        tables[prompts[row["prompt_id"]], row[question][0], row[question][1]] += 1
    size = len(prompts)
    drawn = generator(seed, "kappa").multinomial(size, [1 / size] * size, size=RESAMPLES)
    resampled = kappa(np.einsum("rc,cij->rij", drawn, tables))
    resampled = resampled[~np.isnan(resampled)]
    low, high = np.quantile(resampled, [0.025, 0.975]) if len(resampled) else (np.nan, np.nan)
    return float(kappa(tables.sum(0))), float(low), float(high)


def in_words(value: float, low: float, high: float) -> str:
    return "–" if np.isnan(value) else f"{value:.2f} ({low:.2f} to {high:.2f})"


def table(rows: Sequence[Row]) -> str:
    """By writer: the number of lines, the mean grades, and the agreement of the passes."""
    lines = [
        "| writer | lines | funny | meaning | score | kappa, funny | kappa, meaning |",
        "|---|---:|---:|---:|---:|---|---|",
    ]
    for writer in ["all", *sorted({row["kind"] for row in rows})]:
        writer_rows = [row for row in rows if writer in ("all", row["kind"])]
        means = [np.mean([row[name] for row in writer_rows]) for name in ("funny", "meaning", "score")]
        kappas = [in_words(*agreement(writer_rows, question)) for question in HIGHEST]
        lines.append(
            f"| {writer} | {len(writer_rows):,} | " + " | ".join([*(f"{mean:.2f}" for mean in means), *kappas]) + " |"
        )
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="graded_lines", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path, nargs="?", help="a folder of grading_lines; default: the bundled file")
    parser.add_argument("--out", type=Path, help="where to write the graded lines")
    options = parser.parse_args(arguments)
    rows = collect(options.folder) if options.folder else graded_rows()
    if options.out:
        options.out.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    print(f"{len(rows):,} lines for {len({row['prompt_id'] for row in rows}):,} sentences, each graded twice.\n")
    print(table(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
