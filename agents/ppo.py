"""Proximal policy optimisation of a student against a critic, over a Gymnasium environment.

    result = train(PPOConfig(steps=60), env, student, log, prompts=prompts)

One step:

1. *Collect*: the student writes a line for each of `batch_size` prompts; the environment has them judged.
2. *Reference and KL*: log-probabilities under the policy and under the frozen imitation, per token.
3. *Rewards on tokens*: the score is on the last real token; a line cut off before its end loses `missing_end_penalty`;
   each token loses `kl_weight` times its log-ratio to the imitation (k1), or the loss includes the k3 estimate.
4. *Advantages*: generalised advantage estimation over the response tokens, across all attempts of an episode;
   whitened over the global batch.
5. *Update*: clipped ratio, clipped value, entropy bonus, optional imitation loss; gradient norm clipped.
6. *Log and evaluate.*

Deviations from the usual implementations, each with its reason:

a. Unscored lines (`valid` False) are left out of every mean instead of getting a score of 0.
b. With one pass and one minibatch the old log-probabilities are those of the update itself (the ratio is 1), and the
   values are computed while sampling: two forward passes fewer. The sampler's log-probabilities are compared with the
   update's at run time, so that a misalignment stops the run instead of silently corrupting it.
c. Losses are divided by the token count of the whole minibatch over all processes, never by micro-batch, so that the
   micro-batch size does not change the step, nor with one minibatch the number of processes. With several, each
   process draws its part of a minibatch from its own lines.
d. The reference is the imitation adapter on the same base, not the base with adapters off.
e. Random numbers depend only on (seed, step, attempt, row), so a run is reproducible when resumed or on more processes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from humor_env.agents.feedback.metrics import value_numbers
from humor_env.agents.feedback.rollout import TextVectorEnv
from humor_env.agents.session.checkpoint import CheckpointStore
from humor_env.agents.session.config import OnPolicyConfig
from humor_env.agents.session.limits import RunControl
from humor_env.agents.session.log import Log
from humor_env.agents.session.processes import spread_over_processes
from humor_env.agents.session.schedule import AdaptiveCoefficient, RunningScale
from humor_env.agents.session.session import Evaluate, TrainResult
from humor_env.agents.student import POLICY, Student
from humor_env.agents.student.logprobs import kl_k1, kl_k3
from humor_env.agents.student.writer import Backend
from humor_env.agents.update.advantages import gae, place_on_last_token, whiten
from humor_env.agents.update.imitation import ImitationLoss
from humor_env.agents.update.minibatch import ScoreOptions
from humor_env.agents.update.on_policy import OnPolicySession
from humor_env.errors import InvalidOption
from humor_env.types import Demonstration, Prompt


@dataclass(frozen=True)
class PPOConfig(OnPolicyConfig):
    value_learning_rate: float = 1e-2
    gamma: float = 1.0
    lam: float = 0.95
    clip: float = 0.2
    value_clip: float = 0.2
    value_weight: float = 0.5
    detach_values: bool = True  # the value loss trains the head, not the student
    value_warmup: int = 0  # first steps, in which only the value head learns
    entropy_weight: float = 0.0
    kl_weight: float = 0.05
    kl_in: str = "reward"  # "reward": k1 per token in the reward; "loss": k3 in the loss
    kl_target: float | None = None  # KL per line that the weight is adjusted to reach
    kl_horizon: float = 10_000.0
    kl_stop: float | None = None  # KL per token, old to new policy, at which a batch's remaining passes are skipped
    whiten_advantages: bool = True
    scale_rewards: bool = False  # divide by their running standard deviation
    imitation_weight: float = 0.0
    imitation_decay: float = 0.99  # per step

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.kl_in not in ("reward", "loss"):
            raise InvalidOption(f"kl_in must be 'reward' or 'loss', found '{self.kl_in}'.")


def ppo_loss(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    values: Tensor,
    old_values: Tensor,
    returns: Tensor,
    mask: Tensor,
    token_count: Tensor | float,
    *,
    clip: float,
    value_clip: float,
    value_weight: float,
    ref_logprobs: Tensor | None = None,
    kl_weight: float = 0.0,
    entropy: Tensor | None = None,
    entropy_weight: float = 0.0,
) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss, and *sums* over tokens to log (divide by the token count). Inputs are `[B, T]`."""
    mask = mask.to(logprobs.dtype)
    log_ratio = (logprobs - old_logprobs) * mask
    ratio = log_ratio.exp()
    policy_losses = -torch.minimum(ratio * advantages, ratio.clamp(1 - clip, 1 + clip) * advantages)
    clipped_values = old_values + (values - old_values).clamp(-value_clip, value_clip)
    value_losses = 0.5 * torch.maximum((values - returns).square(), (clipped_values - returns).square())
    losses = policy_losses + value_weight * value_losses
    if ref_logprobs is not None and kl_weight:
        # Times the ratio: the same value at ratio 1, but with the KL's own gradient.
        losses = losses + kl_weight * ratio * kl_k3(logprobs, ref_logprobs)
    if entropy is not None and entropy_weight:
        losses = losses - entropy_weight * entropy
    sums = {
        "policy_loss": policy_losses,
        "value_loss": value_losses,
        "ratio": ratio,
        "ratio_deviation": (ratio - 1).abs(),
        "clip_share": ((ratio - 1).abs() > clip).to(mask.dtype),
        "approx_kl": kl_k3(old_logprobs, logprobs),  # KL(old, new) of the step being taken, from old's samples
    }
    if entropy is not None:
        sums["entropy"] = entropy
    return (losses * mask).sum() / token_count, {n: (s.detach() * mask).sum() for n, s in sums.items()}


def train(
    config: PPOConfig,
    env: TextVectorEnv | Sequence[TextVectorEnv],
    student: Student,
    log: Log | None = None,
    *,
    prompts: Sequence[Prompt],
    demonstrations: Sequence[Demonstration] = (),
    checkpoints: CheckpointStore | None = None,
    evaluate: Evaluate | None = None,
    backend: Backend | None = None,
    control: RunControl | None = None,
) -> TrainResult:
    """Improve the student's `policy` adapter. `env` holds this process's share of `batch_size` sub-environments;
    with several environments in a list, each is judged while the next one's lines are generated.

    With `checkpoints` the run resumes from the newest intact one. Ctrl-C finishes the step, saves and returns.
    """
    kl_weight = AdaptiveCoefficient(config.kl_weight, config.kl_target, config.kl_horizon)
    scale = RunningScale()
    score_options = ScoreOptions(
        values=True, detach_values=config.detach_values, entropy=True, entropy_gradient=config.entropy_weight > 0
    )
    imitation = ImitationLoss(
        student, demonstrations, config, weight=config.imitation_weight, decay=config.imitation_decay
    )
    with OnPolicySession(
        *(config, env, student, log, prompts, checkpoints, evaluate, backend, control),
        demonstrations=demonstrations,
        value_learning_rate=config.value_learning_rate,
        saved={"kl_weight": kl_weight, "scale": scale},
    ) as session:
        for step in session.steps():
            # 1. Collect; 2. reference (while the critic thinks)
            rollout = step.collect(values=True)
            mask = rollout.mask
            kl = kl_k1(rollout.logprobs, rollout.ref_logprobs) * mask

            # 3. Rewards on tokens
            scores = torch.where(rollout.valid, rollout.rewards, 0.0)
            scale.add(*spread_over_processes(rollout.rewards, rollout.valid))
            if config.scale_rewards:
                scores = scores / scale.deviation
            scores = scores - config.missing_end_penalty * (~rollout.finished).float()
            token_rewards = place_on_last_token(scores, mask)
            if config.kl_in == "reward":
                token_rewards = token_rewards - kl_weight.value * kl

            # 4. Advantages
            advantages, returns = gae(
                token_rewards, rollout.values, mask, gamma=config.gamma, lam=config.lam, following=rollout.following
            )
            if config.whiten_advantages:
                advantages = whiten(advantages, mask)

            # 5. Update
            for epoch in range(config.epochs):
                for batch in step.minibatches(rollout, epoch, **score_options):
                    for part in batch:
                        loss, sums = ppo_loss(
                            part.logprobs,
                            part.old_logprobs,
                            part(advantages),
                            part.values,
                            part(rollout.values),
                            part(returns),
                            part.mask,
                            batch.tokens,
                            clip=config.clip,
                            value_clip=config.value_clip,
                            value_weight=config.value_weight,
                            ref_logprobs=part(rollout.ref_logprobs),
                            kl_weight=kl_weight.value if config.kl_in == "loss" else 0.0,
                            entropy=part.entropy,
                            entropy_weight=config.entropy_weight,
                        )
                        loss.backward()
                        part.record(sums)
                    imitation.backward(step.index)
                    if step.index < config.value_warmup:
                        for parameter in student.adapter_parameters(POLICY).values():
                            parameter.grad = None  # not 0, which Adam would average in
                    batch.clip_and_step(config.max_grad_norm)
                if config.kl_stop and step.approx_kl > config.kl_stop:
                    break

            # 6. Log and evaluate
            weighed = {"kl/weight": kl_weight.value}  # the next step's is another
            kl_weight.update(step.kl["kl/per_line"], config.batch_size)
            step.log(value_numbers(rollout, returns, token_rewards), weighed)
    return session.result()
