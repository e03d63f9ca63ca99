"""What the settings of every learner have in common: counts are at least 1, and rates are numbers from 0 on.

class MyConfig:
    def __post_init__(self) -> None:
        check_bounds(self, "batch_size", "epochs")
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from humor_env.errors import InvalidOption

_FROM_ZERO = ("steps", "learning_rate", "value_learning_rate", "warmup_steps", "evaluate_every")


def check_bounds(config: Any, *counts: str) -> None:
    """`counts` are at least 1. No number may be NaN; steps, rates and the like are not negative (0 is a choice)."""
    for field in dataclasses.fields(config):
        name, value = field.name, getattr(config, field.name)
        if name in counts and value < 1:
            raise InvalidOption(f"{name} must be at least 1, found {value}.")
        if name in _FROM_ZERO and not 0 <= value < math.inf:
            raise InvalidOption(f"{name} is a number from 0 on, found {value}.")
        if isinstance(value, float) and math.isnan(value):
            raise InvalidOption(f"{name} is a number, found {value}.")
