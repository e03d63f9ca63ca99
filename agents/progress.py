"""What every on-policy learner does around its update: save, resume, give up, and put numbers on a batch.

progress = Progress(student, optimizer, parameters, stream, checkpoints, watch)
step = progress.resume(log, kl_weight, scale)
with progress.watch as watch:
    while step < config.steps and not watch.ending:
        progress.set_learning_rate(share)
        ...
        progress.record(log, step, numbers, jokes, judgements)
        if step % config.checkpoint_every == 0 or step == config.steps or watch.ending:
            progress.save(step, kl_weight, scale, reward)
return progress.result(step, done=step >= config.steps)
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from humor_env.agents.checkpoint import (
    CheckpointStore,
    load_optimizer,
    optimizer_tensors,
    random_states,
    restore_random_states,
)
from humor_env.agents.processes import spread_over_processes, sum_over_processes
from humor_env.agents.rollout import Rollout
from humor_env.agents.runlog import Log
from humor_env.agents.schedule import AdaptiveCoefficient, RunningScale
from humor_env.agents.student import Student
from humor_env.agents.watch import Watch
from humor_env.errors import TrainingStopped
from humor_env.types import Joke, Judgement, Prompt


class Writer(Protocol):
    """Prompts in, one joke for each out; the same seed writes the same."""

    def write(self, prompts: Sequence[Prompt], *, seed: int | None = None) -> list[Joke]: ...


@dataclass(frozen=True)
class TrainResult:
    """How a run ended. `stopped` means by the user, before the last step; `why` says what else ended it before that:
    a limit, or drift. It is empty for a run that took all its steps. `writer`, where there is one, is who writes in the
    student's place from now on."""

    steps: int
    stopped: bool
    evaluations: list[dict[str, float]]
    checkpoint: Path | None
    why: str = ""
    writer: Writer | None = None


class Stream(Protocol):
    """Where a learner's examples come from, as plain data: a `PromptStream`, or `Rounds` of feedback."""

    def get_state(self) -> dict[str, Any]: ...

    def set_state(self, state: Mapping[str, Any]) -> None: ...


class Progress:
    """One learner's state on its way to and from the disk."""

    def __init__(
        self,
        student: Student,
        optimizer: torch.optim.Optimizer,
        parameters: Mapping[str, torch.nn.Parameter],
        stream: Stream,
        checkpoints: CheckpointStore | None,
        watch: Watch | None = None,
    ) -> None:
        self.student = student
        self.optimizer = optimizer
        self.peaks = [group["lr"] for group in optimizer.param_groups]
        self.names = {id(p): n for n, p in parameters.items()}
        self.stream = stream
        self.checkpoints = checkpoints
        self.watch = watch or Watch()
        self.evaluations: list[dict[str, float]] = []
        self.last_saved: Path | None = None

    def resume(self, log: Log, kl_weight: AdaptiveCoefficient | None = None, scale: RunningScale | None = None) -> int:
        """The step to go on from: 0, or that of the newest whole checkpoint."""
        found = self.checkpoints.latest() if self.checkpoints else None
        if found is None:
            if self.checkpoints is not None:
                log.rewind(0)  # a run that died before its first checkpoint may have logged some steps
            self.watch.begin(0, self.student)
            return 0
        self.student.load_state({n[8:]: t for n, t in found.tensors.items() if n.startswith("student/")})
        load_optimizer(self.optimizer, self.names, found.tensors)
        restore_random_states(found.tensors, found.state["random"])
        self.stream.set_state(found.state["stream"])
        if kl_weight is not None:
            kl_weight.value = found.state["kl_weight"]
        if scale is not None:
            scale.count, scale.mean, scale.squares = found.state["scale"]
        self.evaluations = found.state["evaluations"]
        self.last_saved = found.folder
        self.watch.set_state(found.state["watch"], found.seconds)
        self.watch.look(asks=self._asks)
        log.rewind(found.step)
        self.watch.begin(found.step, self.student)
        return found.step

    @property
    def _asks(self) -> bool:
        """Whether the next step asks student and critic for more. A round of feedback is learnt to its end first."""
        return bool(getattr(self.stream, "due", True))

    def set_learning_rate(self, share: float) -> None:
        """Each group of parameters learns at this share of its own peak rate."""
        for group, peak in zip(self.optimizer.param_groups, self.peaks, strict=True):
            group["lr"] = peak * share * self.watch.rate

    def record(
        self,
        log: Log,
        step: int,
        numbers: Mapping[str, float],
        jokes: Sequence[Joke] = (),
        judgements: Sequence[Judgement] = (),
    ) -> None:
        """Write down a step, and look whether it is the run's last."""
        log.metrics(step, {**numbers, **self.watch.numbers(), **self.watch.see(step, self.student)})
        if jokes:
            log.jokes(step, jokes, judgements)
        self.watch.look(asks=self._asks)

    def result(self, step: int, *, done: bool) -> TrainResult:
        """How the run ended; `done` where no step was left."""
        stopped = self.watch.by_user and not done
        why = "" if stopped or done else self.watch.ending
        return TrainResult(step, stopped, self.evaluations, self.last_saved, why)

    def save(
        self,
        step: int,
        kl_weight: AdaptiveCoefficient | None = None,
        scale: RunningScale | None = None,
        score: float | None = None,
    ) -> None:
        if self.checkpoints is None:
            return
        random_tensors, random_state = random_states()
        tensors = {f"student/{n}": t for n, t in self.student.state().items()}
        tensors |= optimizer_tensors(self.optimizer, self.names) | random_tensors
        state = {
            "stream": self.stream.get_state(),
            "watch": self.watch.get_state(),
            "kl_weight": None if kl_weight is None else kl_weight.value,
            "scale": None if scale is None else scale.state(),
            "evaluations": self.evaluations,
            "random": random_state,
        }
        self.last_saved = self.checkpoints.save(step, tensors, state, score, self.watch.seconds)

    def evaluate(
        self, step: int, every: int, evaluate: Callable[[Student], Mapping[str, float]] | None
    ) -> dict[str, float]:
        """The evaluation's numbers under `eval/`, in the steps where one is due."""
        if evaluate is None or not every or step % every:
            return {}
        with self.watch.paused():
            found = dict(evaluate(self.student))
        self.evaluations.append({"step": float(step)} | found)
        return {f"eval/{n}": v for n, v in found.items()}

    def kl_numbers(
        self, rollout: Rollout, mask: Tensor, estimate: Callable[[Tensor, Tensor], Tensor]
    ) -> dict[str, float]:
        """The distance to the imitation: the mean over tokens, and its sum over a line."""
        if rollout.logprobs is None or rollout.ref_logprobs is None:
            return {"kl/per_token": 0.0, "kl/per_line": 0.0}
        kl = estimate(rollout.logprobs, rollout.ref_logprobs) * mask
        total, tokens, lines = sum_over_processes(
            torch.stack([kl.sum(), mask.sum().float(), mask.any(-1).sum().float()])
        ).tolist()
        return {"kl/per_token": total / max(1.0, tokens), "kl/per_line": total / max(1.0, lines)}

    def check_health(
        self, step: int, parameters: Iterable[torch.nn.Parameter], kl_per_token: float, kl_limit: float
    ) -> None:
        """Stop the run on a weight that is not finite or a KL past its limit; the last good checkpoint is named."""
        if not all(torch.isfinite(p).all() for p in parameters):
            why = "a weight is no longer finite"
        elif kl_per_token > kl_limit:
            why = f"the KL is {kl_per_token:.2f} a token, past the limit of {kl_limit:g}"
        else:
            return
        where = f"The last good checkpoint is {self.last_saved}." if self.last_saved else "Nothing was saved yet."
        raise TrainingStopped(
            f"Stopped at step {step}: {why}. {where} A lower learning rate or a higher kl_weight usually helps."
        )

    def clock(self, rollout: Rollout, update_seconds: float, step_seconds: float) -> dict[str, float]:
        """Seconds by phase in this process; `judge` is the critic's own time, of which only `judge_wait` was not
        hidden. Tokens and samples are those of all processes."""
        numbers = {f"seconds/{n}": s for n, s in rollout.seconds.items()}
        numbers |= {"seconds/update": update_seconds, "seconds/step": step_seconds}
        done = torch.stack(
            [rollout.action_mask.sum().float(), torch.tensor(float(len(rollout)), device=rollout.tokens.device)]
        )
        tokens, samples = sum_over_processes(done).tolist()
        return numbers | {"tokens_per_second": tokens / step_seconds, "samples_per_second": samples / step_seconds}


def learning_numbers(sums: Mapping[str, float], norms: Sequence[float]) -> dict[str, float]:
    """The health of an update, as means over tokens: loss parts, ratio, clip share, entropy; and the gradient norm."""
    tokens = max(1.0, sums["tokens"])
    numbers = {f"update/{n}": sums[n] / tokens for n in sums if n not in ("tokens", "lines", "mismatch")}
    numbers["update/grad_norm"] = sum(norms) / len(norms)
    return numbers


def value_numbers(rollout: Rollout, mask: Tensor, returns: Tensor, token_rewards: Tensor) -> dict[str, float]:
    """How much of the returns the values explain, and what a line earned after its KL, over all processes."""
    numbers = {}
    kept = mask.bool()
    if rollout.values is not None:
        count, _, spread = spread_over_processes(returns, kept)
        _, mean, _ = spread_over_processes(rollout.values, kept)
        _, _, unexplained = spread_over_processes(returns - rollout.values, kept)
        if count > 1:
            numbers["value/explained_variance"] = 1 - unexplained / spread if spread > 0 else 0.0
            numbers["value/mean"] = mean
    earned, lines = sum_over_processes(torch.stack([token_rewards.sum(), rollout.valid.sum().float()])).tolist()
    numbers["reward/per_line_after_kl"] = earned / max(1.0, lines)
    return numbers
