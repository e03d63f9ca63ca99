"""Settings for sampling, adapters and the generation server, with their limits.

    Sampling(max_new_tokens=40, temperature=0.7)
    Sampling(temperature=-1.0)          # InvalidOption: temperature must be at least 0; found -1.0.

A spec's tables `[eval.sampling]`, `[student.lora]` and `[student.backend]` are made from these classes: a new field
here is a new key there. So nothing here loads torch. `check_limits` works for every dataclass annotated like these.
"""

from __future__ import annotations

import dataclasses
import functools
import operator
import typing
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from annotated_types import Ge, Gt, Le, Lt

from humor_env.errors import InvalidOption

Count = Annotated[int, Ge(1)]
_LIMITS: dict[type, tuple[str, Callable[[Any, Any], bool], str]] = {
    Ge: ("ge", operator.ge, "at least"),
    Gt: ("gt", operator.gt, "above"),
    Le: ("le", operator.le, "at most"),
    Lt: ("lt", operator.lt, "below"),
}


def check_limits(settings: Any) -> None:
    """Raise `InvalidOption` for a value outside its field's annotated limits. NaN is outside all limits."""
    kind: Any = type(settings)
    for name, hint in _hints(kind).items():
        value = getattr(settings, name)
        if typing.get_origin(hint) is Literal and value not in typing.get_args(hint):
            raise InvalidOption(f"{name} must be {' or '.join(map(repr, typing.get_args(hint)))}; found {value!r}.")
        limits = [(*_LIMITS[type(m)], m) for m in getattr(hint, "__metadata__", ()) if type(m) in _LIMITS]
        if not all(holds(value, getattr(limit, bound)) for bound, holds, _, limit in limits):
            expected = " and ".join(f"{words} {getattr(limit, bound)}" for bound, _, words, limit in limits)
            raise InvalidOption(f"{name} must be {expected}; found {value}.")


@functools.cache
def _hints(settings: type) -> dict[str, Any]:
    return typing.get_type_hints(settings, include_extras=True)


@dataclass(frozen=True)
class Sampling:
    """How to sample. Learners score under the same temperature; 0 is greedy. top_p < 1 and top_k > 0 cut off the tail.

    Fields are named as in vLLM and TRL. Their comments are their descriptions in the docs' tables.
    """

    max_new_tokens: Count = 48  # longest line, in tokens
    temperature: Annotated[float, Ge(0)] = 1.0  # 0 is greedy
    top_p: Annotated[float, Gt(0), Le(1)] = 1.0  # keep the most likely tokens up to this probability
    top_k: Annotated[int, Ge(0)] = 0  # keep this many most likely tokens; 0 keeps all

    def __post_init__(self) -> None:
        check_limits(self)

    @property
    def scoring_temperature(self) -> float:
        """The temperature of log-probabilities; greedy lines are scored at 1."""
        return self.temperature or 1.0

    def how(self) -> dict[str, Any]:
        """All fields but the length, for a server that generates instead of this process."""
        return {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name != "max_new_tokens"}


@dataclass(frozen=True)
class Lora:
    """The adapter's shape. "all-linear" is every linear layer except the output layer."""

    rank: Count = 16
    alpha: Count = 32
    dropout: Annotated[float, Ge(0), Lt(1)] = 0.0
    targets: str | tuple[str, ...] = "all-linear"


@dataclass(frozen=True)
class ServerSettings:
    """A server that generates the student's lines instead of this process (vLLM with `--enable-lora` and
    VLLM_ALLOW_RUNTIME_LORA_UPDATING=1). `base` is the name it serves the model under, `key_env` the environment
    variable with its key. Adapters are passed through the run's folder, which the server must be able to read."""

    url: str
    base: str | None = None
    key_env: str | None = None
    timeout: Annotated[float, Gt(0)] = 120.0
    concurrency: Count = 16
