"""The settings that learners share, and the bounds of all of them. A learner's own file shows only what is its own.

    @dataclass(frozen=True)
    class MyConfig(OnPolicyConfig):
        clip: float = 0.2

Keys in a spec stay flat: `learner.clip` and `learner.learning_rate` stand beside each other, whoever declared them.
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
MicroBatch = int | Literal["auto"]  # "auto": the largest that fits, chosen by a run before its first step


def check_bounds(config: Any, *counts: str) -> None:
    """`counts` are at least 1. Settings that would turn learning round, switch it off or make no sense are refused."""
    for setting in dataclasses.fields(config):
        name, value = setting.name, getattr(config, setting.name)
        if value is None:
            continue
        if name == "micro_batch" and isinstance(value, str):
            if value != AUTO:
                raise InvalidOption(f'micro_batch is a whole number from 1 on, or "auto"; found {value!r}.')
            continue
        if name in counts and value < 1:
            raise InvalidOption(f"{name} must be at least 1, found {value}.")
        if isinstance(value, float) and math.isnan(value):
            raise InvalidOption(f"{name} is a number, found {value}.")
        if name in _FROM_ZERO and not 0 <= value < math.inf:
            raise InvalidOption(f"{name} is a number from 0 on, found {value}.")
        if name in _ABOVE_ZERO and not value > 0:
            raise InvalidOption(f"{name} is above 0, found {value}.")
        if name in _SHARES and not 0 <= value <= 1:
            raise InvalidOption(f"{name} lies between 0 and 1, found {value}.")
        if name == "decay" and value not in _DECAYS:
            raise InvalidOption(f"decay is 'constant', 'linear' or 'cosine', found '{value}'.")


def rows_at_once(config: HasMicroBatch) -> int:
    """The number of rows that `micro_batch` says. Where it still says "auto", nobody has chosen one."""
    number = whole_number(config.micro_batch)
    if number is not None:
        return number
    raise InvalidOption(
        'micro_batch = "auto" is chosen by `humor-env train`. In code choose it yourself, with step_memory of '
        "humor_env.agents.session.memory, or give a number."
    )


class HasMicroBatch(Protocol):
    @property
    def micro_batch(self) -> MicroBatch: ...


@dataclass(frozen=True)
class LearnerConfig:
    """What every learner of the policy has. `decay` is of the learning rate: "constant", "linear" or "cosine"."""

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
    """What learners from a critic's scores have in common."""

    steps: int = 100
    batch_size: int = 64  # lines a step, over all processes
    siblings: int = 1  # lines per prompt
    sampling: Sampling = field(default_factory=Sampling)
    epochs: int = 1  # passes over each batch
    minibatches: int = 1  # optimiser steps a pass
    kl_limit: float = 5.0  # KL per token to the imitation at which the run stops
    missing_end_penalty: float = 0.0
    max_failure_share: float = 0.5
    max_flip_share: float = 0.5  # most verdicts that may change with the order, as a share; 1 accepts any judge

    def __post_init__(self) -> None:
        super().__post_init__()
        share = self.siblings * process_count()
        if self.batch_size % share:
            raise InvalidOption(f"batch_size {self.batch_size} must be a multiple of siblings x processes = {share}.")

    @property
    def one_pass(self) -> bool:
        """Whether each batch is one optimiser step, so that old and new policy are the same while it is taken."""
        return self.epochs == 1 and self.minibatches == 1

    def check_groups(self) -> None:
        """For learners that compare siblings."""
        if self.siblings < 2:
            raise InvalidOption(f"This learner compares siblings: give at least 2, found {self.siblings}.")

    def check_even_minibatches(self) -> None:
        """For learners that divide a minibatch's loss by its share of the lines."""
        share = self.siblings * self.minibatches * process_count()
        if self.batch_size % share:
            raise InvalidOption(
                f"batch_size {self.batch_size} must be a multiple of siblings x minibatches x processes = {share}."
            )
