"""What every learner does around its update: resume, set the learning rate, log, check limits, stop, save.

Learners do not use this file directly: `update.on_policy` and `update.from_pairs` build on it the two sessions that
learners iterate over.

    with OnPolicySession(config, env, student, log, prompts=prompts, checkpoints=store) as session:
        for step in session.steps():
            ...
    return session.result()
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, Self

import torch

from humor_env.agents.session.checkpoint import (
    Checkpoint,
    CheckpointStore,
    load_optimizer,
    optimizer_tensors,
    random_states,
    restore_random_states,
)
from humor_env.agents.session.config import LearnerConfig, rows_at_once
from humor_env.agents.session.limits import RunControl
from humor_env.agents.session.log import Log, Silent, flush_log
from humor_env.agents.session.processes import keep_freed_memory
from humor_env.agents.session.schedule import learning_rate_share
from humor_env.agents.student import POLICY, Student
from humor_env.episodes.critic_memory import show, with_memory
from humor_env.errors import CheckpointError, TrainingStopped
from humor_env.types import Joke, Judgement, Prompt

Evaluate = Callable[[Student], Mapping[str, float]]


class Writer(Protocol):
    """Writes one joke per prompt; the same seed gives the same jokes."""

    def write(self, prompts: Sequence[Prompt], *, seed: int | None = None) -> list[Joke]: ...


class Stateful(Protocol):
    """State that a checkpoint keeps besides weights, as plain JSON."""

    def get_state(self) -> Any: ...

    def set_state(self, state: Any) -> None: ...


@dataclass(frozen=True)
class TrainResult:
    """How a run ended. `stopped` means by the user; `why` names any other early end, such as a limit.

    `writer` is set by learners whose product is not the student but a writer that uses it, such as best-of-n.
    """

    steps: int
    stopped: bool
    evaluations: list[dict[str, float]]
    checkpoint: Path | None
    why: str = ""
    writer: Writer | None = None


def _critic_of(env: Any) -> object:
    """The critic of one of our environments; None for others."""
    played = getattr(env, "env", env)
    return getattr(getattr(getattr(played, "unwrapped", played), "task", None), "critic", None)


class Session(ABC):
    """One training run of the `policy` adapter (and of the value head, if it has a learning rate)."""

    envs: Sequence[Any] = ()  # set by learners from scores; their critics' memory is saved with the run

    def __init__(
        self,
        config: LearnerConfig,
        student: Student,
        log: Log | None,
        stream: Stateful,
        *,
        checkpoints: CheckpointStore | None,
        evaluate: Evaluate | None,
        control: RunControl | None,
        value_learning_rate: float | None = None,
        saved: Mapping[str, Stateful] | None = None,
    ) -> None:
        keep_freed_memory()
        rows_at_once(config)  # before anything is generated or judged
        self.config, self.student, self.stream = config, student, stream
        self.log_to = log or Silent()
        self.checkpoints, self.measure, self.control = checkpoints, evaluate, control or RunControl()
        self.policy = student.adapter_parameters(POLICY)
        groups = [{"params": list(self.policy.values()), "lr": config.learning_rate}]
        names = dict(self.policy)
        if value_learning_rate is not None:
            value = {f"value_head.{n}": p for n, p in student.value_head.named_parameters()}
            groups.append({"params": list(value.values()), "lr": value_learning_rate})
            names |= value
        student.activate(POLICY)
        student.train_only(list(names.values()))
        self.optimizer = torch.optim.AdamW(groups, weight_decay=0.0, fused=True)
        self._peak_rates = [group["lr"] for group in self.optimizer.param_groups]
        self._names = {id(p): n for n, p in names.items()}
        self._saved = dict(saved or {})
        self._remembering = with_memory(map(_critic_of, self.envs))
        self.evaluations: list[dict[str, float]] = []
        self.last_saved: Path | None = None
        self.step = self._resume()

    def __enter__(self) -> Self:
        self.control.__enter__()
        return self

    def __exit__(self, *problem: object) -> None:
        self.control.__exit__(*problem)
        self.student.train_only(())

    @property
    @abstractmethod
    def done(self) -> bool:
        """Whether no step is left."""

    @property
    def asks(self) -> bool:
        """Whether the next step generates and judges lines; a feedback round is learned to its end first."""
        return True

    def result(self) -> TrainResult:
        stopped = self.control.by_user and not self.done
        why = "" if stopped or self.done else self.control.ending
        return TrainResult(self.step, stopped, self.evaluations, self.last_saved, why)

    def set_learning_rate(self, steps: int) -> None:
        """Give each parameter group the same share of its own peak rate; `steps` is the length of the whole run."""
        config = self.config
        share = learning_rate_share(self.step, steps, warmup=config.warmup_steps, decay=config.decay)
        for group, peak in zip(self.optimizer.param_groups, self._peak_rates, strict=True):
            group["lr"] = peak * share * self.control.rate

    def finish_step(
        self,
        numbers: Mapping[str, float],
        jokes: Sequence[Joke] = (),
        judgements: Sequence[Judgement] = (),
        *,
        score: float | None = None,
        kl_per_token: float = 0.0,
        kl_limit: float = float("inf"),
        save: bool = False,
    ) -> None:
        """Evaluate if due, log the step, check whether it is the last, and save.

        `self.step` already counts it. Raises `TrainingStopped` on non-finite weights or a KL above its limit.
        """
        # Before any evaluation: from here on, critics with a memory know this step's lines.
        show(self._remembering, jokes)
        self.control.notice(jokes)
        numbers = {**numbers, "learning_rate": self.optimizer.param_groups[0]["lr"]} | self._evaluate()
        self.log_to.metrics(
            self.step, {**numbers, **self.control.numbers(), **self.control.measure_drift(self.step, self.student)}
        )
        if jokes:
            self.log_to.jokes(self.step, jokes, judgements)
        self.control.check(asks=self.asks)
        self._check_health(kl_per_token, kl_limit)
        if save or self.step % self.config.checkpoint_every == 0 or self.done or self.control.ending:
            self.save(score)

    def save(self, score: float | None = None) -> None:
        if self.checkpoints is None:
            return
        random_tensors, random_state = random_states()
        tensors = {f"student/{n}": t for n, t in self.student.state().items()}
        tensors |= optimizer_tensors(self.optimizer, self._names) | random_tensors
        state = {
            "stream": self.stream.get_state(),
            "watch": self.control.get_state(),
            "evaluations": self.evaluations,
            "random": random_state,
        }
        state |= {name: stateful.get_state() for name, stateful in self._saved.items()}
        if self._remembering:
            state["critics"] = [critic.get_state() for critic in self._remembering]
        flush_log(self.log_to)  # no checkpoint without the log of its steps
        self.last_saved = self.checkpoints.save(self.step, tensors, state, score, self.control.seconds)

    def _resume(self) -> int:
        """The step to resume from: 0, or that of the newest intact checkpoint."""
        checkpoint = self.checkpoints.resume() if self.checkpoints else None
        if checkpoint is None:
            if self.checkpoints is not None:
                self.log_to.rewind(0)  # a run killed before its first checkpoint may have logged some steps
            self.control.start(0, self.student)
            return 0
        self.student.load_state({n[8:]: t for n, t in checkpoint.tensors.items() if n.startswith("student/")})
        load_optimizer(self.optimizer, self._names, checkpoint.tensors)
        restore_random_states(checkpoint.tensors, checkpoint.state["random"])
        self.stream.set_state(checkpoint.state["stream"])
        for name, stateful in self._saved.items():
            stateful.set_state(checkpoint.state[name])
        self._restore_critics(checkpoint)
        self.evaluations = checkpoint.state["evaluations"]
        self.last_saved = checkpoint.folder
        self.control.set_state(checkpoint.state["watch"], checkpoint.seconds)
        self.control.check(asks=self.asks)
        self.log_to.rewind(checkpoint.step)
        self.control.start(checkpoint.step, self.student)
        return checkpoint.step

    def _restore_critics(self, checkpoint: Checkpoint) -> None:
        states = checkpoint.state.get("critics", [])
        if len(states) != len(self._remembering):
            raise CheckpointError(
                f"{checkpoint.folder.name} holds the memory of {len(states)} critics, but this run has "
                f"{len(self._remembering)} with a memory. Resume with the critics that the run began with, or start "
                "again in another folder."
            )
        for critic, state in zip(self._remembering, states, strict=True):
            critic.set_state(state)

    def _evaluate(self) -> dict[str, float]:
        """The evaluation's metrics under `eval/`, at the steps where one is due."""
        every = self.config.evaluate_every
        if self.measure is None or not every or self.step % every:
            return {}
        with self.control.paused():
            numbers = dict(self.measure(self.student))
        self.evaluations.append({"step": float(self.step)} | numbers)
        return {f"eval/{n}": v for n, v in numbers.items()}

    def _check_health(self, kl_per_token: float, kl_limit: float) -> None:
        """Stop the run on a non-finite weight or a KL above its limit, naming the last good checkpoint."""
        # One read for all of them: each read waits for the GPU to finish its queue.
        largest = torch._foreach_norm([p.detach() for p in self.policy.values()], float("inf"))
        if not bool(torch.isfinite(torch.stack([norm.float() for norm in largest])).all()):
            why = "a weight is no longer finite"
        elif kl_per_token > kl_limit:
            why = f"the KL is {kl_per_token:.2f} per token, above the limit of {kl_limit:g}"
        else:
            return
        where = f"The last good checkpoint is {self.last_saved}." if self.last_saved else "Nothing was saved yet."
        raise TrainingStopped(
            f"Stopped at step {self.step}: {why}. {where} A lower learning rate or a higher kl_weight usually helps."
        )
