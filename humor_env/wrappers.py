"""A wrapper for libraries whose buffers only hold numbers.

    env = NumbersOnlyInfo(gym.make("humor_env/Tokens-v0"))
    env.reset(seed=0)[1]            # {"attempt": 0, "judgement_failed": False}

Tianshou and TorchRL store `info` in arrays: a text, None, or a key that is sometimes missing crashes their runs.
"""

from __future__ import annotations

from typing import Any

import gymnasium
from gymnasium.utils import RecordConstructorArgs


class NumbersOnlyInfo(gymnasium.Wrapper[Any, Any, Any, Any], RecordConstructorArgs):
    """Reduces `info` to the same two numbers at every reset and step: `attempt` and `judgement_failed`.

    The score is in the reward; `judgement_failed` distinguishes a failed judgement's reward of 0 from a bad joke's.
    The full judgement stays in `env.unwrapped.last_judgement`.
    """

    def __init__(self, env: gymnasium.Env[Any, Any]) -> None:
        RecordConstructorArgs.__init__(self)
        gymnasium.Wrapper.__init__(self, env)
        self._attempt = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        observation, _ = self.env.reset(seed=seed, options=options)
        self._attempt = 0
        return observation, {"attempt": 0, "judgement_failed": False}

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        observation, reward, terminated, truncated, info = self.env.step(action)
        self._attempt = int(info.get("attempt", self._attempt))
        numbers = {"attempt": self._attempt, "judgement_failed": bool(info.get("judgement_failed", False))}
        return observation, reward, terminated, truncated, numbers
