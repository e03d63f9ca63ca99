"""What may end a run before its last step: the user, a limit, or a monitor that detected drift.

    control = RunControl(Limits(samples=10_000, seconds=600))
    result = train(config, env, student, log, prompts=prompts, checkpoints=store, control=control)
    result.stopped, result.why      # False, "the limit of 10000 samples is reached (10048 taken)"

Every learner takes a `control`, which its session checks after each step, so that all of them end the same way:
the step is finished, a checkpoint is saved, and the reason is reported. The counts are saved in the checkpoint, so they
continue across restarts; with a higher limit the run continues from there.
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
from humor_env.agents.session.processes import any_process, sum_over_processes
from humor_env.agents.student import POLICY, Student
from humor_env.errors import InvalidOption
from humor_env.types import Joke


@dataclass(frozen=True)
class Limits:
    """Limits of one learner in one run, over all processes and restarts. None means no limit.

    A sample is a line the student wrote to learn from. A judgement is a critic's answer about a line, or a judge's
    about a pair (both orders together are one). Seconds are those of the training loop. Evaluations count towards none,
    so that evaluating more often does not shorten a run.
    """

    samples: int | None = None
    judgements: int | None = None
    seconds: float | None = None

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if value is not None and not value > 0:
                raise InvalidOption(f"The limit of {field.name} must be above 0, or None for no limit; found {value}.")


class RunControl:
    """`ending` is empty while the run may continue, else the reason why it ends."""

    def __init__(self, limits: Limits | None = None, monitor: Monitor | None = None) -> None:
        self.limits = limits or Limits()
        self.monitor = monitor
        self.samples = self.judgements = 0
        self.ending = ""
        self.by_user = False
        self.steps_before = 0  # of an earlier phase: the monitor's steps continue across phases, as the log's do
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
        """Time in the training loop so far, including before restarts."""
        return self._seconds + (0.0 if self._since is None else time.perf_counter() - self._since)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Stop the clock, for an evaluation. Every process must call it: where only the main process evaluates, the
        clocks of the others stand still until it has."""
        running = self._since is not None
        self._seconds, self._since = self.seconds, None
        try:
            yield
            any_process(False)  # wait here, not with a running clock at the next exchange
        finally:
            self._since = time.perf_counter() if running else None

    def count(self, samples: int, judgements: int) -> None:
        """Add the counts of a step or feedback round, over all processes."""
        self.samples += samples
        self.judgements += judgements

    @property
    def rate(self) -> float:
        """Factor for the learning rate: 1, unless a monitor slows the run."""
        return 1.0 if self.monitor is None else self.monitor.rate

    def measure_drift(self, step: int, student: Student, adapter: str | None = POLICY) -> dict[str, float]:
        """The monitor's metrics at the steps where it checks; every process must call it."""
        step += self.steps_before
        if self.monitor is None or not self.monitor.is_due(step):
            return {}
        with self.paused():
            return self.monitor.measure(step, student, adapter)

    def notice(self, jokes: Sequence[Joke]) -> None:
        """Show the monitor the lines learned from in a step; every process must pass the same lines."""
        if self.monitor is not None:
            self.monitor.notice(jokes)

    def start(self, step: int, student: Student, adapter: str | None = POLICY) -> None:
        """Call before this process's first step: rewinds the monitor's log to the steps done; at step 0 the monitor
        takes its first check, at the student as it came."""
        if self.monitor is not None:
            self.monitor.rewind(step + self.steps_before)
            if step + self.steps_before == 0:
                self.measure_drift(0, student, adapter)

    def check(self, *, asks: bool = True) -> None:
        """Decide whether the run continues, the same in every process.

        With `asks=False` (the next step only learns from feedback already collected) the limits of samples and
        judgements do not end the run: everything paid for is learned.
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
            limit, count = getattr(self.limits, name), getattr(self, name)
            if asks and limit is not None and count >= limit:
                reasons.append(f"the limit of {limit} {name} is reached ({count} taken)")
        if late:
            reasons.append(f"the limit of {self.limits.seconds:g} seconds is reached")
        if self.monitor is not None and self.monitor.ending:
            reasons.append(self.monitor.ending)
        self.ending = "; ".join(reasons)

    def numbers(self) -> dict[str, float]:
        """The counts so far."""
        return {
            "spent/samples": float(self.samples),
            "spent/judgements": float(self.judgements),
            "seconds/spent": self.seconds,
        }

    def get_state(self) -> dict[str, Any]:
        """Plain data, the same for equal runs: without the clock, which a checkpoint's manifest keeps."""
        monitor_state = None if self.monitor is None else self.monitor.get_state()
        return {"samples": self.samples, "judgements": self.judgements, "monitor": monitor_state}

    def set_state(self, state: Mapping[str, Any], seconds: float) -> None:
        self.samples, self.judgements = int(state["samples"]), int(state["judgements"])
        self._seconds = seconds
        if self.monitor is not None and state["monitor"] is not None:
            self.monitor.set_state(state["monitor"])
