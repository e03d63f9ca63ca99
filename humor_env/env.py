"""The text-level environment: read a prompt, write a line, be judged.

    env = HumorEnv(prompts="pocket", critic="pocket")
    observation, info = env.reset(seed=0)                     # a str
    observation, reward, terminated, truncated, info = env.step("The meeting was so slow that glaciers overtook it.")
    env.last_judgement                                        # the whole judgement, including its cost

`prompts` and `critic` are names, `package.module:name`, or live objects. For many lines at once use `HumorVectorEnv`,
which asks the critic once per step.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import gymnasium
import numpy as np

from humor_env.episodes.episode import Episode, Task, check_options, reset_info, step_info
from humor_env.errors import CheckpointError, InvalidAction, InvalidRenderMode, PromptError, ResetNeeded
from humor_env.prompts import PromptSet, PromptStream
from humor_env.spaces import refusal
from humor_env.types import Critic, Joke, Judgement, Prompt

RENDER_MODES = ("ansi", "human")


class HumorEnv(gymnasium.Env[str, str]):
    """One episode at a time. See `humor_env.episodes.episode` for rewards; `info` holds the critic's judgement.

    `space="text"` uses Gymnasium's stock `Text` space; `attempts` above 1 lets the student revise its line.
    """

    metadata = {"render_modes": list(RENDER_MODES), "render_fps": 4}

    def __init__(
        self,
        prompts: str | PromptSet | Iterable[str | Prompt] = "pocket",
        critic: str | Critic = "pocket",
        *,
        split: str = "train",
        attempts: int = 1,
        max_chars: int = 1000,
        render_mode: str | None = None,
        space: str = "unicode",
        prompts_options: Mapping[str, Any] | None = None,
        critic_options: Mapping[str, Any] | None = None,
    ) -> None:
        self.render_mode = check_render_mode(render_mode)
        self.task = Task(
            prompts,
            critic,
            split=split,
            attempts=attempts,
            max_chars=max_chars,
            space=space,
            prompts_options=prompts_options,
            critic_options=critic_options,
        )
        self.observation_space = self.task.observation_space
        self.action_space = self.task.action_space
        self._stream: PromptStream | None = None
        self._episode: Episode | None = None
        self.last_joke: Joke | None = None
        self.last_judgement: Judgement | None = None

    @property
    def prompt(self) -> Prompt:
        """The current episode's prompt."""
        if self._episode is None:
            raise ResetNeeded("There is no prompt before the first reset().")
        return self._episode.prompt

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        """Start an episode. A seed also restarts the order of prompts; `options={"prompt_id": …}` picks one instead."""
        prompt_id = check_options(options, ("prompt_id",)).get("prompt_id")
        picked = None if prompt_id is None else self.task.prompts.get(prompt_id)
        super().reset(seed=seed)
        if seed is not None or self._stream is None:
            self._stream = new_stream(self.task, self.np_random)
        self._episode = Episode(picked or self._stream.next())
        self.last_joke = self.last_judgement = None
        if self.render_mode == "human":
            self._show()
        return self.task.observe(self._episode), reset_info(self._episode)

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        """Have a line judged. On any exception, including the critic's own, the episode is unchanged."""
        return self.play(action)

    def play(self, text: str, stop_reason: str | None = None) -> tuple[str, float, bool, bool, dict[str, Any]]:
        """`step` for callers that know why the text ended ("end" or "length")."""
        episode = self._episode
        if episode is None:
            raise ResetNeeded("step() before the first reset(): call reset() to get a prompt.")
        if episode.over:
            raise ResetNeeded("step() after the end of the episode: call reset() to get the next prompt.")
        if text not in self.action_space:
            raise InvalidAction(refusal(self.task.action_space, text))
        joke = self.task.joke(episode, text, stop_reason)
        [judgement] = self.task.judge([joke])
        reward, over = episode.advance(text, judgement, self.task.attempts)
        self.last_joke, self.last_judgement = joke, judgement
        if self.render_mode == "human":
            self._show()
        return self.task.observe(episode), reward, over, False, step_info(episode, judgement)

    def render(self) -> str | None:
        """The state as text in the mode "ansi". In the mode "human" every reset and step prints it."""
        if self.render_mode is None:
            gymnasium.logger.warn('render() does nothing without a render_mode: make the environment with "ansi".')
        if self.render_mode != "ansi" or self._episode is None:
            return None
        return scene(self._episode, self.last_judgement)

    def _show(self) -> None:
        from rich.console import Console
        from rich.text import Text

        # As plain Text, so that a student's or critic's words are never read as markup.
        assert self._episode is not None
        Console().print(Text(scene(self._episode, self.last_judgement)))

    def get_state(self) -> dict[str, Any]:
        """Plain data (JSON) from which `set_state` continues exactly: random state, prompt position, the episode."""
        return {
            "rules": self.task.fingerprint(),  # the key of states saved earlier
            "seed": self.np_random_seed,
            "chance": copy.deepcopy(dict(self.np_random.bit_generator.state)),
            "stream": self._stream.get_state() if self._stream else None,
            "episode": self._episode.get_state() if self._episode else None,
        }

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Continue from `get_state`. Refuses a state with other prompts, split or attempts, changing nothing."""
        check_fingerprint(self.task, state)
        chance, stream, episode = restored(self.task, state)
        self._np_random, self._np_random_seed = chance, state["seed"]
        self._stream, self._episode = stream, episode
        self.last_joke = self.last_judgement = None


def new_stream(task: Task, chance: np.random.Generator) -> PromptStream:
    return PromptStream(task.split_prompts, int(chance.integers(2**63)))


def check_render_mode(render_mode: str | None, modes: Sequence[str] = RENDER_MODES) -> str | None:
    if render_mode is not None and render_mode not in modes:
        raise InvalidRenderMode(f"render_mode must be {' or '.join(map(repr, modes))} or None, found {render_mode!r}.")
    return render_mode


def check_fingerprint(task: Task, state: Mapping[str, Any]) -> None:
    if not isinstance(state, Mapping) or "rules" not in state:
        raise CheckpointError("This is not the state of an environment: it must come from get_state().")
    mine = task.fingerprint()
    for name, value in mine.items():
        if state["rules"].get(name) != value:
            raise CheckpointError(
                f"The saved state has {name}={state['rules'].get(name)!r}, this environment has {value!r}. "
                "Make the environment as it was when the state was saved."
            )


def restored(task: Task, state: Mapping[str, Any]) -> tuple[np.random.Generator, PromptStream | None, Episode | None]:
    """A sub-environment's generator, prompt stream and episode, from its saved state."""
    try:
        chance = np.random.Generator(np.random.PCG64())
        chance.bit_generator.state = copy.deepcopy(dict(state["chance"]))
        stream = None
        if state["stream"] is not None:
            stream = PromptStream(task.split_prompts, 0)
            stream.set_state(state["stream"])
        episode = None if state["episode"] is None else Episode.from_state(state["episode"], task.prompts)
    except (KeyError, TypeError, ValueError) as problem:
        if isinstance(problem, (CheckpointError, PromptError)):
            raise
        raise CheckpointError(f"The saved state is damaged ({type(problem).__name__}: {problem}).") from problem
    return chance, stream, episode


def scene(episode: Episode, judgement: Judgement | None) -> str:
    """An episode as text. Control characters are removed, so that a text cannot control the terminal."""
    lines = [f"[{episode.prompt.id}] {episode.prompt.text}"]
    if judgement is not None:
        lines.append(f"  attempt {episode.attempt}: {episode.line}")
        if judgement.score is None:
            lines.append(f"  not judged: {judgement.error}")
        else:
            parts = ", ".join(f"{name} {value:.2f}" for name, value in judgement.parts.items())
            lines.append(f"  score {judgement.score:.2f}" + (f" ({parts})" if parts else ""))
        if judgement.reason:
            lines.append(f"  {judgement.reason}")
    return "\n".join("".join([c if c.isprintable() else " " for c in line]) for line in lines)
