"""The settings that learners share, and bounds checks for all settings. A learner's file declares only its own.

    @dataclass(frozen=True)
    class MyConfig(OnPolicyConfig):
        clip: float = 0.2

Keys in a spec stay flat: `learner.clip` and `learner.learning_rate` are at one level, whichever class declares them.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from humor_env.agents.session.processes import process_count
from humor_env.agents.student.sampling import Sampling
from humor_env.errors import InvalidOption
from humor_env.shared.plain_numbers import whole_number

_FROM_ZERO = (
    *("steps", "learning_rate", "value_learning_rate", "warmup_steps", "evaluate_every", "weight_decay"),
    *("kl_weight", "entropy_weight", "value_weight", "value_warmup", "imitation_weight", "ranking_weight"),
    *("missing_end_penalty",),
)
_ABOVE_ZERO = ("max_grad_norm", "clip", "clip_high", "value_clip", "kl_limit", "kl_target", "kl_stop", "kl_horizon")
_SHARES = ("gamma", "lam", "imitation_decay", "max_failure_share", "max_flip_share")
_DECAYS = ("constant", "linear", "cosine")
AUTO: Literal["auto"] = "auto"
MicroBatch = int | Literal["auto"]  # "auto": the largest that fits, chosen before a run's first step


def check_bounds(config: Any, *counts: str) -> None:
    """Refuse settings that would reverse learning, disable it or make no sense. Each of `counts` must be at least 1."""
    for setting in dataclasses.fields(config):
        name, value = setting.name, getattr(config, setting.name)
        if value is None:
            continue
        if name == "micro_batch" and isinstance(value, str):
            if value != AUTO:
                raise InvalidOption(f'micro_batch must be a whole number of at least 1, or "auto"; found {value!r}.')
            continue
        if name in counts and value < 1:
            raise InvalidOption(f"{name} must be at least 1, found {value}.")
        if isinstance(value, float) and math.isnan(value):
            raise InvalidOption(f"{name} must be a number, found {value}.")
        if name in _FROM_ZERO and not 0 <= value < math.inf:
            raise InvalidOption(f"{name} must be a number of at least 0, found {value}.")
        if name in _ABOVE_ZERO and not value > 0:
            raise InvalidOption(f"{name} must be above 0, found {value}.")
        if name in _SHARES and not 0 <= value <= 1:
            raise InvalidOption(f"{name} must be between 0 and 1, found {value}.")
        if name == "decay" and value not in _DECAYS:
            raise InvalidOption(f"decay must be 'constant', 'linear' or 'cosine', found '{value}'.")


def rows_at_once(config: HasMicroBatch) -> int:
    """`micro_batch` as a number of rows. Raises if it is still "auto"."""
    number = whole_number(config.micro_batch)
    if number is not None:
        return number
    raise InvalidOption(
        'micro_batch = "auto" is resolved by `humor-env train`. In code give a number, or compute one with '
        "step_memory of humor_env.agents.session.memory."
    )


class HasMicroBatch(Protocol):
    @property
    def micro_batch(self) -> MicroBatch: ...


@dataclass(frozen=True)
class LearnerConfig:
    """Settings of every policy learner. `decay` is the learning rate's: "constant", "linear" or "cosine"."""

    micro_batch: MicroBatch = 32  # rows in memory at once; "auto": as many as fit
    learning_rate: float = 1e-3
    warmup_steps: int = 0
    decay: str = "constant"
    max_grad_norm: float = 1.0
    checkpoint_every: int = 10
    evaluate_every: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        check_bounds(self, "batch_size", "siblings", "keep", "epochs", "minibatches", "micro_batch", "checkpoint_every")


@dataclass(frozen=True)
class OnPolicyConfig(LearnerConfig):
    """Settings of learners from a critic's scores."""

    steps: int = 100
    batch_size: int = 64  # lines per step, over all processes
    siblings: int = 1  # lines per prompt
    sampling: Sampling = field(default_factory=Sampling)
    epochs: int = 1  # passes over each batch
    minibatches: int = 1  # optimiser steps per pass
    kl_limit: float = 5.0  # KL per token to the imitation above which the run stops
    missing_end_penalty: float = 0.0
    max_failure_share: float = 0.5
    max_flip_share: float = 0.5  # most verdicts that may change with the order, as a share; 1 accepts any judge

    def __post_init__(self) -> None:
        super().__post_init__()
        share = self.siblings * process_count()
        if self.batch_size % share:
            raise InvalidOption(f"batch_size {self.batch_size} must be a multiple of siblings x processes = {share}.")
        if self.minibatches * process_count() > self.batch_size:
            raise InvalidOption(
                f"Each of {self.minibatches} minibatches needs a line of each process: batch_size {self.batch_size} "
                f"must be at least minibatches x processes = {self.minibatches * process_count()}."
            )

    @property
    def one_pass(self) -> bool:
        """Whether each batch is one optimiser step, so that the old and new policy are equal during it."""
        return self.epochs == 1 and self.minibatches == 1

    def check_groups(self) -> None:
        """For learners that compare siblings."""
        if self.siblings < 2:
            raise InvalidOption(f"This learner needs at least 2 siblings, found {self.siblings}.")

    def check_even_minibatches(self) -> None:
        """For learners that divide a minibatch's loss by its share of the lines."""
        share = self.siblings * self.minibatches * process_count()
        if self.batch_size % share:
            raise InvalidOption(
                f"batch_size {self.batch_size} must be a multiple of siblings x minibatches x processes = {share}."
            )
