"""What two processes do that do not both do the same. After each case, each writes what it found as JSON to OUT.RANK.

WORLD_SIZE=2 RANK=0 LOCAL_RANK=0 MASTER_ADDR=127.0.0.1 MASTER_PORT=29500 apart_in_processes.py OUT      # and RANK=1
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from tiny import letters_critic, prompts, student, vector_env

from humor_env.agents import grpo, ppo
from humor_env.agents.best_of_n import BestOfN, BestOfNConfig
from humor_env.agents.session.limits import Limits, RunControl
from humor_env.agents.session.processes import is_main_process, process_count, process_index
from humor_env.agents.student.sampling import Sampling
from humor_env.agents.trl.peers import TRLConfig, train_grpo
from humor_env.experiments.runs.evaluate import written_by
from humor_env.types import Judgement

SHORT = Sampling(max_new_tokens=4)
EVALUATING = 6.0  # seconds, and no step of a tiny student takes as long


def best_of_n() -> dict[str, Any]:
    """The main process measures; the other goes on to the next exchange."""
    lines = 0
    if is_main_process():
        writer = BestOfN(student(), letters_critic(), BestOfNConfig(n=2, sampling=SHORT))
        lines = len(written_by(writer, prompts(4), lines=2, seed=0))
    PartialState().wait_for_everyone()
    return {"lines": lines}


def evaluate(_: object) -> dict[str, float]:
    """As a run measures: only in the main process."""
    if not is_main_process():
        return {}
    time.sleep(EVALUATING)
    return {"score": 0.5}


def budget() -> dict[str, Any]:
    control = RunControl(Limits(seconds=2.5 * EVALUATING))
    config = grpo.GRPOConfig(steps=4, batch_size=8, siblings=4, evaluate_every=1, sampling=SHORT)
    env = vector_env(8 // process_count())
    result = grpo.train(config, env, student(), prompts=prompts(), evaluate=evaluate, control=control)
    return {"steps": result.steps, "why": result.why, "evaluations": len(result.evaluations)}


def minibatches() -> dict[str, Any]:
    """In the second process three of four first lines cannot be judged, so it has fewer second lines than the first."""

    def critic(jokes: list[Any]) -> list[Judgement]:
        fails = process_index() == 1 and len(jokes) == 4
        return [
            Judgement("c", None, error="away") if fails and i < 3 else Judgement("c", 0.5) for i in range(len(jokes))
        ]

    config = ppo.PPOConfig(steps=2, batch_size=8, minibatches=4, sampling=SHORT)
    result = ppo.train(config, vector_env(4, critic, attempts=2), student(), prompts=prompts())
    return {"steps": result.steps}


def trl_grpo() -> dict[str, Any]:
    control = RunControl(Limits(seconds=1.5 * EVALUATING))
    config = TRLConfig(steps=2, batch_size=8, siblings=4, evaluate_every=1, sampling=SHORT)
    lines = []

    def critic(jokes: list[Any]) -> list[Judgement]:
        lines.append(len(jokes))
        return letters_critic()(jokes)

    result = train_grpo(config, critic, student(), prompts=prompts(), evaluate=evaluate, control=control)
    return {"steps": result.steps, "why": result.why, "lines": lines, "counted": control.samples}


def main(out: str) -> None:
    torch.set_num_threads(1)
    PartialState(cpu=True)
    found: dict[str, Any] = {}
    for case in (best_of_n, budget, minibatches, trl_grpo):
        found[case.__name__] = case()
        Path(f"{out}.{process_index()}").write_text(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1])
