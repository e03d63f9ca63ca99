"""Fits the two `everyday` critics to the bundled grades, and measures them on grades of other sentences.

    python -m humor_env.experiments.upkeep.everyday_critics train everyday          # ten minutes on two cores
    python -m humor_env.experiments.upkeep.everyday_critics train everyday-judge
    python -m humor_env.experiments.upkeep.everyday_critics measure                 # the tables of docs/real-english.md
    python -m humor_env.experiments.upkeep.everyday_critics ratings everyday-judge judge.csv    # for train-critic

The graded sentences are divided: `everyday` learns from one half, `everyday-judge` from the other, and both are
measured on test sentences, of which neither has seen a grade. Nearly all of the time is spent reading the lines with
the model; `--states FOLDER` saves its states, so that another head is fitted in a minute.
"""

from __future__ import annotations

import argparse
import csv
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from humor_env.experiments.upkeep.graded_lines import HIGHEST, Row
from humor_env.rewards.audits.audit_stats import interval, pair_credit, spearman, spearman_interval
from humor_env.rewards.everyday import QUESTIONS, WEIGHTS
from humor_env.rewards.rated.everyday_grades import graded_rows
from humor_env.types import Joke, Prompt

if TYPE_CHECKING:
    from torch import Tensor

# Layers of SmolLM2 that each critic reads, of 30: chosen on dev among 6, 12, 18, 24 and 30 (experiments/LOG.md).
LAYERS = {"everyday": 12, "everyday-judge": 18}
NAMES = tuple(LAYERS)
EVALUATION = "evaluation"
INSTRUCTION = (
    "You're an AI assistant for text re-writing. Rewrite the input text to make it funnier while preserving its main "
    "points."
)
# The folder of the source, not of an installed copy: the fitted heads are committed.
TARGET = Path(__file__).resolve().parents[2] / "rewards" / WEIGHTS


def joke_of(row: Row) -> Joke:
    return Joke(Prompt(row["prompt_id"], row["prompt"]), row["text"], author=row["kind"])


def shares_of(rows: Sequence[Row]) -> Any:
    """`[N, Q]`: the mean grade of the two passes as a share of the highest."""
    return np.array([[np.mean(row[q]) / HIGHEST[q] for q in QUESTIONS] for row in rows], dtype=np.float32)


def train(name: str, seed: int, kept: Path | None) -> None:
    """Fit a head for both questions and save it in the package."""
    import torch

    from humor_env.rewards.trained.state_reader import GradeHead, HeadConfig

    rows = [row for row in graded_rows() if row["use"] == name]
    reading = {"model": "smollm2", "layers": LAYERS[name], "instruction": INSTRUCTION}
    states, shares = states_of(name, rows, reading, kept), torch.tensor(shares_of(rows))
    dev = torch.tensor([row["split"] == "dev" for row in rows])
    config = HeadConfig(seed=seed)
    trial = GradeHead.fit(states[~dev], shares[~dev], QUESTIONS, config)
    guessed, graded = trial(states[dev]).numpy(), shares[dev].numpy()
    prompts = [row["prompt_id"] for row in rows if row["split"] == "dev"]
    for k, question in enumerate(QUESTIONS):
        print(f"{name}, {question}, dev: {figures(guessed[:, k], graded[:, k], prompts, seed)}")
    GradeHead.fit(states, shares, QUESTIONS, config).save(TARGET / name, reading)


def states_of(name: str, rows: Sequence[Row], reading: dict[str, Any], kept: Path | None) -> Tensor:
    """The model's states, from `kept` if they were saved there."""
    from safetensors.torch import load_file, save_file

    from humor_env.rewards.trained.state_reader import StateReader

    file = kept / f"{name}.safetensors" if kept else None
    if file is not None and file.is_file():
        return load_file(file)["states"].float()
    began = time.monotonic()
    states = StateReader(**reading, batch_size=32).states([joke_of(row) for row in rows])
    print(f"{name}: {len(rows)} lines read in {(time.monotonic() - began) / 60:.1f} minutes")
    if file is not None:
        file.parent.mkdir(parents=True, exist_ok=True)
        save_file({"states": states}, file)
    return states


def write_ratings(use: str, file: Path) -> None:
    """The grades that a critic learned from, or the evaluation's, as the rated set `ratings` of `train-critic`."""
    with file.open("w", encoding="utf-8", newline="") as stream:
        table = csv.writer(stream)
        table.writerow(["id", "prompt", "text", "score"])
        table.writerows(
            [row["id"], row["prompt"], row["text"], row["score"]] for row in graded_rows() if row["use"] == use
        )


def measure(seed: int = 0) -> str:
    """On the test sentences: rank correlation and pairs within a sentence, of each critic with the mean of the two
    passes, and of one pass with the other."""
    from humor_env.registry import critics

    rows = [row for row in graded_rows() if row["use"] == EVALUATION]
    prompts = [row["prompt_id"] for row in rows]
    grades = {question: np.array([np.mean(row[question]) for row in rows]) for question in QUESTIONS}
    grades["score"] = np.array([row["score"] for row in rows])
    answers: dict[str, dict[str, Any]] = {}
    for name in NAMES:
        judgements = critics.make(name)([joke_of(row) for row in rows])
        answers[name] = {question: np.array([j.parts[question] for j in judgements]) for question in QUESTIONS}
        answers[name]["score"] = np.array([j.score for j in judgements], dtype=float)
    lines = [
        f"{len(rows)} lines for {len(set(prompts))} sentences; neither critic was trained on their grades.\n",
        "| who | question | rank correlation | pairs of one sentence, right |",
        "|---|---|---|---|",
    ]
    for question in ("score", *QUESTIONS):
        for name in NAMES:
            numbers = figures(answers[name][question], grades[question], prompts, seed)
            lines.append(f"| `{name}` with both passes | {question} | {numbers[0]} | {numbers[1]} |")
        passes = [[row["raters" if question == "score" else question][k] for row in rows] for k in (0, 1)]
        numbers = figures(np.array(passes[1], dtype=float), np.array(passes[0], dtype=float), prompts, seed)
        lines.append(f"| one pass with the other | {question} | {numbers[0]} | {numbers[1]} |")
    writers = sorted({row["kind"] for row in rows})
    lines += ["", "| writer | lines | grades | `everyday` | `everyday-judge` |", "|---|---:|---:|---:|---:|"]
    for writer in writers:
        of_writer = np.array([row["kind"] == writer for row in rows])
        means = [
            grades["score"][of_writer].mean() / HIGHEST["funny"],
            *(answers[name]["score"][of_writer].mean() for name in NAMES),
        ]
        lines.append(f"| {writer} | {of_writer.sum()} | " + " | ".join(f"{mean:.2f}" for mean in means) + " |")
    return "\n".join(lines)


def figures(numbers: Any, grades: Any, prompts: Sequence[str], seed: int) -> tuple[str, str]:
    """Rank correlation and share of pairs of one sentence, each with its interval over sentences, in words."""
    correlation, ranked = spearman(numbers, grades), spearman_interval(numbers, grades, prompts, seed)
    pairs = [
        (a, b)
        for a in range(len(prompts))
        for b in range(a + 1, len(prompts))
        if prompts[a] == prompts[b] and grades[a] != grades[b]
    ]
    credit = pair_credit([numbers[a] - numbers[b] for a, b in pairs], [grades[a] - grades[b] for a, b in pairs])
    return with_bounds(correlation, ranked), with_bounds(
        credit.mean(), interval(credit, [prompts[a] for a, _ in pairs], seed)
    )


def with_bounds(value: float | None, bounds: tuple[float, float] | None) -> str:
    if value is None:
        return "–"
    return f"{value:.2f}" + (f" ({bounds[0]:.2f} to {bounds[1]:.2f})" if bounds else "")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="everyday_critics", description=(__doc__ or "").splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    training = commands.add_parser("train", help="fit one of the two into the package")
    training.add_argument("critic", choices=NAMES)
    training.add_argument("--seed", type=int, default=0)
    training.add_argument("--states", type=Path, metavar="FOLDER", help="save the model's states here, or reuse them")
    commands.add_parser("measure", help="agreement with the grades of test sentences")
    writing = commands.add_parser("ratings", help="write the grades that one of the two learned from, as a rated set")
    writing.add_argument("use", choices=(*NAMES, EVALUATION))
    writing.add_argument("file", type=Path)
    options = parser.parse_args(arguments)
    if options.command == "train":
        train(options.critic, options.seed, options.states)
    elif options.command == "ratings":
        write_ratings(options.use, options.file)
    else:
        print(measure())
    return 0


if __name__ == "__main__":
    sys.exit(main())
