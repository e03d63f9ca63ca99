"""REINFORCE with a leave-one-out baseline: each line is compared with the mean of its *other* siblings.

    result = train(RLOOConfig(steps=60, siblings=4), env, student, log, prompts=prompts)

One step (phases and names as in `ppo.py`, so that the two files compare line by line):

1. *Collect*: the student writes `siblings` lines for each of `batch_size / siblings` prompts; they are judged.
2. *Reference and KL*: log-probabilities under the policy and under the frozen imitation, per token.
3. *Rewards*: one number per line: the score, minus `kl_weight` times the line's log-ratio to the imitation (k1), minus
   `missing_end_penalty` for a line cut off before its end.
4. *Advantages*: the reward minus the mean reward of the other scored siblings.
5. *Update*: a whole line is one action: its ratio is the product of its tokens' ratios, clipped; the loss is the mean
   over lines.
6. *Log and evaluate.*

Deviations: (a) unscored lines are left out of their siblings' baseline and get no advantage; (b) to (e) as in `ppo.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from humor_env.agents.feedback.rollout import TextVectorEnv
from humor_env.agents.session.checkpoint import CheckpointStore
from humor_env.agents.session.config import OnPolicyConfig
from humor_env.agents.session.limits import RunControl
from humor_env.agents.session.log import Log
from humor_env.agents.session.session import Evaluate, TrainResult
from humor_env.agents.student import Student
from humor_env.agents.student.logprobs import kl_k1, kl_k3
from humor_env.agents.student.writer import Backend
from humor_env.agents.update.advantages import leave_one_out
from humor_env.agents.update.on_policy import OnPolicySession
from humor_env.types import Prompt


@dataclass(frozen=True)
class RLOOConfig(OnPolicyConfig):
    siblings: int = 4  # lines per prompt
    clip: float = 0.2
    kl_weight: float = 0.05

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_groups()
        self.check_even_minibatches()


def rloo_loss(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    mask: Tensor,
    line_count: Tensor | float,
    *,
    clip: float,
) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss, and sums to log. `advantages` is `[B]`, the rest `[B, T]`; `line_count` is the whole step's."""
    mask = mask.to(logprobs.dtype)
    ratio = ((logprobs - old_logprobs) * mask).sum(-1).exp()
    losses = -torch.minimum(ratio * advantages, ratio.clamp(1 - clip, 1 + clip) * advantages)
    per_token = torch.ones_like(mask)
    sums = {
        "policy_loss": losses[:, None] * per_token,
        "ratio": ratio[:, None] * per_token,
        "clip_share": ((ratio - 1).abs() > clip)[:, None] * per_token,
        "approx_kl": kl_k3(old_logprobs, logprobs),
    }
    return losses.sum() / line_count, {n: (s.detach() * mask).sum() for n, s in sums.items()}


def train(
    config: RLOOConfig,
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
            rollout = step.collect()
            kl = kl_k1(rollout.logprobs, rollout.ref_logprobs) * rollout.mask

            # 3. Rewards
            scores = torch.where(rollout.valid, rollout.rewards, 0.0)
            scores = scores - config.missing_end_penalty * (~rollout.finished).float()
            scores = scores - config.kl_weight * kl.sum(-1)

            # 4. Advantages
            advantages = leave_one_out(scores, rollout.group, rollout.valid)

            # 5. Update
            lines = step.lines / config.minibatches
            for epoch in range(config.epochs):
                for batch in step.minibatches(rollout, epoch):
                    for part in batch:
                        loss, sums = rloo_loss(
                            part.logprobs,
                            part.old_logprobs,
                            part(advantages),
                            part.mask,
                            lines,
                            clip=config.clip,
                        )
                        loss.backward()
                        part.record(sums)
                    batch.clip_and_step(config.max_grad_norm)

            # 6. Log and evaluate
            step.log()
    return session.result()
