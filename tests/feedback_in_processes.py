"""Train tiny students with each learner of preferences on this process's share, and save what came out.

accelerate launch --multi_gpu --num_processes 2 feedback_in_processes.py OUT.safetensors
"""

from __future__ import annotations

import sys

import torch
from accelerate import PartialState
from safetensors.torch import save_file
from tiny import letters_critic, prompts, stir, student, vector_env

from humor_env.agents import brio, dpo, expert_iteration, reinforce_pp, self_distill
from humor_env.agents.feedback.pairs import CriticAsJudge, PairConfig
from humor_env.agents.session.processes import is_main_process, process_count
from humor_env.agents.student import IMITATION
from humor_env.agents.student.sampling import Sampling
from humor_env.types import Demonstration

SHORT = Sampling(max_new_tokens=8)
PAIRS = {
    "epochs": 2,
    "rounds": 2,
    "batch_size": 4,
    "pairs": PairConfig(candidates=3, sampling=SHORT, length_filter="off"),
}
ONLINE = {"steps": 3, "batch_size": 8, "siblings": 4, "sampling": SHORT}


def train(learner: str) -> dict[str, torch.Tensor]:
    one = student()
    stir(one, IMITATION)
    one.start_policy_from_imitation()
    judge, env = CriticAsJudge(letters_critic()), vector_env(8 // process_count())
    if learner == "dpo":
        dpo.train(dpo.DPOConfig(**PAIRS), judge, one, prompts=prompts(7))  # does not divide by two
    elif learner == "brio":
        lines = [Demonstration(p, "Glaciers overtook it.", "t") for p in prompts()]
        brio.train(brio.BRIOConfig(**PAIRS), judge, one, prompts=prompts(), demonstrations=lines)
    elif learner == "sd":
        self_distill.train(self_distill.SelfDistillConfig(**PAIRS), judge, one, prompts=prompts())
    elif learner == "expert":
        settings = expert_iteration.ExpertIterationConfig(**ONLINE)
        expert_iteration.train(settings, env, one, prompts=prompts())
    else:
        reinforce_pp.train(reinforce_pp.ReinforcePPConfig(**ONLINE), env, one, prompts=prompts())
    return {f"{learner}/{n}": t.contiguous() for n, t in one.state().items()}


def main(out: str) -> None:
    torch.set_num_threads(1)
    PartialState(cpu=True)
    state: dict[str, torch.Tensor] = {}
    for learner in ("dpo", "brio", "sd", "expert", "reinforce++"):
        state |= train(learner)
    if is_main_process():
        save_file(state, out)
        print(f"{process_count()} process(es)")


if __name__ == "__main__":
    main(sys.argv[1])
