"""The loop to read first: prompts, lines, judgements, one REINFORCE update. The other learners extend it.

    train(PlainConfig(steps=20), env.unwrapped, student, log, prompts=env.unwrapped.task.split_prompts)

Each line is compared with the mean of its siblings, the other lines for the same prompt; lines that scored better
become more likely. No reference, no clipping, no checkpoints; `grpo.py` is the same idea with all three.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from humor_env.agents.feedback.rollout import TextVectorEnv, collect
from humor_env.agents.session.log import Log, Silent
from humor_env.agents.student import POLICY, Student
from humor_env.agents.student.sampling import Sampling
from humor_env.prompts import PromptStream
from humor_env.types import Prompt


@dataclass(frozen=True)
class PlainConfig:
    steps: int = 100
    batch_size: int = 64  # lines per step
    siblings: int = 8  # lines per prompt
    learning_rate: float = 1e-3
    sampling: Sampling = field(default_factory=Sampling)
    seed: int = 0


def train(
    config: PlainConfig, env: TextVectorEnv, student: Student, log: Log | None = None, *, prompts: Sequence[Prompt]
) -> None:
    """Improve the student's `policy` adapter; `env` has `batch_size` sub-environments."""
    log = log or Silent()
    log.rewind(0)  # of a run that was stopped: this one begins again
    parameters = list(student.adapter_parameters(POLICY).values())
    student.activate(POLICY)
    student.train_only(parameters)
    optimizer = torch.optim.AdamW(parameters, lr=config.learning_rate, weight_decay=0.0)
    stream = PromptStream(prompts, seed=config.seed)
    random = torch.Generator().manual_seed(config.seed)
    for step in range(config.steps):
        batch = [p for p in stream.take(config.batch_size // config.siblings) for _ in range(config.siblings)]
        chance = lambda _, columns: torch.rand(config.batch_size, columns, generator=random)  # noqa: E731
        rollout = collect(env, student, config.sampling, batch, chance, reference=False)
        rewards, valid, group = rollout.rewards, rollout.valid, rollout.group
        siblings = (group[:, None] == group) & valid  # [B, B]: in row b, the lines that b is compared with
        mean = (siblings * rewards).sum(1) / siblings.sum(1).clamp(min=1)  # a failure is no 0
        advantages = (rewards - mean) * valid
        logprobs = student.score(rollout.rows, temperature=config.sampling.scoring_temperature).logprobs.sum(1)
        loss = -(advantages * logprobs).mean()

        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        log.metrics(step + 1, {"reward/mean": float(rewards[valid].mean()), "update/policy_loss": loss.item()})
