"""A prompt set as a taskset: each sentence is to be said as one funny sentence, and a critic scores the reply.

taskset = vf.load_taskset(HumorTasksetConfig(id="humor-env-v1", prompts="pocket", split="test"))
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import verifiers.v1 as vf
from pydantic import Field

from humor_env.experiments.sharing import INSTRUCTION
from humor_env_v1.critic import score, shared_critic


class HumorData(vf.TaskData):
    """`id` is the prompt's, in this prompt set."""

    prompts: str
    split: str


class HumorTaskConfig(vf.TaskConfig):
    critic: str = "rules"
    critic_options: dict[str, Any] = Field(default_factory=dict)


class HumorTask(vf.Task[HumorData, vf.State, HumorTaskConfig]):
    @property
    def key(self) -> str:
        """By the prompt's own id: it stays where it is when the set grows."""
        return f"{self.data.prompts}/{self.data.id}"

    @vf.reward
    async def funny(self, trace: vf.Trace) -> float:
        shared = shared_critic(self.config.critic, self.config.critic_options, self.data.prompts, self.data.split)
        return await score(shared, shared.task.prompts.get(str(self.data.id)), trace, "funny")


class HumorTasksetConfig(vf.TasksetConfig):
    prompts: str = "pocket"
    """A prompt set by name, or a file."""
    split: str = "train"
    task: HumorTaskConfig = HumorTaskConfig()


class HumorTaskset(vf.Taskset[HumorTask, HumorTasksetConfig]):
    def load(self) -> Iterator[HumorTask]:
        config = self.config
        # Made here, so that an unknown name is an error before the first model is asked.
        world = shared_critic(config.task.critic, config.task.critic_options, config.prompts, config.split).task
        for prompt in world.split_prompts:
            data = HumorData(
                id=prompt.id,
                prompt=prompt.text,
                system_prompt=INSTRUCTION,
                prompts=config.prompts,
                split=config.split,
            )
            yield HumorTask(data, config.task)
