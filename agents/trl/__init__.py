"""Our critics and prompts in TRL's trainers (`formats`), and those trainers as learners here (`peers`)."""

from humor_env.agents.trl.formats import (
    demonstrations_dataset,
    make_trl_reward,
    preferences_dataset,
    prompts_dataset,
)

__all__ = ["demonstrations_dataset", "make_trl_reward", "preferences_dataset", "prompts_dataset"]
