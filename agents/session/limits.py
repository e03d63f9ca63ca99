"""What may end a run before its last step: the user, a limit that is reached, or a monitor that saw it drift.

    control = RunControl(Limits(samples=10_000, seconds=600))
    result = train(config, env, student, log, prompts=prompts, checkpoints=store, control=control)
    result.stopped, result.why      # False, "the limit of 10000 samples is reached (10048 taken)"

Every learner takes a `control`, which its session asks after each step, so that all of them end alike:
the step is finished, a checkpoint saved, and the reason told. What was taken is part of the checkpoint and so counts
on over restarts; with a higher limit the run goes on from there.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from typing import Any

import torch

from humor_env.agents.session.log import StopRequest
from humor_env.agents.session.monitor import Monitor
from humor_env.agents.session.processes import sum_over_processes
from humor_env.agents.student import POLICY, Student
from humor_env.errors import InvalidOption
from humor_env.types import Joke


@dataclass(frozen=True)
class Limits:
    """What one learner may take in one run, over all processes and restarts. None is no limit.

    A sample is a line the student wrote in order to learn from it. A judgement is an answer of the critic about a line,
    or of the judge about a pair (in both orders: one judgement). Seconds are those of the training loop. Evaluations
    count in none of them, so that measuring more often does not shorten a run.
    """

    samples: int | None = None
    judgements: int | None = None
    seconds: float | None = None

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if value is not None and not value > 0:
                raise InvalidOption(f"A limit of {field.name} is above 0, or None for no limit; found {value}.")


class RunControl:
    """`ending` is empty while the run may go on, else a sentence that says why it does not."""

    def __init__(self, limits: Limits | None = None, monitor: Monitor | None = None) -> None:
        self.limits = limits or Limits()
        self.monitor = monitor
        self.samples = self.judgements = 0
        self.ending = ""
        self.by_user = False
        self.steps_before = 0  # of an earlier phase: the monitor counts through, as the log does
        self._stop = StopRequest()
        self._seconds = 0.0
        self._since: float | None = None

    def __enter__(self) -> RunControl:
        self._stop.__enter__()
        self._since = time.perf_counter()
        return self

    def __exit__(self, *problem: object) -> None:
        self._seconds, self._since = self.seconds, None
        self._stop.__exit__(*problem)

    @property
    def seconds(self) -> float:
        """Spent in the training loop so far, those before a restart included."""
        return self._seconds + (0.0 if self._since is None else time.perf_counter() - self._since)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Time that is not learning's: an evaluation."""
        running = self._since is not None
        self._seconds, self._since = self.seconds, None
        try:
            yield
        finally:
            self._since = time.perf_counter() if running else None

    def count(self, samples: int, judgements: int) -> None:
        """Count what a step or a round of feedback took, over all processes."""
        self.samples += samples
        self.judgements += judgements

    @property
    def rate(self) -> float:
        """What the learning rate is to be multiplied by: 1, unless a monitor slows the run."""
        return 1.0 if self.monitor is None else self.monitor.rate

    def measure_drift(self, step: int, student: Student, adapter: str | None = POLICY) -> dict[str, float]:
        """The monitor's numbers, in the steps where it looks; every process must call it."""
        step += self.steps_before
        if self.monitor is None or not self.monitor.is_due(step):
            return {}
        with self.paused():
            return self.monitor.measure(step, student, adapter)

    def notice(self, jokes: Sequence[Joke]) -> None:
        """Let the monitor see what was learned from in a step; in every process the same lines."""
        if self.monitor is not None:
            self.monitor.notice(jokes)

    def start(self, step: int, student: Student, adapter: str | None = POLICY) -> None:
        """Before the first step of this process: the monitor's log is that of the steps done, and its first look is at
        the student as it came."""
        if self.monitor is not None:
            self.monitor.rewind(step + self.steps_before)
            if step + self.steps_before == 0:
                self.measure_drift(0, student, adapter)

    def check(self, *, asks: bool = True) -> None:
        """Decide whether the run goes on, the same in every process.

        A learner that `asks` nothing of student and critic in its next step (it still learns from a round of feedback)
        is not ended by samples and judgements: it learns all of what was paid for.
        """
        late = self.limits.seconds is not None and self.seconds >= self.limits.seconds
        flags = torch.tensor([float(bool(self._stop)), float(late)])
        stop_asked, late = (flag > 0 for flag in sum_over_processes(flags).tolist())
        self.by_user = stop_asked
        if stop_asked:
            self.ending = "the user asked it to stop"
            return
        reasons = []
        for name in ("samples", "judgements"):
            limit, taken = getattr(self.limits, name), getattr(self, name)
            if asks and limit is not None and taken >= limit:
                reasons.append(f"the limit of {limit} {name} is reached ({taken} taken)")
        if late:
            reasons.append(f"the limit of {self.limits.seconds:g} seconds is reached")
        if self.monitor is not None and self.monitor.ending:
            reasons.append(self.monitor.ending)
        self.ending = "; ".join(reasons)

    def numbers(self) -> dict[str, float]:
        """What was taken so far."""
        return {
            "spent/samples": float(self.samples),
            "spent/judgements": float(self.judgements),
            "seconds/spent": self.seconds,
        }

    def get_state(self) -> dict[str, Any]:
        """Plain data, equal for equal runs: without the clock, which a checkpoint's manifest keeps."""
        monitor_state = None if self.monitor is None else self.monitor.get_state()
        return {"samples": self.samples, "judgements": self.judgements, "monitor": monitor_state}

    def set_state(self, state: Mapping[str, Any], seconds: float) -> None:
        self.samples, self.judgements = int(state["samples"]), int(state["judgements"])
        self._seconds = seconds
        if self.monitor is not None and state["monitor"] is not None:
            self.monitor.set_state(state["monitor"])
