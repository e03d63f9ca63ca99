"""Group-relative policy optimisation: siblings are each other's baseline, so no value function is needed.

    result = train(GRPOConfig(steps=60, siblings=8), env, student, log, prompts=prompts)

One step (phases and names as in `ppo.py`, so that the two files compare line by line):

1. *Collect*: the student writes `siblings` lines for each of `batch_size / siblings` prompts; they are judged.
2. *Reference and KL*: log-probabilities under the policy and under the frozen imitation, per token.
3. *Rewards*: one number per line; a line cut off before its end loses `missing_end_penalty`.
4. *Advantages*: the reward minus its group's mean, divided by the group's deviation where `scale_by_group`.
5. *Update*: clipped ratio (`clip_high` lets it rise further than fall, as in DAPO) plus `kl_weight` times the k3
   estimate. `loss` selects the average: "dapo" weighs all tokens equally, "grpo" all lines equally; "dr_grpo" divides
   the sum over tokens by a constant length, which favours no length.
6. *Log and evaluate.*

Deviations: (a) unscored lines are left out of their group's mean and get no advantage; (b) to (e) as in `ppo.py`.
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
from humor_env.agents.student.logprobs import kl_k3
from humor_env.agents.student.writer import Backend
from humor_env.agents.update.advantages import group_advantages
from humor_env.agents.update.on_policy import OnPolicySession
from humor_env.errors import InvalidOption
from humor_env.types import Prompt


@dataclass(frozen=True)
class GRPOConfig(OnPolicyConfig):
    siblings: int = 8  # lines per prompt
    clip: float = 0.2
    clip_high: float = 0.2
    loss: str = "dapo"  # "dapo", "grpo" or "dr_grpo"
    scale_by_group: bool = True
    kl_weight: float = 0.05
    unbiased_kl: bool = True  # times the ratio: the same value at ratio 1, but with the KL's own gradient

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_groups()
        self.check_even_minibatches()
        if self.loss not in ("dapo", "grpo", "dr_grpo"):
            raise InvalidOption(f"loss must be 'dapo', 'grpo' or 'dr_grpo', found '{self.loss}'.")


def grpo_loss(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    ref_logprobs: Tensor | None,
    mask: Tensor,
    token_count: Tensor | float,
    line_count: Tensor | float,
    *,
    clip: float,
    clip_high: float,
    kl_weight: float,
    unbiased_kl: bool,
    loss: str,
    longest: int,
) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss, and sums over tokens to log. `advantages` is `[B]`, the rest `[B, T]`.

    `token_count` and `line_count` are the whole step's; `longest` is the length that "dr_grpo" divides by.
    """
    mask = mask.to(logprobs.dtype)
    ratio = ((logprobs - old_logprobs) * mask).exp()
    spread = advantages[:, None]
    policy_losses = -torch.minimum(ratio * spread, ratio.clamp(1 - clip, 1 + clip_high) * spread)
    losses = policy_losses
    if ref_logprobs is not None and kl_weight:
        kl = kl_k3(logprobs, ref_logprobs)
        losses = losses + kl_weight * (ratio * kl if unbiased_kl else kl)
    losses = losses * mask
    if loss == "dapo":
        total = losses.sum() / token_count
    elif loss == "grpo":
        total = (losses.sum(-1) / mask.sum(-1).clamp(min=1)).sum() / line_count
    else:
        total = losses.sum() / (line_count * longest)
    sums = {
        "policy_loss": policy_losses,
        "ratio": ratio,
        "clip_share": ((ratio < 1 - clip) | (ratio > 1 + clip_high)).to(mask.dtype),
        "approx_kl": kl_k3(old_logprobs, logprobs),
    }
    return total, {n: (s.detach() * mask).sum() for n, s in sums.items()}


def train(
    config: GRPOConfig,
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
            rollout = step.collect(reference=config.kl_weight > 0)

            # 3. Rewards
            scores = torch.where(rollout.valid, rollout.rewards, 0.0)
            scores = scores - config.missing_end_penalty * (~rollout.finished).float()

            # 4. Advantages
            advantages = group_advantages(scores, rollout.group, rollout.valid, scale=config.scale_by_group)

            # 5. Update
            lines = step.lines / config.minibatches
            for epoch in range(config.epochs):
                for batch in step.minibatches(rollout, epoch):
                    for part in batch:
                        loss, sums = grpo_loss(
                            part.logprobs,
                            part.old_logprobs,
                            part(advantages),
                            part(rollout.ref_logprobs) if config.kl_weight else None,
                            part.mask,
                            batch.tokens,
                            lines,
                            clip=config.clip,
                            clip_high=config.clip_high,
                            kl_weight=config.kl_weight,
                            unbiased_kl=config.unbiased_kl,
                            loss=config.loss,
                            longest=config.sampling.max_new_tokens,
                        )
                        loss.backward()
                        part.record(sums)
                    batch.clip_and_step(config.max_grad_norm)

            # 6. Log and evaluate
            step.log()
    return session.result()
