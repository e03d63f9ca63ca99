"""REINFORCE++: PPO's clipped update without a value function; the batch's own mean and spread are the baseline.

    result = train(ReinforcePPConfig(steps=60), env, student, log, prompts=prompts)

The method, one step of it (phases and names as in `ppo.py`, so that the two files compare line by line):

1. *Collect*: the student writes a line for each of `batch_size` prompts; the environment has them judged.
2. *Reference and KL*: log-probabilities under the policy and under the frozen imitation, per token.
3. *Rewards on tokens*: the score sits on the last real token; a line cut off before its end pays `missing_end_penalty`;
   each token pays `kl_weight` times its log-ratio to the imitation (k1).
4. *Advantages*: the sum of the rewards from this token on, whitened over the tokens of the global batch. With
   `group_baseline` a line's score is first taken relative to the mean of its siblings' scores.
5. *Update*: clipped ratio per token, the mean over the tokens of the step.
6. *Log and evaluate.*

Deviations: (a) unscored lines are left out of every mean; (b) to (e) as in `ppo.py`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from humor_env.agents.advantages import gae, group_advantages, place_on_last_token, whiten
from humor_env.agents.backend import Backend
from humor_env.agents.bounds import check_bounds
from humor_env.agents.checkpoint import CheckpointStore
from humor_env.agents.generate import Sampling
from humor_env.agents.lines import gather_lines, text_numbers
from humor_env.agents.logprobs import kl_k1, kl_k3
from humor_env.agents.memory import keep_freed_memory
from humor_env.agents.processes import local_share, process_count
from humor_env.agents.progress import Progress, TrainResult, learning_numbers
from humor_env.agents.rollout import Rollout, TextVectorEnv, collect, group_envs
from humor_env.agents.rows import Scored
from humor_env.agents.runlog import Log, Silent
from humor_env.agents.schedule import learning_rate_share
from humor_env.agents.student import POLICY, Student
from humor_env.agents.update import chance, check_first_ratio, minibatches, take_step
from humor_env.agents.watch import Watch
from humor_env.errors import InvalidOption
from humor_env.prompts import PromptStream
from humor_env.types import Prompt


@dataclass(frozen=True)
class ReinforcePPConfig:
    steps: int = 100
    batch_size: int = 64  # lines a step, over all processes
    siblings: int = 1  # lines per prompt
    sampling: Sampling = field(default_factory=Sampling)
    epochs: int = 1
    minibatches: int = 1
    micro_batch: int = 32
    learning_rate: float = 1e-3
    warmup_steps: int = 0
    decay: str = "constant"
    max_grad_norm: float = 1.0
    clip: float = 0.2
    kl_weight: float = 0.05
    kl_limit: float = 5.0
    group_baseline: bool = False
    missing_end_penalty: float = 0.0
    max_failure_share: float = 0.5
    checkpoint_every: int = 10
    evaluate_every: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        check_bounds(self, "batch_size", "siblings", "epochs", "minibatches", "micro_batch", "checkpoint_every")
        if self.group_baseline and self.siblings < 2:
            raise InvalidOption(f"group_baseline compares siblings: give at least 2, found {self.siblings}.")
        share = self.siblings * self.minibatches * process_count()
        if self.batch_size % share:
            raise InvalidOption(
                f"batch_size {self.batch_size} must be a multiple of siblings x minibatches x processes = {share}."
            )


def reinforce_pp_loss(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    mask: Tensor,
    token_count: Tensor | float,
    *,
    clip: float,
) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss, and *sums* over tokens worth logging. All `[B, T]`; `token_count` is the whole step's."""
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


def train(
    config: ReinforcePPConfig,
    env: TextVectorEnv | Sequence[TextVectorEnv],
    student: Student,
    log: Log | None = None,
    *,
    prompts: Sequence[Prompt],
    checkpoints: CheckpointStore | None = None,
    evaluate: Callable[[Student], Mapping[str, float]] | None = None,
    backend: Backend | None = None,
    watch: Watch | None = None,
) -> TrainResult:
    """Improve the student's `policy` adapter. Arguments and behaviour as in `ppo.train`."""
    log = log or Silent()
    keep_freed_memory()
    policy = student.adapter_parameters(POLICY)
    student.activate(POLICY)
    student.train_only(list(policy.values()))
    optimizer = torch.optim.AdamW(policy.values(), lr=config.learning_rate, weight_decay=0.0, fused=True)
    stream = PromptStream(prompts, seed=config.seed)
    progress = Progress(student, optimizer, policy, stream, checkpoints, watch)
    step = progress.resume(log)
    one_pass = config.epochs == 1 and config.minibatches == 1
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
                old_logprobs=not one_pass,
                micro_batch=config.micro_batch,
                max_failure_share=config.max_failure_share,
                backend=backend,
            )
            if rollout.logprobs is None or rollout.ref_logprobs is None:
                raise ValueError("REINFORCE++ needs log-probabilities and reference log-probabilities")
            written = gather_lines(rollout)
            watch.spend(len(written), len(written))
            mask = rollout.action_mask * rollout.valid[:, None]
            kl = kl_k1(rollout.logprobs, rollout.ref_logprobs) * mask

            # 3. Rewards on tokens
            scores = torch.where(rollout.valid, rollout.rewards, 0.0)
            scores = scores - config.missing_end_penalty * (~rollout.finished).float()
            if config.group_baseline:
                scores = group_advantages(scores, rollout.group, rollout.valid, scale=False)
            token_rewards = place_on_last_token(scores, mask) - config.kl_weight * kl

            # 4. Advantages
            returns, _ = gae(
                token_rewards, torch.zeros_like(token_rewards), mask, gamma=1.0, lam=1.0, following=rollout.following
            )
            advantages = whiten(returns, mask)

            # 5. Update
            updating = time.perf_counter()

            def loss_of(
                scored: Scored,
                rows: Tensor,
                cut: slice,
                token_count: Tensor,
                rollout: Rollout = rollout,
                advantages: Tensor = advantages,
                mask: Tensor = mask,
            ) -> tuple[Tensor, dict[str, Tensor]]:
                assert rollout.logprobs is not None
                return reinforce_pp_loss(
                    scored.logprobs,
                    scored.logprobs.detach() if one_pass else rollout.logprobs[rows, cut],
                    advantages[rows, cut],
                    mask[rows, cut],
                    token_count,
                    clip=config.clip,
                )

            sums: dict[str, float] = {}
            norms: list[float] = []
            mismatch = 0.0
            for epoch in range(config.epochs):
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
                        entropy=False,
                    )
                    if not norms:
                        mismatch = check_first_ratio(step, numbers)
                    norms.append(norm)
                    for name, number in numbers.items():
                        sums[name] = sums.get(name, 0.0) + number
            if backend is not None:
                backend.refresh()
            update_seconds = time.perf_counter() - updating
            step += 1

            # 6. Log and evaluate
            numbers = learning_numbers(sums, norms) | text_numbers(written)
            numbers |= progress.kl_numbers(rollout, mask, kl_k1)
            numbers |= {"learning_rate": optimizer.param_groups[0]["lr"], "update/first_mismatch": mismatch}
            numbers |= progress.clock(rollout, update_seconds, time.perf_counter() - began)
            numbers |= progress.evaluate(step, config.evaluate_every, evaluate)
            progress.record(log, step, numbers, written.jokes, written.judgements)
            progress.check_health(step, policy.values(), numbers["kl/per_token"], config.kl_limit)
            if step % config.checkpoint_every == 0 or step == config.steps or watch.ending:
                progress.save(step, score=numbers["reward/mean"])
    student.train_only(())
    return progress.result(step, done=step >= config.steps)
