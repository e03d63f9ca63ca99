"""Who writes: one frozen language model with adapters, how it samples, and what its tokens' log-probabilities are."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from humor_env.agents.student.student import IMITATION, POLICY, Lora, Student, ValueHead

__all__ = ["IMITATION", "POLICY", "Lora", "Student", "ValueHead"]


def __getattr__(name: str) -> Any:
    """The student is loaded, and torch with it, when it is asked for: a spec reads this folder's settings without."""
    if name in __all__:
        return getattr(import_module("humor_env.agents.student.student"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
