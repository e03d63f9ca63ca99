"""The training loop of learners from scores: each step writes and judges lines, then learns from them in minibatches.

    with OnPolicySession(config, env, student, log, prompts) as session:
        for step in session.steps():
            rollout = step.collect()
            advantages = ...
            for epoch in range(config.epochs):
                for batch in step.minibatches(rollout, epoch):
                    for part in batch:
                        loss, sums = my_loss(part.logprobs, part(advantages), part.mask, batch.tokens)
                        loss.backward()
                        part.record(sums)
                    batch.clip_and_step(config.max_grad_norm)
            step.log()
    return session.result()

`steps` resumes, sets the learning rate and ends at the last step, at a limit or on Ctrl-C; `collect` draws the prompts;
`log` evaluates, writes metrics and lines, and saves.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Unpack

import torch
from torch import Tensor

from humor_env.agents.feedback.metrics import (
    WrittenBatch,
    clock_numbers,
    gather_lines,
    kl_numbers,
    learning_numbers,
    text_numbers,
)
from humor_env.agents.feedback.rollout import Rollout, TextVectorEnv, collect, group_envs
from humor_env.agents.session.checkpoint import CheckpointStore
from humor_env.agents.session.config import OnPolicyConfig, rows_at_once
from humor_env.agents.session.limits import RunControl
from humor_env.agents.session.log import Log
from humor_env.agents.session.processes import local_share, sum_over_processes
from humor_env.agents.session.session import Evaluate, Session, Stateful
from humor_env.agents.student import Student
from humor_env.agents.student.sampling import draw_uniforms
from humor_env.agents.student.token_rows import length_sorted, take_rows
from humor_env.agents.student.writer import Backend
from humor_env.agents.update.minibatch import Minibatch, Part, ScoreOptions
from humor_env.errors import TrainingStopped
from humor_env.prompts import PromptStream
from humor_env.shared.streams import generator, stream_seed
from humor_env.shared.text_stats import ngram_set
from humor_env.types import Demonstration, Prompt

MISMATCH_LIMIT = 0.1  # mean |log-ratio| at temperature 1 above which sampler and update cannot be the same policy


class OnPolicySession(Session):
    """One run of a learner from scores. `env` holds this process's share of `batch_size` sub-environments."""

    config: OnPolicyConfig

    def __init__(
        self,
        config: OnPolicyConfig,
        env: TextVectorEnv | Sequence[TextVectorEnv],
        student: Student,
        log: Log | None,
        prompts: Sequence[Prompt],
        checkpoints: CheckpointStore | None = None,
        evaluate: Evaluate | None = None,
        backend: Backend | None = None,
        control: RunControl | None = None,
        *,
        demonstrations: Sequence[Demonstration] = (),
        value_learning_rate: float | None = None,
        saved: Mapping[str, Stateful] | None = None,
    ) -> None:
        self.envs, self.backend = group_envs(env), backend
        self.prompts = PromptStream(prompts, seed=config.seed)
        self.teacher_grams = ngram_set(d.text for d in demonstrations)
        super().__init__(
            config,
            student,
            log,
            self.prompts,
            checkpoints=checkpoints,
            evaluate=evaluate,
            control=control,
            value_learning_rate=value_learning_rate,
            saved=saved,
        )

    @property
    def done(self) -> bool:
        return self.step >= self.config.steps

    def steps(self) -> Iterator[OnPolicyStep]:
        """The remaining steps. Each must be logged before the next."""
        while not self.done and not self.control.ending:
            step = OnPolicyStep(self)
            self.set_learning_rate(self.config.steps)
            yield step
            if self.step == step.index:
                raise RuntimeError("a step must end with step.log()")


class OnPolicyStep:
    """One step: lines, minibatches, log. `index` counts from 0, across restarts."""

    def __init__(self, session: OnPolicySession) -> None:
        self.session, self.config, self.index = session, session.config, session.step
        self.sums: dict[str, float] = {}  # over the whole step
        self.pass_sums: dict[str, float] = {}  # over the current pass
        self.norms: list[float] = []
        self.mismatch = 0.0
        self._began = time.perf_counter()
        self._updating = self._began

    def collect(self, *, values: bool = False, reference: bool = True, old_logprobs: bool | None = None) -> Rollout:
        """Write and judge lines for the next prompts. The reference is scored while the critic runs.

        With one optimiser step per batch, the log-probabilities from sampling are those of the policy being trained,
        and no pass is spent on old ones.
        """
        config, session = self.config, self.session
        batch = [p for p in session.prompts.take(config.batch_size // config.siblings) for _ in range(config.siblings)]
        mine = local_share(config.batch_size)
        self.rollout = collect(
            session.envs,
            session.student,
            config.sampling,
            batch[mine],
            chance(config.seed, self.index, config.batch_size, mine),
            values=values,
            old_logprobs=not config.one_pass if old_logprobs is None else old_logprobs,
            reference=reference,
            micro_batch=rows_at_once(config),
            max_failure_share=config.max_failure_share,
            max_flip_share=config.max_flip_share,
            backend=session.backend,
        )
        self.written: WrittenBatch = gather_lines(self.rollout)
        session.control.count(len(self.written), len(self.written))
        self.kl = kl_numbers(self.rollout)
        self._updating = time.perf_counter()
        return self.rollout

    def minibatches(
        self,
        rollout: Rollout,
        epoch: int = 0,
        *,
        mask: Tensor | None = None,
        rows: Tensor | None = None,
        **options: Unpack[ScoreOptions],
    ) -> Iterator[PolicyMinibatch]:
        """One pass over the batch in random minibatches, or over these `rows` at once. `mask` selects the tokens that
        count; by default all tokens of judged lines."""
        config = self.config
        temperature = config.sampling.scoring_temperature
        mask = rollout.mask if mask is None else mask
        self.pass_sums = {}
        for index in [rows] if rows is not None else self._random_rows(len(rollout), epoch):
            index = index.cpu()
            order = [index[part] for part in length_sorted(take_rows(rollout.rows.host, index), rows_at_once(config))]
            batch = PolicyMinibatch(
                self.session.student,
                self.session.optimizer,
                rollout,
                order,
                mask,
                {"temperature": temperature, **options},
                one_pass=config.one_pass,
            )
            yield batch
            if not self.norms:
                self.mismatch = check_first_ratio(self.index, batch.sums, temperature)
            self.norms.append(batch.norm)
            for sums in (self.sums, self.pass_sums):
                for name, number in batch.sums.items():
                    sums[name] = sums.get(name, 0.0) + number

    def _random_rows(self, rows: int, epoch: int) -> list[Tensor]:
        """Row indices in `config.minibatches` random parts. Where an episode has several attempts, processes may have
        different numbers of rows, but they take the same number of steps."""
        config = self.config
        if config.minibatches == 1:
            return [torch.arange(rows)]
        shuffled = torch.from_numpy(generator(config.seed, "minibatches", f"{self.index}/{epoch}").permutation(rows))
        return list(shuffled.tensor_split(config.minibatches))

    @property
    def lines(self) -> Tensor:
        """Number of judged lines, over all processes."""
        return sum_over_processes(self.rollout.valid.sum().float()).clamp(min=1)

    @property
    def approx_kl(self) -> float:
        """The policy's KL per token over the current pass."""
        return self.pass_sums["approx_kl"] / max(1.0, self.pass_sums["tokens"])

    def log(self, *numbers: Mapping[str, float]) -> None:
        """End the step: refresh the backend, write metrics and lines, and save the run."""
        session = self.session
        if session.backend is not None:
            session.backend.refresh()
        updated = time.perf_counter()
        session.step += 1
        record = text_numbers(self.written, session.teacher_grams) | self.kl
        record |= learning_numbers(self.sums, self.norms) | {"update/first_mismatch": self.mismatch}
        for more in numbers:
            record |= more
        record |= clock_numbers(self.rollout, updated - self._updating, time.perf_counter() - self._began)
        session.finish_step(
            record,
            self.written.jokes,
            self.written.judgements,
            score=record["reward/mean"],
            kl_per_token=self.kl["kl/per_token"],
            kl_limit=self.config.kl_limit,
        )


@dataclass
class PolicyPart(Part):
    """A micro-batch of a rollout. `old_logprobs` are those of the policy that wrote it."""

    old_logprobs: Tensor


class PolicyMinibatch(Minibatch):
    """A minibatch of a rollout; also sums tokens, lines, and the mismatch with the sampler's log-probabilities."""

    def __init__(
        self,
        student: Student,
        optimizer: torch.optim.Optimizer,
        rollout: Rollout,
        order: Sequence[Tensor],
        mask: Tensor,
        options: ScoreOptions,
        *,
        one_pass: bool,
    ) -> None:
        super().__init__(student, optimizer, rollout.rows, order, mask=mask, options=options)
        self.rollout, self.one_pass = rollout, one_pass

    def __iter__(self) -> Iterator[PolicyPart]:
        for part in super().__iter__():
            old = part(self.rollout.logprobs)
            part.record(
                {
                    "mismatch": ((part.logprobs.detach() - old).abs() * part.mask).sum(),
                    "tokens": part.mask.sum().float(),
                    "lines": part.mask.any(-1).sum().float(),
                }
            )
            yield PolicyPart(**vars(part), old_logprobs=part.logprobs.detach() if self.one_pass else old)


def check_first_ratio(step: int, sums: Mapping[str, float], temperature: float = 1.0) -> float:
    """Before a batch's first optimiser step the old and new policy are the same: their log-probabilities must agree.

    Returns their mean difference per token; raises `TrainingStopped` if it cannot be rounding, which a temperature
    below 1 magnifies as it does the logits.
    """
    mismatch = sums["mismatch"] / max(1.0, sums["tokens"])
    limit = MISMATCH_LIMIT / min(1.0, temperature)
    if not mismatch <= limit:  # also catches NaN
        raise TrainingStopped(
            f"At step {step + 1} the update's log-probabilities differ from the sampler's by {mismatch:.3f} per token "
            f"before anything was learned (at most {limit:.2g} can be rounding). The rows are misaligned, the "
            "precision is too low, or a weight is not a number."
        )
    return mismatch


def chance(seed: int, step: int, rows: int, mine: slice) -> Callable[[int, int], Tensor]:
    """The random numbers of one step as a function of the attempt; a row's draws depend on nothing else."""

    def uniforms(attempt: int, columns: int) -> Tensor:
        source = torch.Generator().manual_seed(stream_seed(seed, "sampling", f"{step}/{attempt}"))
        return draw_uniforms(rows, columns, source)[mine]

    return uniforms
