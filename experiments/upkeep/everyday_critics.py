"""The two `everyday` critics, trained from the bundled grades, and how they do on grades of other sentences.

    python -m humor_env.experiments.upkeep.everyday_critics train everyday          # 10 minutes on two cores
    python -m humor_env.experiments.upkeep.everyday_critics train everyday-judge    # an hour
    python -m humor_env.experiments.upkeep.everyday_critics measure                 # the tables of docs/critics.md

The sentences whose lines were graded are divided: `everyday` learns from one half, `everyday-judge` from the other, and
both are measured on test sentences, of which neither has seen a grade. Each question is a model of its own.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import pvariance
from typing import TYPE_CHECKING, Any

import numpy as np

from humor_env.experiments.upkeep.graded_lines import HIGHEST, Row, bundled
from humor_env.rewards.audits.audit_stats import interval, pair_credit, spearman, spearman_interval
from humor_env.rewards.everyday import GRADES_FILE, QUESTIONS, WEIGHTS
from humor_env.types import Joke, Prompt

if TYPE_CHECKING:
    from humor_env.rewards.trained.critic_data import CriticSet
    from humor_env.rewards.trained.train_critic import TrainCriticConfig, TrainProgress

NAMES = ("everyday", "everyday-judge")
EVALUATION = "evaluation"
# The folder of the source, not of an installed copy: what is trained here is to be committed.
TARGET = Path(__file__).resolve().parents[2] / "rewards" / WEIGHTS


def joke_of(row: Row) -> Joke:
    return Joke(Prompt(row["prompt_id"], row["prompt"]), row["text"], author=row["kind"])


def configuration(name: str, question: str, seed: int) -> TrainCriticConfig:
    from humor_env.rewards.trained.train_critic import TrainCriticConfig

    common = TrainCriticConfig(
        model="minilm",
        form="pair",
        pool="mean",
        hidden=128,
        max_length=96,
        lora_rank=8,
        epochs=3 if question == "funny" else 2,
        batch_size=32,
        lr=1e-3,
        head_lr=1e-3,
        dev_share=0.1,
        evaluations=2,
        patience=3,
        # A line keeps the meaning of its own sentence, and not of another; how funny it is does not depend on it.
        other_prompts=1.0 if question == "meaning" else 0.0,
        seed=seed,
    )
    if name == "everyday":
        return common
    return replace(
        common, model="smollm2", layers=6, lora_rank=4, pool="last", epochs=2 if question == "funny" else 1, lr=5e-4
    )


def set_of(rows: Sequence[Row], question: str) -> CriticSet:
    from humor_env.rewards.trained.critic_data import CriticSet, Rating

    ratings = [
        Rating(joke_of(row), float(np.mean(row[question])), len(row[question]), 2 * pvariance(row[question]))
        for row in rows
    ]
    return CriticSet(question, tuple(ratings))


def train(name: str, questions: Sequence[str], seed: int) -> None:
    """Train a model for each question and put what is small of them into the package."""
    from humor_env.rewards.trained.critic_data import scale_of, split
    from humor_env.rewards.trained.train_critic import train as fit

    rows = [row for row in bundled() if row["use"] == name]
    for question in questions:
        graded, config = set_of(rows, question), configuration(name, question, seed)
        with tempfile.TemporaryDirectory() as made:
            result = fit(config, [graded], made, on_progress=show)
            print(f"{name}, {question}: {result.steps} steps, {result.seconds / 60:.1f} min, {result.dev}", flush=True)
            scale = scale_of(split([graded], config.dev_share, config.seed)[0][0])
            assert scale is not None
            shares = {"slope": scale.deviation / HIGHEST[question], "offset": scale.mean / HIGHEST[question]}
            pack(Path(made), TARGET / name / question, shares)


def show(now: TrainProgress) -> None:
    if now.dev is not None:
        right = f"{now.dev['pair_accuracy']:.3f} of dev pairs, log loss {now.dev['loss']:.4f}"
        print(f"  step {now.step}/{now.steps}, {now.seconds / 60:.1f} min: loss {now.loss:.3f}, {right}", flush=True)


def pack(made: Path, target: Path, shares: dict[str, float]) -> None:
    """Weights in 16 bits, without the tokenizer, which the body has, and without pages and notes."""
    import torch
    from safetensors.torch import load_file, save_file

    shutil.rmtree(target, ignore_errors=True)
    kept = ["scoring.json", "calibration.json", "training.json"]
    kept += [str(file.relative_to(made)) for file in made.glob("member-*/body/adapter_config.json")]
    for name in kept:
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(made / name, target / name)
    for file in made.glob("member-*/**/*.safetensors"):
        halves = {name: tensor.to(torch.float16).contiguous() for name, tensor in load_file(file).items()}
        save_file(halves, target / file.relative_to(made))
    (target / GRADES_FILE).write_text(json.dumps(shares, indent=1) + "\n", encoding="utf-8")


def measure(seed: int = 0) -> str:
    """On the test sentences: rank correlation and pairs within a sentence, of each critic with the mean of the two
    passes, and of one pass with the other."""
    from humor_env.registry import critics

    rows = [row for row in bundled() if row["use"] == EVALUATION]
    prompts = [row["prompt_id"] for row in rows]
    grades = {question: np.array([np.mean(row[question]) for row in rows]) for question in QUESTIONS}
    grades["score"] = np.array([row["score"] for row in rows])
    answers: dict[str, dict[str, Any]] = {}
    for name in NAMES:
        judgements = critics.make(name)([joke_of(row) for row in rows])
        answers[name] = {question: np.array([j.parts[question] for j in judgements]) for question in QUESTIONS}
        answers[name]["score"] = np.array([j.score for j in judgements], dtype=float)
    lines = [
        f"{len(rows)} lines of {len(set(prompts))} sentences of which neither critic has seen a grade.\n",
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
        own = np.array([row["kind"] == writer for row in rows])
        means = [
            grades["score"][own].mean() / HIGHEST["funny"],
            *(answers[name]["score"][own].mean() for name in NAMES),
        ]
        lines.append(f"| {writer} | {own.sum()} | " + " | ".join(f"{mean:.2f}" for mean in means) + " |")
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
    training = commands.add_parser("train", help="train one of the two into the package")
    training.add_argument("critic", choices=NAMES)
    training.add_argument("--question", choices=QUESTIONS, help="only this one; both without it")
    training.add_argument("--seed", type=int, default=0)
    commands.add_parser("measure", help="agreement with the grades of test sentences")
    options = parser.parse_args(arguments)
    if options.command == "train":
        train(options.critic, [options.question] if options.question else QUESTIONS, options.seed)
    else:
        print(measure())
    return 0


if __name__ == "__main__":
    sys.exit(main())
