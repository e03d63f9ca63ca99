"""The main job in the pocket world: imitate the teacher, then learn from the critic, and measure both.

run = pocket_run("causal", seed=0)
run.base.mean, run.imitation.mean, run.trained.mean        # exact score on held-out prompts
python -m humor_env.experiments.pocket.main_job --student causal --seeds 5      # the table, seed by seed
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import typer
from rich.console import Console
from rich.table import Table

from humor_env import pocket, registry
from humor_env.agents import ppo, sft
from humor_env.agents.session.checkpoint import CheckpointStore
from humor_env.agents.session.log import Echo, RunLog, Silent
from humor_env.agents.student import IMITATION, Student
from humor_env.agents.student.sampling import Sampling
from humor_env.experiments.runs.evaluate import Evaluation, evaluate, judged
from humor_env.pocket.teacher import PocketTeacher
from humor_env.prompts import load_prompts
from humor_env.shared.text_stats import frame_variety
from humor_env.types import Critic, Joke
from humor_env.vector import HumorVectorEnv

LINES_PER_PROMPT = 3  # as in the paper
SAMPLING = Sampling(max_new_tokens=48)
NOVELTY = 0.4  # its weight; the exact judge's is 1


def imitation_config(student: str, seed: int) -> sft.SFTConfig:
    return sft.SFTConfig(epochs=2, learning_rate=3e-3, seed=seed)


def training_critic() -> Critic:
    """The exact judge and a share of `novelty`: the judge does not penalise using one frame in every line, and a
    student that learned from it alone kept less than two thirds of its teacher's variety."""
    members = [{"critic": "pocket"}, {"critic": "novelty", "weight": NOVELTY}]
    return registry.critics.make("mix", critics=members)


def ppo_config(student: str, seed: int) -> ppo.PPOConfig:
    # What entropy and `novelty` cost in score and buy in variety: experiments/LOG.md, "What buys frames".
    steps, entropy_weight = (200, 0.06) if student == "seq2seq" else (240, 0.035)
    return ppo.PPOConfig(
        steps=steps,
        sampling=SAMPLING,
        decay="linear",
        kl_weight=0.01,
        entropy_weight=entropy_weight,
        value_learning_rate=3e-3,
        seed=seed,
    )


@dataclass(frozen=True)
class PocketRun:
    teacher: Evaluation
    base: Evaluation
    imitation: Evaluation
    trained: Evaluation
    seconds: dict[str, float]

    @property
    def gap_closed(self) -> float:
        """The share of the gap between imitation and a perfect 1.0 that learning from the critic closed."""
        return (self.trained.mean - self.imitation.mean) / (1 - self.imitation.mean)

    @property
    def frames_kept(self) -> float:
        """The share of the teacher's variety of sentence frames that the trained student has."""
        trained, teacher = (frame_variety([j.text for j in stage.jokes]) for stage in (self.trained, self.teacher))
        return trained / teacher

    def numbers(self) -> dict[str, Any]:
        stages = {e.name: e.numbers() for e in (self.teacher, self.base, self.imitation, self.trained)}
        return stages | {"gap_closed": self.gap_closed, "frames_kept": self.frames_kept, "seconds": self.seconds}


def pocket_run(
    student: str = "causal",
    seed: int = 0,
    *,
    folder: Path | None = None,
    settings: ppo.PPOConfig | None = None,
    say: Callable[[str], None] = lambda _: None,
    echo: Echo | None = None,
) -> PocketRun:
    """One seed of the main job, on the bundled student `student` ("causal", "seq2seq") or a model folder."""
    seconds: dict[str, float] = {}
    writer = Student.load(pocket.path(student) if student in ("causal", "seq2seq") else student, seed=seed)
    prompts = load_prompts("pocket")
    held_out = prompts.split("test")
    critic = registry.critics.make("pocket")
    teacher = PocketTeacher(seed=seed)
    teacher_lines = [Joke(p, teacher.lines(p, 1)[0], "teacher") for p in held_out]

    base = evaluate(writer, held_out, critic, adapter=None, sampling=SAMPLING, seed=seed, name="base")
    say(f"base: {base.mean:.3f}")
    log = RunLog(folder, echo=echo) if folder else Silent(echo)
    # A separate log, as in a run's folder: a learner that starts drops later steps from its log.
    first_log = RunLog(folder / "imitation", echo=echo) if folder else log
    began = time.perf_counter()
    imitated = sft.train(
        imitation_config(student, seed),
        writer,
        teacher.demonstrations(prompts.split("train"), LINES_PER_PROMPT),
        teacher.demonstrations(prompts.split("dev"), 1),
        first_log,
        checkpoints=CheckpointStore(folder / "imitation") if folder else None,
    )
    if imitated.stopped:
        raise KeyboardInterrupt
    seconds["imitation"] = time.perf_counter() - began
    imitation = evaluate(writer, held_out, critic, adapter=IMITATION, sampling=SAMPLING, seed=seed, name="imitation")
    say(f"imitation: {imitation.mean:.3f} after {seconds['imitation']:.0f} s")
    began = time.perf_counter()
    config = settings or ppo_config(student, seed)
    learned = ppo.train(
        config,
        HumorVectorEnv(prompts, training_critic(), num_envs=config.batch_size),
        writer,
        log,
        prompts=prompts.split("train"),
        checkpoints=CheckpointStore(folder / "ppo") if folder else None,
    )
    if learned.stopped:
        raise KeyboardInterrupt
    seconds["ppo"] = time.perf_counter() - began
    trained = evaluate(writer, held_out, critic, sampling=SAMPLING, seed=seed, name="ppo")
    say(f"ppo: {trained.mean:.3f} after {seconds['ppo']:.0f} s")
    if folder:
        writer.save_pretrained(folder / "student")
    return PocketRun(judged(teacher_lines, critic, name="teacher"), base, imitation, trained, seconds)


def show(runs: Sequence[PocketRun], console: Console) -> None:
    table = Table(
        "seed", "base", "imitation", "ppo", "gap closed", "meaning", "distinct-2 (teacher)", "frames kept", "seconds"
    )
    for seed, run in enumerate(runs):
        table.add_row(
            str(seed),
            *(
                f"{e.mean:.3f} [{e.interval[0]:.3f}, {e.interval[1]:.3f}]"
                for e in (run.base, run.imitation, run.trained)
            ),
            f"{run.gap_closed:.0%}",
            f"{run.imitation.parts['meaning']:.3f} -> {run.trained.parts['meaning']:.3f}",
            f"{run.trained.distinct_2:.3f} ({run.teacher.distinct_2:.3f})",
            f"{run.frames_kept:.0%}",
            f"{run.seconds['imitation']:.0f} + {run.seconds['ppo']:.0f}",
        )
    console.print(table)


def main(
    student: str = typer.Option("causal", help="causal, seq2seq, or a model folder."),
    seeds: int = typer.Option(5, help="Seeds 0 to n - 1."),
    threads: int = typer.Option(2, help="Torch threads."),
    steps: int | None = typer.Option(None, help="PPO steps; 0 measures imitation alone."),
    out: Path | None = typer.Option(None, help="Write all numbers as JSON here."),
) -> None:
    torch.set_num_threads(threads)
    console = Console(width=140)
    runs = []
    for seed in range(seeds):
        console.print(f"seed {seed}")
        settings = ppo_config(student, seed)
        settings = settings if steps is None else replace(settings, steps=steps)
        runs.append(pocket_run(student, seed, settings=settings, say=console.print))
        if out:
            out.write_text(json.dumps([r.numbers() for r in runs], indent=1) + "\n")
    show(runs, console)


if __name__ == "__main__":
    typer.run(main)
