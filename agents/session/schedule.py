"""Learning rates and coefficients that change over a run, as functions of its progress."""

from __future__ import annotations

import math
from collections.abc import Sequence


def learning_rate_share(step: int, steps: int, *, warmup: int, decay: str) -> float:
    """The share of the peak rate at `step` (from 0): linear warm-up, then "constant", "linear" or "cosine" towards a
    tenth, which the step after the last would have."""
    if step < warmup:
        return (step + 1) / warmup
    progress = (step - warmup) / max(1, steps - warmup)
    if decay == "constant":
        return 1.0
    if decay == "linear":
        return 1.0 - 0.9 * progress
    return 0.1 + 0.45 * (1 + math.cos(math.pi * progress))


class AdaptiveCoefficient:
    """Ziegler et al.'s controller: the KL weight rises while the KL is above its target, and falls below it."""

    def __init__(self, value: float, target: float | None, horizon: float) -> None:
        self.value, self.target, self.horizon = value, target, horizon

    def update(self, observed: float, samples: int) -> None:
        if self.target:
            error = min(max(observed / self.target - 1, -0.2), 0.2)
            self.value *= 1 + error * samples / self.horizon

    def get_state(self) -> float:
        return self.value

    def set_state(self, state: float) -> None:
        self.value = state


class RunningScale:
    """The running standard deviation of rewards, merged batch by batch; its three numbers are saved with the run."""

    def __init__(self, count: float = 0.0, mean: float = 0.0, squares: float = 0.0) -> None:
        self.count, self.mean, self.squares = count, mean, squares

    def add(self, count: float, mean: float, squares: float) -> None:
        """Merge a batch: its size, its mean, and its sum of squared distances from that mean."""
        if count:
            total = self.count + count
            apart = mean - self.mean
            self.squares += squares + apart**2 * self.count * count / total
            self.mean += apart * count / total
            self.count = total

    @property
    def deviation(self) -> float:
        return math.sqrt(self.squares / (self.count - 1)) if self.count > 1 and self.squares > 0 else 1.0

    def get_state(self) -> list[float]:
        return [self.count, self.mean, self.squares]

    def set_state(self, state: Sequence[float]) -> None:
        self.count, self.mean, self.squares = state
