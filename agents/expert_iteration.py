"""Expert iteration: write several lines, keep the best, imitate them, repeat.

    result = train(ExpertIterationConfig(steps=60, siblings=8), env, student, log, prompts=prompts)

Learning from a critic without policy gradients: what best-of-n finds by trying is put into the weights. The method, one
step of it (phases and names as in `ppo.py`, so that the two files compare line by line):

1. *Collect*: the student writes `siblings` lines for each of `batch_size / siblings` prompts; they are judged.
2. *Reference*: only to report how far the policy has moved from the imitation.
3. *Rewards*: one number per line; a line cut off before its end pays `missing_end_penalty`.
4. *Advantages*: 1 for the `keep` best scored siblings whose reward is at least `at_least` and above their group's mean,
   else 0. A group in which all are alike teaches nothing.
5. *Update*: cross-entropy on the kept lines, `epochs` passes over them.
6. *Log and evaluate.*

Deviations: (a) unscored lines are never kept and not in their group's mean; (b) it goes on from the current policy
instead of starting each iteration from the imitation; (c) to (e) as in `ppo.py`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from humor_env.agents.backend import Backend
from humor_env.agents.bounds import check_bounds
from humor_env.agents.checkpoint import CheckpointStore
from humor_env.agents.generate import Sampling
from humor_env.agents.lines import gather_lines, text_numbers
from humor_env.agents.logprobs import kl_k1
from humor_env.agents.memory import keep_freed_memory
from humor_env.agents.processes import local_share, process_count, sum_over_processes
from humor_env.agents.progress import Progress, TrainResult, learning_numbers
from humor_env.agents.rollout import TextVectorEnv, collect, group_envs
from humor_env.agents.rows import Scored
from humor_env.agents.runlog import Log, Silent
from humor_env.agents.schedule import learning_rate_share
from humor_env.agents.sft import sft_loss
from humor_env.agents.student import POLICY, Student
from humor_env.agents.update import chance, check_first_ratio, take_step
from humor_env.agents.watch import Watch
from humor_env.errors import InvalidOption
from humor_env.prompts import PromptStream
from humor_env.types import Prompt


@dataclass(frozen=True)
class ExpertIterationConfig:
    steps: int = 100
    batch_size: int = 64  # lines a step, over all processes
    siblings: int = 8  # lines per prompt
    keep: int = 1  # lines per prompt to imitate
    at_least: float = 0.0  # reward below which a line is not imitated
    sampling: Sampling = field(default_factory=Sampling)
    epochs: int = 1  # passes over the kept lines
    micro_batch: int = 32
    learning_rate: float = 1e-3
    warmup_steps: int = 0
    decay: str = "constant"
    max_grad_norm: float = 1.0
    missing_end_penalty: float = 0.0
    kl_limit: float = 5.0
    max_failure_share: float = 0.5
    checkpoint_every: int = 10
    evaluate_every: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        check_bounds(self, "batch_size", "keep", "epochs", "micro_batch", "checkpoint_every")
        if self.siblings <= self.keep:
            raise InvalidOption(f"Choosing needs siblings above keep; found {self.siblings} and {self.keep}.")
        share = self.siblings * process_count()
        if self.batch_size % share:
            raise InvalidOption(f"batch_size {self.batch_size} must be a multiple of siblings x processes = {share}.")


def best_of_groups(rewards: Tensor, group: Tensor, valid: Tensor, *, keep: int, at_least: float) -> Tensor:
    """`[B]`: 1 on the lines to imitate. Of equals the first written is taken."""
    kept = torch.zeros_like(rewards)
    for g in group.unique():
        rows = ((group == g) & valid).nonzero().squeeze(1)
        if not len(rows):
            continue
        best = rows[rewards[rows].argsort(descending=True, stable=True)[:keep]]
        kept[best] = ((rewards[best] > rewards[rows].mean()) & (rewards[best] >= at_least)).to(kept.dtype)
    return kept


def train(
    config: ExpertIterationConfig,
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
                old_logprobs=False,
                micro_batch=config.micro_batch,
                max_failure_share=config.max_failure_share,
                backend=backend,
            )
            written = gather_lines(rollout)
            watch.spend(len(written), len(written))
            mask = rollout.action_mask * rollout.valid[:, None]

            # 3. Rewards
            rewards = torch.where(rollout.valid, rollout.rewards, 0.0)
            rewards = rewards - config.missing_end_penalty * (~rollout.finished).float()

            # 4. Advantages
            advantages = best_of_groups(
                rewards, rollout.group, rollout.valid, keep=config.keep, at_least=config.at_least
            )
            kept_mask = mask * advantages[:, None]
            kept = advantages.nonzero().squeeze(1)
            if not len(kept):
                kept = kept.new_zeros(1)  # masked: takes part in the exchange with other processes, and teaches nothing
            kept_count = float(sum_over_processes(advantages.sum()))

            # 5. Update
            updating = time.perf_counter()

            def loss_of(
                scored: Scored, rows: Tensor, cut: slice, token_count: Tensor, kept_mask: Tensor = kept_mask
            ) -> tuple[Tensor, dict[str, Tensor]]:
                here = kept_mask[rows, cut]
                return sft_loss(scored.logprobs, here, token_count), {
                    "policy_loss": -(scored.logprobs.detach() * here).sum()
                }

            sums: dict[str, float] = {}
            norms: list[float] = []
            mismatch = 0.0
            for _ in range(config.epochs if kept_count else 0):
                numbers, norm = take_step(
                    student,
                    optimizer,
                    rollout,
                    kept_mask,
                    kept,
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
            numbers = text_numbers(written) | {"update/kept_lines": kept_count}
            if norms:
                numbers |= learning_numbers(sums, norms)
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
