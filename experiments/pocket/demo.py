"""The demo, which needs only this package: a student imitates a teacher, then learns from a critic.

    python -m humor_env.experiments.pocket.demo --seed 0

It needs no network, key or download, and takes a few minutes on two cores. The result is a table base -> imitation ->
PPO, judged by the pocket world's exact judge on held-out sentences, ten of the student's lines before and after, and
a report.
"""

from __future__ import annotations

import argparse
import os
import shlex
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from humor_env.experiments.pocket.main_job import PocketRun

SHOWN = 10
STEPS = 160  # two thirds of the main job's, so that it takes less than four minutes


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Train a small student to be funny in the pocket world.")
    parser.add_argument("--seed", type=int, default=0, help="random seed")
    parser.add_argument("--student", choices=("causal", "seq2seq"), default="causal", help="which bundled student")
    parser.add_argument("--out", type=Path, help="the folder to write; default: a new runs/demo")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="torch threads; default: all cores")
    options = parser.parse_args(arguments)
    if options.threads < 1:
        parser.error("--threads must be at least 1")
    console = Console()
    out = options.out or free_folder()
    try:
        run_demo(console, options.student, options.seed, out, options.threads)
    except KeyboardInterrupt:
        again = f"humor-env demo --student {options.student} --seed {options.seed} --out {shlex.quote(str(out))}"
        console.print(Text(f"Stopped. To continue: {again}"), soft_wrap=True)
        raise SystemExit(130) from None


def free_folder() -> Path:
    """runs/demo, with a number if it exists already; a temporary folder if this one is not writable."""
    number, folder = 1, Path("runs", "demo")
    try:
        while folder.exists():
            number += 1
            folder = Path("runs", f"demo-{number}")
        folder.mkdir(parents=True)
    except OSError:
        return Path(tempfile.mkdtemp(prefix="humor-env-demo-"))
    return folder


def run_demo(console: Console, student: str, seed: int, out: Path, threads: int) -> None:
    import torch

    from humor_env.experiments.pocket.main_job import pocket_run, ppo_config

    torch.set_num_threads(threads)
    settings = replace(ppo_config(student, seed), steps=STEPS)
    console.print(
        "[bold]The pocket world[/]: a literal sentence in, a humorous paraphrase out.\n"
        'A punchline is a witness and what it did: "The meeting was so slow that glaciers overtook it."\n'
    )
    columns = (
        TextColumn("{task.description:10}"),
        BarColumn(),
        TextColumn("{task.fields[status]}"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal) as bars:
        imitating = bars.add_task("imitation", total=None, status="")
        learning = bars.add_task("PPO", total=settings.steps, status="")

        def echo(step: int, numbers: Mapping[str, float]) -> None:
            if "sft/loss" in numbers:
                bars.update(imitating, completed=step, status=f"loss {numbers['sft/loss']:.2f}")
            elif "reward/mean" in numbers:
                bars.update(learning, completed=step, status=f"reward {numbers['reward/mean']:.2f}")
                if not console.is_terminal and step % 25 == 0:
                    console.print(
                        f"  step {step}: reward {numbers['reward/mean']:.2f}, KL {numbers['kl/per_line']:.1f}"
                    )

        def say(text: str) -> None:
            bars.console.print(Text(text))

        run = pocket_run(student, seed, folder=out, settings=settings, say=say, echo=echo)

    stages = (run.base, run.imitation, run.trained, run.teacher)
    table = Table("", "exact score", "95 % interval", "distinct-2", title="on held-out sentences")
    parts = Table("", *run.trained.parts, title="the parts of the score")
    for stage in stages:
        low, high = stage.interval
        table.add_row(stage.name, f"{stage.mean:.3f}", f"{low:.3f} to {high:.3f}", f"{stage.distinct_2:.2f}")
        parts.add_row(stage.name, *(f"{stage.parts.get(name, float('nan')):.2f}" for name in run.trained.parts))
    console.print(table)
    console.print(parts)
    console.print(
        f"PPO closed {run.gap_closed:.0%} of the gap between imitation and a perfect 1.0. The lines have "
        f"{run.frames_kept:.0%} of the teacher's variety of sentence frames.\n"
    )
    for before, was, after, now in list(
        zip(run.imitation.jokes, run.imitation.judgements, run.trained.jokes, run.trained.judgements, strict=True)
    )[:SHOWN]:
        # As Text, so that lines are not parsed as markup.
        console.print(Text(before.prompt.text, style="bold"))
        console.print(Text.assemble((f"  {was.score or 0:.2f}  ", "dim"), before.text))
        console.print(Text.assemble((f"  {now.score or 0:.2f}  ", "green"), after.text))
    console.print(Text(f"\nSaved in {out}: metrics, each line with its judgement, the student as plain PEFT adapters."))
    console.print(Text(f"report: {save_report(run, out, student, seed)}"), soft_wrap=True)


def save_report(run: PocketRun, out: Path, student: str, seed: int) -> Path:
    """Arrange the run's files as `humor-env train` does, and make their report."""
    from humor_env.experiments.reports.report import write_report
    from humor_env.experiments.runs.evaluate import save_lines
    from humor_env.experiments.runs.run_folder import RECORD, RESULTS, commit, versions, write_json

    stages = {stage.name: save_lines(stage, out) for stage in (run.base, run.teacher, run.imitation, run.trained)}
    write_json(out / RESULTS, {"seed": seed, "stages": stages, "seconds": run.seconds})
    facts = {"learner": "ppo", "student": f"pocket:{student}", "environment": "humor_env/Paraphrase-v0"}
    facts |= {"teacher": "pocket", "training critic": "pocket and novelty", "held-out judge": "pocket"}
    again = f"humor-env demo --student {student} --seed {seed}"
    record = {"repeat": again, "versions": versions(), "commit": commit(), "facts": facts, "device": "cpu"}
    write_json(out / RECORD, record | {"platform": sys.platform})
    return write_report([out], out / "report.html")


if __name__ == "__main__":
    main()
