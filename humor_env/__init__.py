"""Humor as reinforcement learning: environments whose reward is a critic's judgement of a joke.

    import gymnasium as gym
    import humor_env

    env = gym.make("humor_env/Paraphrase-v0")
    observation, info = env.reset(seed=0)                  # "The meeting was slow."
    _, reward, *_ = env.step("The meeting was so slow that glaciers overtook it.")

Importing registers the environment ids and loads nothing heavy; modules that need torch are loaded on first use.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

import gymnasium

from humor_env import registry
from humor_env.types import Critic, Demonstration, Joke, Judge, Judgement, Preference, Prompt, Usage, Verdict

if TYPE_CHECKING:
    from humor_env.checks import check_critic, check_env, check_judge, check_prompts
    from humor_env.env import HumorEnv
    from humor_env.prompts import PromptSet, load_prompts
    from humor_env.spaces import UnicodeText
    from humor_env.tokens import TokensEnv, TokensVectorEnv
    from humor_env.vector import HumorVectorEnv
    from humor_env.wrappers import NumbersOnlyInfo

__version__ = "0.1.0"

ENV_IDS = ("humor_env/Paraphrase-v0", "humor_env/OneLiner-v0", "humor_env/Revise-v0", "humor_env/Tokens-v0")

_LATER = {
    "HumorEnv": "humor_env.env",
    "HumorVectorEnv": "humor_env.vector",
    "NumbersOnlyInfo": "humor_env.wrappers",
    "PromptSet": "humor_env.prompts",
    "TokensEnv": "humor_env.tokens",
    "TokensVectorEnv": "humor_env.tokens",
    "UnicodeText": "humor_env.spaces",
    "check_critic": "humor_env.checks",
    "check_env": "humor_env.checks",
    "check_judge": "humor_env.checks",
    "check_prompts": "humor_env.checks",
    "load_prompts": "humor_env.prompts",
}

__all__ = [
    "ENV_IDS",
    "Critic",
    "Demonstration",
    "HumorEnv",
    "HumorVectorEnv",
    "Joke",
    "Judge",
    "Judgement",
    "NumbersOnlyInfo",
    "Preference",
    "Prompt",
    "PromptSet",
    "TokensEnv",
    "TokensVectorEnv",
    "UnicodeText",
    "Usage",
    "Verdict",
    "check_critic",
    "check_env",
    "check_judge",
    "check_prompts",
    "load_prompts",
    "registry",
]


def __getattr__(name: str) -> Any:
    if name in _LATER:
        return getattr(importlib.import_module(_LATER[name]), name)
    raise AttributeError(f"module 'humor_env' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted([*globals(), *_LATER])


def _register_environments() -> None:
    """Register with string entry points and plain-data kwargs, so that a spec survives `to_json`."""
    paraphrase, one_liner, revise, token_level = ENV_IDS
    # No TimeLimit and no nondeterminism: an episode ends by itself after `attempts` steps, and the default critic is
    # exact. Cache a nondeterministic critic, or make the environment from a spec that declares it.
    for env_id, options in (
        (paraphrase, {"prompts": "pocket", "critic": "pocket"}),
        (one_liner, {"prompts": "pocket-oneliner", "critic": "pocket"}),
        (revise, {"prompts": "pocket", "critic": "pocket", "attempts": 3}),
    ):
        gymnasium.register(
            env_id,
            entry_point="humor_env.env:HumorEnv",
            vector_entry_point="humor_env.vector:HumorVectorEnv",
            kwargs=options,
        )
    gymnasium.register(
        token_level,
        entry_point="humor_env.tokens:TokensEnv",
        vector_entry_point="humor_env.tokens:TokensVectorEnv",
        kwargs={"prompts": "pocket", "critic": "pocket"},
    )


_register_environments()
