"""Train tiny students with each learner on this process's share of the batch, and save what came out.

accelerate launch --multi_gpu --num_processes 2 train_in_processes.py OUT.safetensors     # logs in OUT.runs
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from accelerate import PartialState
from safetensors.torch import save_file
from tiny import prompts, stir, student, vector_env

from humor_env.agents import grpo, ppo, rloo, sft
from humor_env.agents.session.checkpoint import CheckpointStore
from humor_env.agents.session.log import RunLog
from humor_env.agents.session.processes import is_main_process, process_count
from humor_env.agents.student import IMITATION
from humor_env.agents.student.sampling import Sampling
from humor_env.types import Demonstration

SHORT = Sampling(max_new_tokens=8)


def train(learner: str, folder: Path) -> dict[str, torch.Tensor]:
    one = student()
    # What every process is given: one folder for the log and the checkpoints.
    log, store = RunLog(folder / learner), CheckpointStore(folder / learner / "checkpoints")
    more = {"prompts": prompts(), "checkpoints": store}
    stir(one, IMITATION)
    one.start_policy_from_imitation()
    env = vector_env(8 // process_count(), attempts=2 if learner == "ppo" else 1)
    if learner == "sft":
        lines = [Demonstration(p, "Glaciers overtook it." * (i % 3 + 1), "t") for i, p in enumerate(prompts(8))]
        sft.train(sft.SFTConfig(epochs=2, batch_size=4), one, lines, lines[:3], log, checkpoints=store)
    elif learner == "ppo":
        config = ppo.PPOConfig(steps=3, batch_size=8, sampling=SHORT, scale_rewards=True, kl_target=0.1, epochs=2)
        ppo.train(config, env, one, log, **more)
    elif learner == "grpo":
        settings = grpo.GRPOConfig(steps=3, batch_size=8, siblings=4, sampling=SHORT, loss="grpo")
        grpo.train(settings, env, one, log, **more)
    else:
        rloo.train(rloo.RLOOConfig(steps=3, batch_size=8, siblings=4, sampling=SHORT), env, one, log, **more)
    return {f"{learner}/{n}": t.contiguous() for n, t in one.state().items()}


def main(out: str) -> None:
    torch.set_num_threads(1)
    PartialState(cpu=True)
    state: dict[str, torch.Tensor] = {}
    for learner in ("sft", "ppo", "grpo", "rloo"):
        state |= train(learner, Path(out).with_suffix(".runs"))
    if is_main_process():
        save_file(state, out)
        print(f"{process_count()} process(es)")


if __name__ == "__main__":
    main(sys.argv[1])
