"""The environments over the OpenEnv protocol: a trainer gets a sentence, sends a line, and gets its score.

    app = make_app(Task("pocket", "pocket"), sessions=64)        # a FastAPI app: `humor-env serve` runs it

    with GenericEnvClient(base_url="http://127.0.0.1:8000").sync() as env:
        prompt = env.reset(seed=7).observation["prompt"]
        result = env.step({"text": "Glaciers overtook it."})     # result.reward is the critic's score

All sessions share one critic, which judges all waiting lines in one call, so that 64 sessions wait for a language model
no longer than one. A failed judgement is an error of the session, never a number: a reward of 0 would teach the student
that its line was bad.
"""

from __future__ import annotations

import asyncio
import uuid
from concurrent.futures import Future
from typing import Any

import numpy as np

from humor_env.episodes.episode import Episode, Task
from humor_env.errors import HumorEnvError, InvalidOption, MissingExtra
from humor_env.experiments.sharing.shared_critic import SharedCritic
from humor_env.shared.streams import generator
from humor_env.types import Judgement

try:
    from openenv.core.env_server.http_server import create_app
    from openenv.core.env_server.interfaces import Environment
    from openenv.core.env_server.types import Action, EnvironmentMetadata, Observation, State
except ImportError as problem:  # raised by make_app: this file can be imported without the extra
    from pydantic import BaseModel

    _lacking: str | None = str(problem)
    Action = Observation = State = EnvironmentMetadata = BaseModel

    class Environment:  # type: ignore[no-redef]
        def __class_getitem__(cls, _: Any) -> Any:
            return cls

else:
    _lacking = None

SPLITS = ("train", "dev", "test", "ood")


class JudgementFailed(HumorEnvError):
    """The critic gave no score. The episode is over and does not count."""


class JokeAction(Action):
    """The student's line."""

    text: str


class JokeObservation(Observation):
    """`prompt` is the text to make funny; after a step, `score`, `parts` and `reason` are the critic's."""

    prompt: str = ""
    prompt_id: str = ""
    score: float | None = None
    parts: dict[str, float] = {}
    reason: str = ""


class JokeState(State):
    split: str = "train"
    prompt_id: str = ""
    over: bool = True


class HumorEnvironment(Environment[JokeAction, JokeObservation, JokeState]):
    """One session. `reset` takes `split`, `index` (of the split's prompts) or `prompt_id`; a seed chooses a prompt."""

    SUPPORTS_CONCURRENT_SESSIONS = True

    def __init__(self, critic: SharedCritic) -> None:
        super().__init__(transform=None, rubric=None)
        self.critic, self.task = critic, critic.task
        self.chance = np.random.default_rng()
        self.episode: Episode | None = None
        self._state = JokeState(split=self.task.split)

    def reset(
        self,
        seed: int | None = None,
        episode_id: str | None = None,
        *,
        split: str | None = None,
        index: int | None = None,
        prompt_id: str | None = None,
        **kwargs: Any,
    ) -> JokeObservation:
        split = split or self.task.split
        if prompt_id is not None:
            prompt = self.task.prompts.get(prompt_id)
        else:
            prompts = self.task.prompts.split(split)
            if index is None:
                chance = self.chance if seed is None else generator(seed, "openenv")
                index = int(chance.integers(len(prompts)))
            if not 0 <= index < len(prompts):
                raise InvalidOption(f"The split '{split}' has prompts 0 to {len(prompts) - 1}, found index {index}.")
            prompt = prompts[index]
        self.episode = Episode(prompt)
        self._state = JokeState(
            episode_id=episode_id or uuid.uuid4().hex, split=split, prompt_id=prompt.id, over=False, step_count=0
        )
        return JokeObservation(prompt=self.task.observe(self.episode), prompt_id=prompt.id)

    def step(self, action: JokeAction, timeout_s: float | None = None, **kwargs: Any) -> JokeObservation:
        episode, future = self._ask(action)
        return self._count(episode, action.text, future.result(timeout_s))

    async def step_async(self, action: JokeAction, timeout_s: float | None = None, **kwargs: Any) -> JokeObservation:
        episode, future = self._ask(action)
        return self._count(episode, action.text, await asyncio.wait_for(asyncio.wrap_future(future), timeout_s))

    def _ask(self, action: JokeAction) -> tuple[Episode, Future[Judgement]]:
        if self.episode is None or self.episode.over:
            raise InvalidOption("There is no episode in progress: reset first.")
        if len(action.text) > self.task.max_chars:
            raise InvalidOption(
                f"The line has {len(action.text)} characters; at most {self.task.max_chars} are judged."
            )
        return self.episode, self.critic.judge(self.task.joke(self.episode, action.text))

    def _count(self, episode: Episode, text: str, judgement: Judgement) -> JokeObservation:
        reward, over = episode.advance(text, judgement, self.task.attempts)
        self._state = self._state.model_copy(update={"step_count": episode.attempt, "over": over})
        if judgement.score is None:
            raise JudgementFailed(f"The critic gave no score ({judgement.error}): leave this episode out and reset.")
        return JokeObservation(
            done=over,
            reward=float(reward),
            prompt=self.task.observe(episode),
            prompt_id=episode.prompt.id,
            score=judgement.score,
            parts=dict(judgement.parts),
            reason=judgement.reason,
        )

    @property
    def state(self) -> JokeState:
        return self._state

    def get_metadata(self) -> EnvironmentMetadata:
        from humor_env import __version__

        description = (
            f"Make a literal sentence humorous; the critic '{self.task.critic_name}' scores the line from 0 to 1."
        )
        return EnvironmentMetadata(name="humor_env", description=description, version=__version__)

    # OpenEnv's TaskProvider: the prompts by split and index.

    def list_splits(self) -> list[Any]:
        present = {prompt.split for prompt in self.task.prompts}
        return [{"name": split, "num_tasks": self.num_tasks(split)} for split in SPLITS if split in present]

    def list_tasks(self, split: str) -> list[Any]:
        return [self.get_task(split, index) for index in range(self.num_tasks(split))]

    def num_tasks(self, split: str) -> int:
        return len(self.task.prompts.split(split))

    def get_task(self, split: str, index: int) -> Any:
        prompt = self.task.prompts.split(split)[index]
        return {"index": index, "prompt_id": prompt.id, "prompt": prompt.text}


def make_app(task: Task, *, sessions: int = 64) -> Any:
    """The FastAPI app that serves the task to up to `sessions` sessions at once."""
    if _lacking is not None:
        raise MissingExtra(f"OpenEnv cannot be used ({_lacking}). Install it with: pip install 'humor-env[openenv]'")
    critic = SharedCritic(task)
    return create_app(
        lambda: HumorEnvironment(critic),
        JokeAction,
        JokeObservation,
        env_name="humor_env",
        max_concurrent_envs=sessions,
        state_cls=JokeState,
    )
