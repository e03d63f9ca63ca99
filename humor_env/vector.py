"""Many episodes in parallel, with one critic call per step.

    envs = gym.make_vec("humor_env/Paraphrase-v0", num_envs=64)
    observations, infos = envs.reset(seed=0, options={"prompt_ids": [...]})     # or prompts from the seeded order
    observations, rewards, terminations, truncations, infos = envs.step(texts)   # texts: 64 strings
    envs.unwrapped.last_judgements                                               # 64 whole judgements

Sub-environment i under `seed` is a single environment under `seed + i`, as in Gymnasium's `SyncVectorEnv`. The default
is SAME_STEP autoreset: an episode that ends restarts within the step, its end is in `final_obs` and `final_info`, and
no action is ever discarded. With `autoreset_mode="DISABLED"` an episode that has ended waits for
`reset(options={"reset_mask": …})`. With "NEXT_STEP", which some of Gymnasium's vector wrappers need, the step after an
end only starts the next episode: that sub-environment's action is ignored and its reward is 0.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from gymnasium.utils import seeding
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

from humor_env.env import check_fingerprint, check_render_mode, new_stream, restored, scene
from humor_env.episodes.episode import Episode, Task, check_options
from humor_env.errors import CheckpointError, InvalidAction, InvalidOption, ResetNeeded
from humor_env.prompts import PromptSet, PromptStream
from humor_env.shared.plain_numbers import at_least_one
from humor_env.spaces import UnicodeText, refusal
from humor_env.types import Critic, Joke, Judgement, Prompt

Info = dict[str, Any]


class HumorVectorEnv(VectorEnv):
    """The vector form of `HumorEnv`: same arguments, same rewards, batches of strings."""

    metadata: dict[str, Any] = {"render_modes": ["ansi"], "render_fps": 4, "autoreset_mode": AutoresetMode.SAME_STEP}

    def __init__(
        self,
        prompts: str | PromptSet | Iterable[str | Prompt] = "pocket",
        critic: str | Critic = "pocket",
        *,
        num_envs: int = 1,
        split: str = "train",
        attempts: int = 1,
        max_chars: int = 1000,
        render_mode: str | None = None,
        space: str = "unicode",
        autoreset_mode: str | AutoresetMode = AutoresetMode.SAME_STEP,
        prompts_options: Mapping[str, Any] | None = None,
        critic_options: Mapping[str, Any] | None = None,
    ) -> None:
        self.num_envs = num_envs = check_num_envs(num_envs)
        self.autoreset_mode = check_autoreset_mode(autoreset_mode)
        self.metadata = {**self.metadata, "autoreset_mode": self.autoreset_mode}
        self.render_mode = check_render_mode(render_mode, ("ansi",))
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
        self.single_observation_space = self.task.observation_space
        self.single_action_space = self.task.action_space
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self._chances: list[np.random.Generator] = []
        self._seeds: list[int] = []
        self._streams: list[PromptStream] = []
        self._episodes: list[Episode] = []
        self._wrote: list[Joke | None] = [None] * num_envs
        self._said: list[Judgement | None] = [None] * num_envs
        self.last_jokes: Sequence[Joke] = []
        self.last_judgements: Sequence[Judgement] = []

    # Like SyncVectorEnv, one generator and one seed per sub-environment.
    @property  # type: ignore[misc]
    def np_random(self) -> tuple[np.random.Generator, ...]:  # type: ignore[override]
        return tuple(self._chances)

    @property
    def np_random_seed(self) -> tuple[int, ...]:  # type: ignore[override]
        return tuple(self._seeds)

    @property
    def prompts(self) -> list[Prompt]:
        """The current prompt of each sub-environment."""
        return [episode.prompt for episode in self._episodes]

    def prompts_of(self, indices: Sequence[int]) -> list[Prompt]:
        return [self._episodes[i].prompt for i in indices]

    @property
    def observations(self) -> list[str]:
        """The current observation of each sub-environment."""
        return [self.task.observe(episode) for episode in self._episodes]

    @property
    def over(self) -> np.ndarray:
        """Which sub-environments have ended and wait for a reset (never in the mode SAME_STEP)."""
        return np.array([episode.over for episode in self._episodes], dtype=np.bool_)

    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[tuple[str, ...], Info]:
        """Start all episodes, or those of `options["reset_mask"]`.

        `options["prompt_ids"]` names a prompt for each sub-environment (None: the next of its order), `prompt_id` one
        for all. If an option is refused, nothing changes.
        """
        indices = self.begin(seed, options)
        return tuple(self.observations), self.reset_infos(indices)

    def begin(self, seed: int | Sequence[int | None] | None, options: dict[str, Any] | None) -> list[int]:
        """`reset` without observations; returns the sub-environments with a new episode."""
        reset_options = check_options(options, ("prompt_ids", "prompt_id", "reset_mask"))
        mask = self._check_mask(reset_options.get("reset_mask"))
        picked = self._picked(reset_options)
        seeds = self._check_seeds(seed)
        indices = list(range(self.num_envs)) if mask is None else np.flatnonzero(mask).tolist()
        for i in indices:
            self._seed_one(i, seeds[i])
        for i in indices:
            episode = Episode(picked[i] or self._streams[i].next())
            self._wrote[i] = self._said[i] = None
            if i < len(self._episodes):
                self._episodes[i] = episode
            else:
                self._episodes.append(episode)
        return indices

    def step(self, actions: Sequence[str]) -> tuple[tuple[str, ...], np.ndarray, np.ndarray, np.ndarray, Info]:
        """Have one line per sub-environment judged, in one critic call. On any exception nothing changes."""
        self._check_actions(actions)
        waiting = [i for i, episode in enumerate(self._episodes) if episode.over]
        if waiting:
            if self.autoreset_mode is AutoresetMode.DISABLED:
                raise ResetNeeded(
                    f"step() while the episodes of the sub-environments {some(waiting)} have ended: call "
                    'reset(options={"reset_mask": mask}) for them, or use the autoreset mode SAME_STEP.'
                )
            return self._step_and_begin(waiting, actions)
        rewards, ended = self.play(range(self.num_envs), actions)
        terminations = np.zeros(self.num_envs, dtype=np.bool_)
        terminations[ended] = True
        truncations = np.zeros(self.num_envs, dtype=np.bool_)
        infos: Info = {}
        if self.autoreset_mode is not AutoresetMode.SAME_STEP or not ended:
            infos = self.step_infos(range(self.num_envs))
        else:
            infos = self._finish(ended)
        return tuple(self.observations), rewards, terminations, truncations, infos

    def _step_and_begin(
        self, waiting: list[int], actions: Sequence[str]
    ) -> tuple[tuple[str, ...], np.ndarray, np.ndarray, np.ndarray, Info]:
        """A step in the mode NEXT_STEP: waiting ones start their next episode, the others have a line judged."""
        acting = sorted(set(range(self.num_envs)).difference(waiting))
        rewards, terminations = np.zeros(self.num_envs, dtype=np.float64), np.zeros(self.num_envs, dtype=np.bool_)
        infos: Info = {}
        self.last_jokes, self.last_judgements = [], []
        if acting:
            rewards[acting], ended = self.play(acting, [actions[i] for i in acting])
            terminations[ended] = True
            infos = self.step_infos(acting)
        self.begin_next(waiting)
        for i in waiting:
            self._wrote[i] = self._said[i] = None
        self.add_reset_infos(infos, waiting)
        truncations = np.zeros(self.num_envs, dtype=np.bool_)
        return tuple(self.observations), rewards, terminations, truncations, infos

    def play(
        self, indices: Sequence[int], texts: Sequence[str], stop_reasons: Sequence[str | None] | None = None
    ) -> tuple[np.ndarray, list[int]]:
        """Judge the texts of some sub-environments; return rewards, and which episodes ended. No autoreset."""
        task, episodes = self.task, self._episodes
        reasons: Sequence[str | None] = stop_reasons or [None] * len(texts)
        jokes = [task.joke(episodes[i], t, why) for i, t, why in zip(indices, texts, reasons, strict=True)]
        judgements = task.judge(jokes)
        rewards = np.zeros(len(texts), dtype=np.float64)
        ended = []
        for row, (i, joke, judgement) in enumerate(zip(indices, jokes, judgements, strict=True)):
            rewards[row], over = episodes[i].advance(joke.text, judgement, task.attempts)
            self._wrote[i], self._said[i] = joke, judgement
            if over:
                ended.append(i)
        self.last_jokes, self.last_judgements = jokes, judgements
        return rewards, ended

    def _finish(self, ended: list[int]) -> Info:
        """Put the ends of episodes into `final_obs` and `final_info`, and start the next episodes."""
        going_on = sorted(set(range(self.num_envs)).difference(ended))
        final = self.step_infos(ended)
        infos = self.step_infos(going_on) if going_on else {}
        final_obs = np.empty(self.num_envs, dtype=object)  # filled with None
        for i in ended:
            final_obs[i] = self.task.observe(self._episodes[i])
        self.begin_next(ended)
        mask = np.zeros(self.num_envs, dtype=np.bool_)
        mask[ended] = True
        infos["final_obs"], infos["_final_obs"] = final_obs, mask
        infos["final_info"], infos["_final_info"] = final, mask.copy()
        self.add_reset_infos(infos, ended)
        return infos

    def add_reset_infos(self, infos: Info, indices: Sequence[int]) -> None:
        """Merge the reset infos of some sub-environments into `infos`."""
        for key, column in self.reset_infos(indices).items():
            if key not in infos:
                infos[key] = column
            elif key.startswith("_"):
                infos[key] |= column
            else:
                infos[key][indices] = column[indices]

    def begin_next(self, indices: Sequence[int]) -> None:
        """Start the next episodes of some sub-environments, as an autoreset does."""
        for i in indices:
            self._episodes[i] = Episode(self._streams[i].next())

    # Infos have the layout of Gymnasium's `_add_info`, but are built column by column.

    def reset_infos(self, indices: Sequence[int]) -> Info:
        episodes = [self._episodes[i] for i in indices]
        return self._columns(
            indices,
            [
                ("prompt_id", object, [e.prompt.id for e in episodes]),
                ("attempt", np.int64, [e.attempt for e in episodes]),
            ],
        )

    def step_infos(self, indices: Sequence[int]) -> Info:
        """The infos of a step for some sub-environments that `play` has just judged."""
        episodes = [self._episodes[i] for i in indices]
        judgements = [judgement for i in indices if (judgement := self._said[i]) is not None]
        infos = self._columns(
            indices,
            [
                ("prompt_id", object, [e.prompt.id for e in episodes]),
                ("attempt", np.int64, [e.attempt for e in episodes]),
                # NaN, never 0, if the critic failed: a numeric column cannot hold None.
                ("score", np.float64, [np.nan if j.score is None else j.score for j in judgements]),
                ("reason", object, [j.reason for j in judgements]),
                ("judgement_failed", np.bool_, [j.score is None for j in judgements]),
                ("error", object, [j.error for j in judgements]),
            ],
        )
        infos["parts"], infos["_parts"] = self._part_columns(indices, judgements)
        return infos

    def _columns(self, indices: Sequence[int], named: list[tuple[str, Any, list[Any]]]) -> Info:
        where, mask = self._where(indices)
        infos: Info = {}
        for name, dtype, values in named:
            # An empty object array is filled with None.
            column = np.empty(self.num_envs, object) if dtype is object else np.zeros(self.num_envs, dtype)
            column[where] = values
            infos[name], infos[f"_{name}"] = column, mask.copy()
        return infos

    def _where(self, indices: Sequence[int]) -> tuple[Any, np.ndarray]:
        """An index for these sub-environments (a slice, which is faster, if all), and their mask."""
        if len(indices) == self.num_envs:
            return slice(None), np.ones(self.num_envs, dtype=np.bool_)
        mask = np.zeros(self.num_envs, dtype=np.bool_)
        where = np.array(indices, dtype=np.intp)
        mask[where] = True
        return where, mask

    def _part_columns(self, indices: Sequence[int], judgements: list[Judgement]) -> tuple[Info, np.ndarray]:
        where, present = self._where(indices)
        parts: Info = {}
        if not judgements:
            return parts, present
        names = judgements[0].parts.keys()
        table: list[tuple[str, Any, np.ndarray, list[float]]]
        if all(judgement.parts.keys() == names for judgement in judgements):
            table = [(name, where, present, [judgement.parts[name] for judgement in judgements]) for name in names]
        else:
            gathered: dict[str, tuple[list[int], list[float]]] = {}
            for i, judgement in zip(indices, judgements, strict=True):
                for name, value in judgement.parts.items():
                    holders, values = gathered.setdefault(name, ([], []))
                    holders.append(i)
                    values.append(value)
            table = [(name, *self._where(holders), values) for name, (holders, values) in gathered.items()]
        for name, where, mask, values in table:
            column = np.zeros(self.num_envs, dtype=np.float64)
            column[where] = values
            parts[name], parts[f"_{name}"] = column, mask.copy()
        return parts, present

    def _seed_one(self, i: int, seed: int | None) -> None:
        """Seed sub-environment i like a single environment: a seed restarts its generator and the prompt order."""
        if seed is None and i < len(self._chances):
            return
        chance, used = seeding.np_random(seed)
        stream = new_stream(self.task, chance)
        if i < len(self._chances):
            self._chances[i], self._seeds[i], self._streams[i] = chance, used, stream
        else:
            self._chances.append(chance)
            self._seeds.append(used)
            self._streams.append(stream)

    def _check_actions(self, actions: Sequence[str]) -> None:
        if not self._episodes:
            raise ResetNeeded("step() before the first reset(): call reset() to get prompts.")
        if isinstance(actions, str) or not isinstance(actions, (Sequence, np.ndarray)):
            raise InvalidAction(f"The actions must be a list of {self.num_envs} texts, found {type(actions).__name__}.")
        if len(actions) != self.num_envs:
            raise InvalidAction(f"There are {self.num_envs} sub-environments, found {len(actions)} actions.")
        space = self.task.action_space
        limit = space.max_length
        ours = isinstance(space, UnicodeText)
        for i, action in enumerate(actions):
            # The first test accepts nearly all texts without a call.
            if ours and type(action) is str and len(action) <= limit and action.isascii():
                continue
            if action not in space:
                raise InvalidAction(f"Action {i}: {refusal(space, action)}")

    def _check_mask(self, mask: Any) -> np.ndarray | None:
        if mask is None:
            return None
        if not isinstance(mask, np.ndarray) or mask.dtype != np.bool_ or mask.shape != (self.num_envs,):
            raise InvalidOption(f"reset_mask must be a boolean numpy array of length {self.num_envs}, found {mask!r}.")
        if not mask.any():
            raise InvalidOption("reset_mask has no True: there is nothing to reset.")
        if not self._episodes:
            raise ResetNeeded("reset_mask before the first reset(): the first reset starts all sub-environments.")
        return mask

    def _picked(self, reset_options: Mapping[str, Any]) -> list[Prompt | None]:
        ids = reset_options.get("prompt_ids")
        if ids is None:
            prompt_id = reset_options.get("prompt_id")
            return [None if prompt_id is None else self.task.prompts.get(prompt_id)] * self.num_envs
        if "prompt_id" in reset_options:
            raise InvalidOption("Give prompt_ids (one for each sub-environment) or prompt_id (one for all), not both.")
        if isinstance(ids, str) or len(ids) != self.num_envs:
            raise InvalidOption(
                f"prompt_ids must name one prompt (or None) per sub-environment ({self.num_envs}), found {ids!r}."
            )
        return [None if prompt_id is None else self.task.prompts.get(prompt_id) for prompt_id in ids]

    def _check_seeds(self, seed: int | Sequence[int | None] | None) -> list[int | None]:
        if seed is None:
            return [None] * self.num_envs
        if isinstance(seed, (int, np.integer)):
            return [int(seed) + i for i in range(self.num_envs)]
        if len(seed) != self.num_envs:
            raise InvalidOption(f"There are {self.num_envs} sub-environments, found {len(seed)} seeds.")
        return [None if number is None else int(number) for number in seed]

    def render(self) -> tuple[str, ...] | None:
        if self.render_mode != "ansi" or not self._episodes:
            return None
        # If autoreset has replaced the judged episode, still show the line that it ended with.
        return tuple(
            scene(episode, None)
            if judgement is None or joke is None
            else scene(Episode(joke.prompt, max(1, episode.attempt), line=joke.text), judgement)
            for episode, joke, judgement in zip(self._episodes, self._wrote, self._said, strict=True)
        )

    def get_state(self) -> dict[str, Any]:
        """Plain data (JSON) from which `set_state` continues exactly."""
        return {
            "rules": self.task.fingerprint(),
            "seeds": list(self._seeds),
            "envs": [
                {
                    "chance": copy.deepcopy(dict(chance.bit_generator.state)),
                    "stream": stream.get_state(),
                    "episode": episode.get_state(),
                }
                for chance, stream, episode in zip(self._chances, self._streams, self._episodes, strict=True)
            ],
        }

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Continue from `get_state`. Refuses a state with another size, other prompts or other rules."""
        check_fingerprint(self.task, state)
        saved = state.get("envs")
        if not isinstance(saved, list) or len(saved) not in (0, self.num_envs):
            raise CheckpointError(
                f"The saved state has {len(saved or ())} sub-environments, but this environment has {self.num_envs}."
            )
        triples = [restored(self.task, triple) for triple in saved]
        if any(stream is None or episode is None for _, stream, episode in triples):
            raise CheckpointError("The saved state lacks a sub-environment's episode.")
        self._seeds = list(state["seeds"])
        self._chances = [chance for chance, _, _ in triples]
        self._streams = [stream for _, stream, _ in triples if stream is not None]
        self._episodes = [episode for _, _, episode in triples if episode is not None]
        self.last_jokes, self.last_judgements = [], []
        self._wrote, self._said = [None] * self.num_envs, [None] * self.num_envs


def check_num_envs(num_envs: int) -> int:
    return at_least_one("num_envs", num_envs)


def check_autoreset_mode(mode: str | AutoresetMode) -> AutoresetMode:
    """Gymnasium's enum, or one of its members by name ("SAME_STEP") or value ("SameStep")."""
    for member in AutoresetMode:
        if mode in (member, member.name, member.value):
            return member
    names = ", ".join(f'"{member.name}"' for member in AutoresetMode)
    raise InvalidOption(f"autoreset_mode must be one of Gymnasium's {names}, found {mode!r}.")


def some(indices: list[int]) -> str:
    """The first few indices, for a message."""
    return ", ".join(map(str, indices[:8])) + (f" and {len(indices) - 8} more" if len(indices) > 8 else "")
