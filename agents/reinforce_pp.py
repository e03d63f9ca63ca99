"""REINFORCE++: PPO's clipped update without a value function; the batch's own mean and deviation serve as the baseline.

    result = train(ReinforcePPConfig(steps=60), env, student, log, prompts=prompts)

One step (phases and names as in `ppo.py`, so that the two files compare line by line):

1. *Collect*: the student writes a line for each of `batch_size` prompts; the environment has them judged.
2. *Reference and KL*: log-probabilities under the policy and under the frozen imitation, per token.
3. *Rewards on tokens*: the score is on the last real token; a line cut off before its end loses `missing_end_penalty`;
   each token loses `kl_weight` times its log-ratio to the imitation (k1).
4. *Advantages*: the sum of rewards from this token on, whitened over the tokens of the global batch. With
   `group_baseline` the mean score of a line's siblings is first subtracted from its score.
5. *Update*: clipped ratio per token, the mean over the tokens of the step.
6. *Log and evaluate.*

Deviations: (a) unscored lines are left out of every mean; (b) to (e) as in `ppo.py`.
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
from humor_env.agents.update.advantages import gae, group_advantages, place_on_last_token, whiten
from humor_env.agents.update.on_policy import OnPolicySession
from humor_env.errors import InvalidOption
from humor_env.types import Prompt


@dataclass(frozen=True)
class ReinforcePPConfig(OnPolicyConfig):
    clip: float = 0.2
    kl_weight: float = 0.05
    group_baseline: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.group_baseline and self.siblings < 2:
            raise InvalidOption(f"group_baseline needs at least 2 siblings, found {self.siblings}.")


def reinforce_pp_loss(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    mask: Tensor,
    token_count: Tensor | float,
    *,
    clip: float,
) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss, and *sums* over tokens to log. Inputs are `[B, T]`; `token_count` is the whole step's."""
    mask = mask.to(logprobs.dtype)
    ratio = ((logprobs - old_logprobs) * mask).exp()
    losses = -torch.minimum(ratio * advantages, ratio.clamp(1 - clip, 1 + clip) * advantages)
    sums = {
        "policy_loss": losses,
        "ratio": ratio,
        "clip_share": ((ratio - 1).abs() > clip).to(mask.dtype),
        "approx_kl": kl_k3(old_logprobs, logprobs),
    }
    return (losses * mask).sum() / token_count, {n: (s.detach() * mask).sum() for n, s in sums.items()}


def token_returns(rewards: Tensor, mask: Tensor, following: Tensor) -> Tensor:
    """`[B, T]`: the sum of rewards from each token on, across all attempts of its episode."""
    returns, _ = gae(rewards, torch.zeros_like(rewards), mask, gamma=1.0, lam=1.0, following=following)
    return returns


def train(
    config: ReinforcePPConfig,
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
            mask = rollout.mask
            kl = kl_k1(rollout.logprobs, rollout.ref_logprobs) * mask

            # 3. Rewards on tokens
            scores = torch.where(rollout.valid, rollout.rewards, 0.0)
            scores = scores - config.missing_end_penalty * (~rollout.finished).float()
            if config.group_baseline:
                scores = group_advantages(scores, rollout.group, rollout.valid, scale=False)
            token_rewards = place_on_last_token(scores, mask) - config.kl_weight * kl

            # 4. Advantages
            advantages = whiten(token_returns(token_rewards, mask, rollout.following), mask)

            # 5. Update
            for epoch in range(config.epochs):
                for batch in step.minibatches(rollout, epoch):
                    for part in batch:
                        loss, sums = reinforce_pp_loss(
                            part.logprobs,
                            part.old_logprobs,
                            part(advantages),
                            part.mask,
                            batch.tokens,
                            clip=config.clip,
                        )
                        loss.backward()
                        part.record(sums)
                    batch.clip_and_step(config.max_grad_norm)

            # 6. Log and evaluate
            step.log()
    return session.result()
