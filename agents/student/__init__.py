"""The student: one frozen language model with adapters, its sampling, and its tokens' log-probabilities."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from humor_env.agents.student.student import IMITATION, POLICY, Lora, Student, ValueHead

__all__ = ["IMITATION", "POLICY", "Lora", "Student", "ValueHead"]


def __getattr__(name: str) -> Any:
    """Load the student, and with it torch, on first use: a spec reads this folder's settings without torch."""
    if name in __all__:
        return getattr(import_module("humor_env.agents.student.student"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
