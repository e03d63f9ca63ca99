"""What cells run in `test_benchmark.py`, light to import since each cell has a process of its own: a job that sleeps,
kills itself or fails, and feedback that counts in a file what it is asked."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

from humor_env.rewards.pocket import CrowdJudge
from humor_env.types import Judgement


def sleep_and_answer(spec, seed, folder):
    if spec.get("kill"):
        os.kill(os.getpid(), signal.SIGKILL)
    if spec.get("raise"):
        raise ValueError("the job is broken")
    time.sleep(spec.get("seconds", 0.0))
    with (folder / "times").open("a") as file:
        file.write("x")
    return {"seed": seed, "is": spec.get("is")}


def _count(what: str, prompts) -> None:
    # Training prompts only: the same feedback is also asked about dev and held-out ones, when its student is measured.
    with Path(os.environ["COUNTING_FILE"]).open("a") as file:
        file.writelines(f"{what}\n" for prompt in prompts if prompt.split == "train")


def counted(what: str) -> int:
    path = Path(os.environ["COUNTING_FILE"])
    return path.read_text().splitlines().count(what) if path.exists() else 0


class CountingCritic:
    name = "counting"

    def __call__(self, jokes):
        _count("line", [j.prompt for j in jokes])
        return [Judgement(self.name, (len(j.text) % 7) / 7) for j in jokes]


class CountingJudge(CrowdJudge):
    name = "counting"

    def __call__(self, pairs):
        _count("pair", [a.prompt for a, _ in pairs])
        return super().__call__(pairs)
