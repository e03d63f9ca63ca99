"""Train a tiny student in processes that are killed at random moments, until one reaches the end.

    python killed_runs.py FOLDER KILLS SEED        # prints how many were really killed while running

Run by `test_resume.py`. Processes are forked from this one, which has done the imports already: a kill then lands in
training, not in loading libraries.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from pathlib import Path

import numpy as np
import torch
from tiny import prompts, stir, student, vector_env

from humor_env.agents.ppo import PPOConfig, train
from humor_env.agents.session.checkpoint import CheckpointStore
from humor_env.agents.session.log import RunLog
from humor_env.agents.student import IMITATION
from humor_env.agents.student.sampling import Sampling

STEPS = 150


def run(folder: Path) -> None:
    random.seed(0), np.random.seed(0), torch.manual_seed(0)
    one = student()
    stir(one, IMITATION)
    one.start_policy_from_imitation()
    config = PPOConfig(
        steps=STEPS,
        batch_size=8,
        sampling=Sampling(max_new_tokens=8),
        epochs=2,
        minibatches=2,
        kl_target=0.05,
        scale_rewards=True,
        checkpoint_every=1,
        kl_limit=1e9,
    )
    train(
        config,
        vector_env(8),
        one,
        RunLog(folder),
        prompts=prompts(),
        checkpoints=CheckpointStore(folder / "checkpoints"),
    )


def start(folder: Path) -> int:
    child = os.fork()
    if child == 0:
        torch.set_num_threads(1)
        try:
            run(folder)
        except BaseException as problem:
            print(f"the run failed: {problem!r}", file=sys.stderr, flush=True)
            os._exit(1)
        os._exit(0)
    return child


def main(folder: Path, kills: int, seed: int) -> None:
    torch.set_num_threads(1)
    chance = random.Random(seed)
    killed = 0
    for _ in range(kills):
        child = start(folder)
        time.sleep(chance.uniform(0.05, 0.6))
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        killed += os.WIFSIGNALED(status)
    _, status = os.waitpid(start(folder), 0)
    if status:
        raise SystemExit(1)
    print(killed)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
