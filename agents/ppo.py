"""Proximal policy optimisation of a student against a critic, over a Gymnasium environment.

    result = train(PPOConfig(steps=60), env, student, log)

The method, one step of it:

1. *Collect*: the student writes a line for each of `batch_size` prompts; the environment has them judged.
2. *Reference and KL*: log-probabilities under the policy and under the frozen imitation, per token.
3. *Rewards on tokens*: the score sits on the last real token; a line cut off before its end pays `missing_end_penalty`;
   each token pays `kl_weight` times its log-ratio to the imitation (k1), or the loss carries the k3 estimate.
4. *Advantages*: generalised advantage estimation over the response tokens, across attempts where an episode has
   several; whitened over the global batch.
5. *Update*: clipped ratio, clipped value, entropy bonus, optional imitation loss; gradient norm clipped.
6. *Log and evaluate.*

Deviations from the usual implementations, each with its reason:

a. Unscored lines (`valid` False) are left out of every mean instead of being given a score of 0.
b. With one pass and one minibatch the old log-probabilities are those of the update itself (the ratio is 1), and the
   values come with the tokens while sampling: two forward passes fewer. The sampler's log-probabilities are compared
   with the update's at run time, so that a misalignment stops the run instead of quietly spoiling it.
c. Losses are divided by the token count of the whole minibatch over all processes, never by micro-batch, so that
   neither the grouping nor the number of processes changes the step.
d. The reference is the imitation adapter on the same base, not the base with adapters off.
e. Chance is a function of (seed, step, attempt, row): a resumed run repeats itself, and so does one on more processes.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from humor_env.agents.advantages import gae, place_on_last_token, whiten
from humor_env.agents.backend import Backend
from humor_env.agents.bounds import check_bounds
from humor_env.agents.checkpoint import CheckpointStore
from humor_env.agents.generate import Sampling
from humor_env.agents.lines import gather_lines, text_numbers
from humor_env.agents.logprobs import kl_k1, kl_k3
from humor_env.agents.memory import keep_freed_memory
from humor_env.agents.processes import (
    local_share,
    process_count,
    spread_over_processes,
)
from humor_env.agents.progress import Progress, TrainResult, learning_numbers, value_numbers
from humor_env.agents.rollout import Rollout, TextVectorEnv, collect, group_envs
from humor_env.agents.rows import Scored
from humor_env.agents.runlog import Log, Silent
from humor_env.agents.schedule import AdaptiveCoefficient, RunningScale, learning_rate_share
from humor_env.agents.student import POLICY, Student
from humor_env.agents.update import ImitationLoss, chance, check_first_ratio, minibatches, take_step
from humor_env.agents.watch import Watch
from humor_env.errors import InvalidOption
from humor_env.measures import ngram_set
from humor_env.prompts import PromptStream
from humor_env.types import Demonstration, Prompt


@dataclass(frozen=True)
class PPOConfig:
    steps: int = 100
    batch_size: int = 64  # lines a step, over all processes
    siblings: int = 1  # lines per prompt
    sampling: Sampling = field(default_factory=Sampling)
    epochs: int = 1  # passes over each batch
    minibatches: int = 1  # optimiser steps a pass
    micro_batch: int = 32  # rows in memory at once
    learning_rate: float = 1e-3
    value_learning_rate: float = 1e-2
    warmup_steps: int = 0
    decay: str = "constant"
    max_grad_norm: float = 1.0
    gamma: float = 1.0
    lam: float = 0.95
    clip: float = 0.2
    value_clip: float = 0.2
    value_weight: float = 0.5
    detach_values: bool = True  # the value loss trains the head, not the student
    value_warmup: int = 0  # first steps in which only the value head learns
    entropy_weight: float = 0.0
    kl_weight: float = 0.05
    kl_in: str = "reward"  # "reward": k1 per token in the reward; "loss": k3 in the loss
    kl_target: float | None = None  # KL per line that the weight is steered to
    kl_horizon: float = 10_000.0
    kl_stop: float | None = (
        None  # leave a batch's remaining passes once old and new policy are this far apart, per token
    )
    kl_limit: float = 5.0  # KL per token to the imitation at which the run is given up
    whiten_advantages: bool = True
    scale_rewards: bool = False  # divide by their running deviation
    missing_end_penalty: float = 0.0
    imitation_weight: float = 0.0
    imitation_decay: float = 0.99  # per step
    max_failure_share: float = 0.5
    checkpoint_every: int = 10
    evaluate_every: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        check_bounds(self, "batch_size", "siblings", "epochs", "minibatches", "micro_batch", "checkpoint_every")
        if self.kl_in not in ("reward", "loss"):
            raise InvalidOption(f"kl_in is 'reward' or 'loss', found '{self.kl_in}'.")
        share = self.siblings * self.minibatches * process_count()
        if self.batch_size % share:
            raise InvalidOption(
                f"batch_size {self.batch_size} must be a multiple of siblings x minibatches x processes = {share}."
            )


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
    policy_weight: float = 1.0,
    ref_logprobs: Tensor | None = None,
    kl_weight: float = 0.0,
    entropy: Tensor | None = None,
    entropy_weight: float = 0.0,
) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss, and *sums* over tokens (divide by the token count) of what is worth logging. All `[B, T]`."""
    mask = mask.to(logprobs.dtype)
    log_ratio = (logprobs - old_logprobs) * mask
    ratio = log_ratio.exp()
    policy_losses = -torch.minimum(ratio * advantages, ratio.clamp(1 - clip, 1 + clip) * advantages)
    clipped_values = old_values + (values - old_values).clamp(-value_clip, value_clip)
    value_losses = 0.5 * torch.maximum((values - returns).square(), (clipped_values - returns).square())
    losses = policy_weight * policy_losses + value_weight * value_losses
    if ref_logprobs is not None and kl_weight:
        # Times the ratio: at ratio 1 the same number, but only so is its gradient that of the KL.
        losses = losses + policy_weight * kl_weight * ratio * kl_k3(logprobs, ref_logprobs)
    if entropy is not None and entropy_weight:
        losses = losses - policy_weight * entropy_weight * entropy
    sums = {
        "policy_loss": policy_losses,
        "value_loss": value_losses,
        "ratio": ratio,
        "ratio_deviation": (ratio - 1).abs(),
        "clip_share": ((ratio - 1).abs() > clip).to(mask.dtype),
        "approx_kl": kl_k3(old_logprobs, logprobs),  # of the step just being taken: KL(old, new) from old's samples
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
    evaluate: Callable[[Student], Mapping[str, float]] | None = None,
    backend: Backend | None = None,
    watch: Watch | None = None,
) -> TrainResult:
    """Improve the student's `policy` adapter. `env` holds this process's share of `batch_size` sub-environments;
    several environments in a list are judged while the next one's lines are being written.

    With `checkpoints` the run resumes from the newest whole one. Ctrl-C finishes the step, saves and returns.
    """
    log = log or Silent()
    keep_freed_memory()
    policy = student.adapter_parameters(POLICY)
    value = {f"value_head.{n}": p for n, p in student.value_head.named_parameters()}
    student.activate(POLICY)
    student.train_only([*policy.values(), *value.values()])
    optimizer = torch.optim.AdamW(
        [
            {"params": list(policy.values()), "lr": config.learning_rate},
            {"params": list(value.values()), "lr": config.value_learning_rate},
        ],
        weight_decay=0.0,
        fused=True,
    )
    stream = PromptStream(prompts, seed=config.seed)
    kl_weight = AdaptiveCoefficient(config.kl_weight, config.kl_target, config.kl_horizon)
    scale = RunningScale()
    progress = Progress(student, optimizer, policy | value, stream, checkpoints, watch)
    step = progress.resume(log, kl_weight, scale)
    one_pass = config.epochs == 1 and config.minibatches == 1
    imitation = ImitationLoss(
        student,
        demonstrations,
        weight=config.imitation_weight,
        decay=config.imitation_decay,
        batch_size=config.batch_size,
        micro_batch=config.micro_batch,
        seed=config.seed,
    )
    taught = ngram_set(d.text for d in demonstrations)
    envs = group_envs(env)

    with progress.watch as watch:
        while step < config.steps and not watch.ending:
            began = time.perf_counter()
            progress.set_learning_rate(
                learning_rate_share(step, config.steps, warmup=config.warmup_steps, decay=config.decay)
            )

            # 1. Collect; 2. reference (while the critic thinks)
            batch = [p for p in stream.take(config.batch_size // config.siblings) for _ in range(config.siblings)]
            mine = local_share(config.batch_size)
            rollout = collect(
                envs,
                student,
                config.sampling,
                batch[mine],
                chance(config.seed, step, config.batch_size, mine),
                values=True,
                old_logprobs=not one_pass,
                micro_batch=config.micro_batch,
                max_failure_share=config.max_failure_share,
                backend=backend,
            )
            if rollout.logprobs is None or rollout.ref_logprobs is None or rollout.values is None:
                raise ValueError("PPO needs log-probabilities, reference log-probabilities and values")
            written = gather_lines(rollout)
            watch.spend(len(written), len(written))
            mask = rollout.action_mask * rollout.valid[:, None]
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
                token_rewards,
                rollout.values,
                mask,
                gamma=config.gamma,
                lam=config.lam,
                following=rollout.following,
            )
            if config.whiten_advantages:
                advantages = whiten(advantages, mask)

            # 5. Update
            updating = time.perf_counter()
            policy_weight = 0.0 if step < config.value_warmup else 1.0

            def loss_of(
                scored: Scored,
                rows: Tensor,
                cut: slice,
                token_count: Tensor,
                rollout: Rollout = rollout,
                advantages: Tensor = advantages,
                returns: Tensor = returns,
                mask: Tensor = mask,
                policy_weight: float = policy_weight,
            ) -> tuple[Tensor, dict[str, Tensor]]:
                assert rollout.logprobs is not None and rollout.values is not None and scored.values is not None
                return ppo_loss(
                    scored.logprobs,
                    scored.logprobs.detach() if one_pass else rollout.logprobs[rows, cut],
                    advantages[rows, cut],
                    scored.values,
                    rollout.values[rows, cut],
                    returns[rows, cut],
                    mask[rows, cut],
                    token_count,
                    clip=config.clip,
                    value_clip=config.value_clip,
                    value_weight=config.value_weight,
                    policy_weight=policy_weight,
                    ref_logprobs=None if rollout.ref_logprobs is None else rollout.ref_logprobs[rows, cut],
                    kl_weight=kl_weight.value if config.kl_in == "loss" else 0.0,
                    entropy=scored.entropy,
                    entropy_weight=config.entropy_weight,
                )

            sums: dict[str, float] = {}
            norms: list[float] = []
            mismatch = 0.0
            for epoch in range(config.epochs):
                last_pass: dict[str, float] = {}
                for index in minibatches(len(rollout), config.minibatches, config.seed, f"{step}/{epoch}"):
                    numbers, norm = take_step(
                        student,
                        optimizer,
                        rollout,
                        mask,
                        index,
                        loss_of,
                        micro_batch=config.micro_batch,
                        max_grad_norm=config.max_grad_norm,
                        sampling=config.sampling,
                        values=True,
                        detach_values=config.detach_values,
                        entropy_gradient=config.entropy_weight > 0,
                        also=imitation.at(step),
                    )
                    if not norms:
                        mismatch = check_first_ratio(step, numbers)
                    norms.append(norm)
                    for name, number in numbers.items():
                        last_pass[name] = last_pass.get(name, 0.0) + number
                for name, number in last_pass.items():
                    sums[name] = sums.get(name, 0.0) + number
                if config.kl_stop and last_pass["approx_kl"] / max(1.0, last_pass["tokens"]) > config.kl_stop:
                    break
            if backend is not None:
                backend.refresh()
            update_seconds = time.perf_counter() - updating
            step += 1

            # 6. Log and evaluate
            numbers = learning_numbers(sums, norms) | text_numbers(written, taught)
            numbers |= value_numbers(rollout, mask, returns, token_rewards)
            numbers |= progress.kl_numbers(rollout, mask, kl_k1)
            kl_weight.update(numbers["kl/per_line"], config.batch_size)
            numbers["kl/weight"] = kl_weight.value
            numbers |= {"learning_rate": optimizer.param_groups[0]["lr"], "update/first_mismatch": mismatch}
            numbers |= progress.clock(rollout, update_seconds, time.perf_counter() - began)
            numbers |= progress.evaluate(step, config.evaluate_every, evaluate)
            progress.record(log, step, numbers, written.jokes, written.judgements)
            progress.check_health(step, policy.values(), numbers["kl/per_token"], config.kl_limit)
            if step % config.checkpoint_every == 0 or step == config.steps or watch.ending:
                progress.save(step, kl_weight, scale, numbers["reward/mean"])
    student.train_only(())
    return progress.result(step, done=step >= config.steps)
