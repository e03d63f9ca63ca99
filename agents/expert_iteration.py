"""Expert iteration: write several lines, keep the best, imitate them, repeat.

    result = train(ExpertIterationConfig(steps=60, siblings=8), env, student, log, prompts=prompts)

Learning from a critic without policy gradients: what best-of-n finds by search is put into the weights. One step
(phases and names as in `ppo.py`, so that the two files compare line by line):

1. *Collect*: the student writes `siblings` lines for each of `batch_size / siblings` prompts; they are judged.
2. *Reference*: only to report the policy's distance from the imitation.
3. *Rewards*: one number per line; a line cut off before its end loses `missing_end_penalty`.
4. *Advantages*: 1 for the `keep` best scored siblings whose reward is at least `at_least` and above their group's mean,
   else 0. A group of equal rewards teaches nothing.
5. *Update*: cross-entropy on the kept lines, `epochs` passes over them.
6. *Log and evaluate.*

Deviations: (a) unscored lines are never kept and do not count in their group's mean; (b) each iteration starts from
the current policy, not from the imitation; (c) to (e) as in `ppo.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from humor_env.agents.feedback.metrics import NO_SPREAD
from humor_env.agents.feedback.rollout import TextVectorEnv
from humor_env.agents.session.checkpoint import CheckpointStore
from humor_env.agents.session.config import OnPolicyConfig
from humor_env.agents.session.limits import RunControl
from humor_env.agents.session.log import Log
from humor_env.agents.session.processes import sum_over_processes
from humor_env.agents.session.session import Evaluate, TrainResult
from humor_env.agents.student import Student
from humor_env.agents.student.transfers import read, send
from humor_env.agents.student.writer import Backend
from humor_env.agents.update.imitation import sft_loss
from humor_env.agents.update.on_policy import OnPolicySession
from humor_env.errors import InvalidOption
from humor_env.types import Prompt


@dataclass(frozen=True)
class ExpertIterationConfig(OnPolicyConfig):
    siblings: int = 8  # lines per prompt
    keep: int = 1  # lines per prompt to imitate
    at_least: float = 0.0  # lowest reward of a line to imitate

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.siblings <= self.keep:
            raise InvalidOption(f"siblings must be above keep; found {self.siblings} and {self.keep}.")
        if self.minibatches != 1:
            raise InvalidOption(f"The kept lines form one minibatch, found minibatches={self.minibatches}.")


def best_of_groups(rewards: Tensor, group: Tensor, valid: Tensor, *, keep: int, at_least: float) -> Tensor:
    """`[B]`: 1 on the lines to imitate. Ties go to the line written first."""
    kept = torch.zeros_like(rewards)
    for g in group.unique():
        rows = ((group == g) & valid).nonzero().squeeze(1)
        if not len(rows):
            continue
        best = rows[rewards[rows].argsort(descending=True, stable=True)[:keep]]
        # Not the mean as it is: rounding puts the mean of eight equal rewards below them.
        kept[best] = ((rewards[best] > rewards[rows].mean() + NO_SPREAD) & (rewards[best] >= at_least)).to(kept.dtype)
    return kept


def train(
    config: ExpertIterationConfig,
    env: TextVectorEnv | Sequence[TextVectorEnv],
    student: Student,
    log: Log | None = None,
    *,
    prompts: Sequence[Prompt],
    checkpoints: CheckpointStore | None = None,
    evaluate: Evaluate | None = None,
    backend: Backend | None = None,
    control: RunControl | None = None,
) -> TrainResult:
    """Improve the student's `policy` adapter. Arguments and behaviour as in `ppo.train`."""
    with OnPolicySession(config, env, student, log, prompts, checkpoints, evaluate, backend, control) as session:
        for step in session.steps():
            # 1. Collect; 2. reference (while the critic thinks)
            rollout = step.collect(old_logprobs=False)

            # 3. Rewards
            rewards = torch.where(rollout.valid, rollout.rewards, 0.0)
            rewards = rewards - config.missing_end_penalty * (~rollout.finished).float()

            # 4. Advantages
            on_host = read(rewards, rollout.group, rollout.valid)
            advantages = best_of_groups(*on_host, keep=config.keep, at_least=config.at_least)
            kept_mask = rollout.mask * send(rollout.mask.device, advantages)[0][:, None]
            kept = advantages.nonzero().squeeze(1)
            if not len(kept):
                kept = kept.new_zeros(1)  # masked: joins the exchange with other processes, teaches nothing
            kept_count = float(sum_over_processes(advantages.sum()))

            # 5. Update
            for _ in range(config.epochs if kept_count else 0):
                for batch in step.minibatches(rollout, mask=kept_mask, rows=kept):
                    for part in batch:
                        loss = sft_loss(part.logprobs, part.mask, batch.tokens)
                        loss.backward()
                        part.record({"policy_loss": -(part.logprobs * part.mask).sum()})
                    batch.clip_and_step(config.max_grad_norm)

            # 6. Log and evaluate
            step.log({"update/kept_lines": kept_count})
    return session.result()
