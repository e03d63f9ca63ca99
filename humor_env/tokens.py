"""A token-level view of the same environment: an action is the next token, the reward comes with the last one.

    env = gym.make("humor_env/Tokens-v0")                      # Dict(tokens, length) and Discrete(vocabulary)
    envs = gym.make_vec("humor_env/Tokens-v0", num_envs=256)

For agents that act token by token. The observation is the prompt's tokens followed by those written so far, in an array
of fixed size, and their number. A step writes one number and copies that array; the text is decoded once, at the end
token or `max_tokens`. The episode's return is the text-level environment's for the decoded text (cut at `max_chars`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

from humor_env.env import HumorEnv
from humor_env.episodes.token_table import TokenTable
from humor_env.errors import CheckpointError, InvalidAction, ResetNeeded
from humor_env.prompts import PromptSet
from humor_env.types import Critic, Joke, Judgement, Prompt
from humor_env.vector import HumorVectorEnv, some

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Observation = dict[str, Any]


class TokensEnv(gymnasium.Env[Observation, int | np.integer | np.ndarray]):
    """`HumorEnv` played token by token, one attempt per episode. `tokenizer`: "pocket", a name, a path or an object."""

    metadata = HumorEnv.metadata

    def __init__(
        self,
        prompts: str | PromptSet | Iterable[str | Prompt] = "pocket",
        critic: str | Critic = "pocket",
        *,
        tokenizer: str | PreTrainedTokenizerBase = "pocket",
        max_tokens: int = 48,
        max_prompt_tokens: int | None = None,
        split: str = "train",
        max_chars: int = 1000,
        render_mode: str | None = None,
        prompts_options: Mapping[str, Any] | None = None,
        critic_options: Mapping[str, Any] | None = None,
    ) -> None:
        self.text_env = HumorEnv(
            prompts,
            critic,
            split=split,
            max_chars=max_chars,
            render_mode=render_mode,
            prompts_options=prompts_options,
            critic_options=critic_options,
        )
        self.render_mode = render_mode
        self.table = TokenTable(tokenizer, self.text_env.task.prompts, max_tokens, max_prompt_tokens)
        self.observation_space = self.table.observation_space()
        self.action_space = spaces.Discrete(self.table.size)
        self._size, self._end = self.table.size, self.table.end
        self._tokens = self.table.blank()
        self._begin = self._length = self._limit = 0
        self._playing = False

    @property
    def np_random(self) -> np.random.Generator:
        """The text environment's generator, the only source of randomness."""
        return self.text_env.np_random

    @np_random.setter
    def np_random(self, value: np.random.Generator) -> None:
        self.text_env.np_random = value

    @property
    def _np_random(self) -> np.random.Generator | None:  # type: ignore[override]
        return self.text_env._np_random

    @property
    def np_random_seed(self) -> int:
        return self.text_env.np_random_seed

    @property
    def last_joke(self) -> Joke | None:
        return self.text_env.last_joke

    @property
    def last_judgement(self) -> Judgement | None:
        return self.text_env.last_judgement

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        _, info = self.text_env.reset(seed=seed, options=options)
        self._start(self.table.prompt(self.text_env.prompt.id))
        return {"tokens": self._tokens.copy(), "length": self._length}, info

    def _start(self, prompt: np.ndarray) -> None:
        self._tokens.fill(self.table.padding)
        self._tokens[: len(prompt)] = prompt
        self._begin = self._length = len(prompt)
        self._limit = self._begin + self.table.max_tokens
        self._playing = True

    def step(self, action: int | np.integer | np.ndarray) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Write one token. On an exception the episode is unchanged."""
        if type(action) is not int:
            action = _token_id(action)
        if not 0 <= action < self._size:
            raise InvalidAction(f"A token id must be in 0 … {self._size - 1}, found {action}.")
        if not self._playing:
            raise ResetNeeded(
                "step() before reset() or after the end of the episode: call reset() for the next prompt."
            )
        length = self._length
        self._tokens[length] = action
        length += 1
        if action != self._end and length < self._limit:
            self._length = length
            return {"tokens": self._tokens.copy(), "length": length}, 0.0, False, False, {}
        return self._finish(action, length)

    def _finish(self, action: int, length: int) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        ended = action == self._end
        ids = self._tokens[self._begin : length - ended].tolist()
        text = self.table.decode(ids, self.text_env.task.max_chars)
        try:
            _, reward, over, _, info = self.text_env.play(text, "end" if ended else "length")
        except BaseException:
            self._tokens[self._length] = self.table.padding
            raise
        self._length, self._playing = length, False
        info["text"] = text
        return {"tokens": self._tokens.copy(), "length": length}, reward, over, False, info

    def action_masks(self) -> np.ndarray:
        """For each token id, whether an agent should consider it: not the special tokens, except the end token.
        `MaskablePPO` of sb3-contrib looks for this method; `step` still takes every id."""
        return self.table.useful.copy()

    def render(self) -> str | None:
        return self.text_env.render()

    def get_state(self) -> dict[str, Any]:
        """Plain data (JSON) from which `set_state` continues exactly."""
        written = self._tokens[self._begin : self._length].tolist()
        return {"text": self.text_env.get_state(), "written": written, "playing": self._playing}

    def set_state(self, state: Mapping[str, Any]) -> None:
        text_state, written = _text_state(state), _written(self.table, state["written"])
        self.text_env.set_state(text_state)
        if text_state["episode"] is None:
            self._playing = False
            return
        self._start(self.table.prompt(self.text_env.prompt.id))
        self._tokens[self._begin : self._begin + len(written)] = written
        self._length = self._begin + len(written)
        self._playing = bool(state["playing"])


class TokensVectorEnv(VectorEnv):
    """`TokensEnv` for many episodes at once: array operations per step, and one critic call for all that end in it."""

    metadata: dict[str, Any] = dict(HumorVectorEnv.metadata)

    def __init__(
        self,
        prompts: str | PromptSet | Iterable[str | Prompt] = "pocket",
        critic: str | Critic = "pocket",
        *,
        num_envs: int = 1,
        tokenizer: str | PreTrainedTokenizerBase = "pocket",
        max_tokens: int = 48,
        max_prompt_tokens: int | None = None,
        split: str = "train",
        max_chars: int = 1000,
        render_mode: str | None = None,
        autoreset_mode: str | AutoresetMode = AutoresetMode.SAME_STEP,
        prompts_options: Mapping[str, Any] | None = None,
        critic_options: Mapping[str, Any] | None = None,
    ) -> None:
        self.text_envs = HumorVectorEnv(
            prompts,
            critic,
            num_envs=num_envs,
            split=split,
            max_chars=max_chars,
            render_mode=render_mode,
            autoreset_mode=autoreset_mode,
            prompts_options=prompts_options,
            critic_options=critic_options,
        )
        self.num_envs = num_envs = self.text_envs.num_envs
        self.autoreset_mode = self.text_envs.autoreset_mode
        self.metadata = self.text_envs.metadata
        self.render_mode = render_mode
        self.table = TokenTable(tokenizer, self.text_envs.task.prompts, max_tokens, max_prompt_tokens)
        self.single_observation_space = self.table.observation_space()
        self.single_action_space = spaces.Discrete(self.table.size)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self._tokens = self.table.blank(num_envs)
        self._begins = np.zeros(num_envs, dtype=np.int64)
        self._lengths = np.zeros(num_envs, dtype=np.int64)
        self._over = np.zeros(num_envs, dtype=np.bool_)
        # A flat view: writing one number per sub-environment into it takes half the time.
        self._flat = self._tokens.reshape(-1)
        self._row_starts = np.arange(num_envs) * self.table.width
        self._started = False

    @property  # type: ignore[misc]
    def np_random(self) -> tuple[np.random.Generator, ...]:  # type: ignore[override]
        return self.text_envs.np_random

    @property
    def np_random_seed(self) -> tuple[int, ...]:  # type: ignore[override]
        return self.text_envs.np_random_seed

    @property
    def last_jokes(self) -> Sequence[Joke]:
        """The jokes of the episodes that ended in the last step with any ends."""
        return self.text_envs.last_jokes

    @property
    def last_judgements(self) -> Sequence[Judgement]:
        return self.text_envs.last_judgements

    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """As `HumorVectorEnv.reset`, with its options."""
        indices = self.text_envs.begin(seed, options)
        self._start(indices)
        self._started = True
        return self._observations(), self.text_envs.reset_infos(indices)

    def _start(self, indices: Sequence[int]) -> None:
        table = self.table
        where = np.asarray(indices)
        rows = [table.row[prompt.id] for prompt in self.text_envs.prompts_of(indices)]
        self._tokens[where] = table.padding
        self._tokens[where, : table.prompts.shape[1]] = table.prompts[rows]
        self._begins[where] = self._lengths[where] = table.lengths[rows]
        self._over[where] = False

    def _observations(self) -> Observation:
        return {"tokens": self._tokens.copy(), "length": self._lengths.copy()}

    def step(
        self, actions: np.ndarray | Sequence[int]
    ) -> tuple[Observation, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """Write one token each. On an exception nothing changes."""
        chosen = self._checked(actions)
        # In the mode NEXT_STEP finished rows write nothing: they start again at the end of this step.
        waiting = np.flatnonzero(self._over).tolist() if self.autoreset_mode is AutoresetMode.NEXT_STEP else []
        places = self._row_starts + self._lengths
        lengths = self._lengths + 1
        endings = (chosen == self.table.end) | (lengths >= self._begins + self.table.max_tokens)
        if waiting:
            acting = ~self._over
            places, lengths, endings = places[acting], self._lengths + acting, endings & acting
            self._flat[places] = chosen[acting]
        else:
            self._flat[places] = chosen
        rewards = np.zeros(self.num_envs, dtype=np.float64)
        infos: dict[str, Any] = {}
        if endings.any():
            try:
                infos = self._finish(np.flatnonzero(endings).tolist(), chosen, lengths, rewards)
            except BaseException:
                self._flat[places] = self.table.padding
                raise
        self._lengths = lengths
        ended = np.flatnonzero(endings).tolist()
        if self.autoreset_mode is not AutoresetMode.SAME_STEP:
            self._over |= endings
            self._begin_next(waiting, infos)
        elif ended:
            final, infos = infos, {"final_obs": np.empty(self.num_envs, dtype=object)}  # filled with None
            for i in ended:
                infos["final_obs"][i] = {"tokens": self._tokens[i].copy(), "length": int(lengths[i])}
            infos.update(_final_obs=endings.copy(), final_info=final, _final_info=endings.copy())
            self._begin_next(ended, infos)
        return self._observations(), rewards, endings, np.zeros(self.num_envs, dtype=np.bool_), infos

    def _finish(self, ended: list[int], chosen: np.ndarray, lengths: np.ndarray, rewards: np.ndarray) -> dict[str, Any]:
        """Have the finished texts judged; fills in their rewards and returns their infos."""
        texts, reasons = self._texts(ended, chosen, lengths)
        rewards[ended], _ = self.text_envs.play(ended, texts, reasons)
        infos = self.text_envs.step_infos(ended)
        infos["text"], infos["_text"] = np.empty(self.num_envs, dtype=object), np.zeros(self.num_envs, dtype=np.bool_)
        infos["text"][ended], infos["_text"][ended] = texts, True
        return infos

    def _begin_next(self, indices: list[int], infos: dict[str, Any]) -> None:
        if indices:
            self.text_envs.begin_next(indices)
            self._start(indices)
            self.text_envs.add_reset_infos(infos, indices)

    def _texts(self, ended: list[int], chosen: np.ndarray, lengths: np.ndarray) -> tuple[list[str], list[str]]:
        texts, reasons = [], []
        decode, limit, end = self.table.decode, self.text_envs.task.max_chars, self.table.end
        for row, begin, length, last in zip(
            ended, self._begins[ended].tolist(), lengths[ended].tolist(), chosen[ended].tolist(), strict=True
        ):
            by_token = last == end
            texts.append(decode(self._tokens[row, begin : length - by_token].tolist(), limit))
            reasons.append("end" if by_token else "length")
        return texts, reasons

    def _checked(self, actions: np.ndarray | Sequence[int]) -> np.ndarray:
        chosen = np.asarray(actions)
        if chosen.shape != (self.num_envs,) or chosen.dtype.kind not in "iu":
            raise InvalidAction(
                f"The actions must be {self.num_envs} token ids, found shape {chosen.shape} of {chosen.dtype}."
            )
        # As unsigned, negative numbers are huge: one pass finds both kinds of error.
        chosen = chosen.astype(np.int64, copy=False)
        if chosen.view(np.uint64).max() >= self.table.size:
            bad = int(np.flatnonzero((chosen < 0) | (chosen >= self.table.size))[0])
            raise InvalidAction(f"Action {bad}: a token id must be in 0 … {self.table.size - 1}, found {chosen[bad]}.")
        if not self._started:
            raise ResetNeeded("step() before the first reset(): call reset() to get prompts.")
        if self.autoreset_mode is AutoresetMode.DISABLED and self._over.any():
            raise ResetNeeded(
                f"step() while the episodes of the sub-environments {some(np.flatnonzero(self._over).tolist())} have "
                'ended: call reset(options={"reset_mask": mask}) for them, or use the autoreset mode SAME_STEP.'
            )
        return chosen

    def action_masks(self) -> np.ndarray:
        """As `TokensEnv.action_masks`, a row for each sub-environment."""
        return np.tile(self.table.useful, (self.num_envs, 1))

    def render(self) -> tuple[str, ...] | None:
        return self.text_envs.render()

    def get_state(self) -> dict[str, Any]:
        """Plain data (JSON) from which `set_state` continues exactly."""
        written = [
            self._tokens[i, begin:length].tolist()
            for i, (begin, length) in enumerate(zip(self._begins, self._lengths, strict=True))
        ]
        return {"text": self.text_envs.get_state(), "written": written, "over": self._over.tolist()}

    def set_state(self, state: Mapping[str, Any]) -> None:
        text_state = _text_state(state)
        written = [_written(self.table, ids) for ids in state["written"]]
        self.text_envs.set_state(text_state)
        self._started = bool(text_state["envs"])
        if not self._started:
            return
        self._start(range(self.num_envs))
        for i, ids in enumerate(written):
            self._tokens[i, self._begins[i] : self._begins[i] + len(ids)] = ids
            self._lengths[i] = self._begins[i] + len(ids)
        self._over = np.array(state["over"], dtype=np.bool_)


def _token_id(action: object) -> int:
    # Libraries such as Stable-Baselines3 send a numpy integer or a zero-dimensional array.
    if isinstance(action, np.ndarray) and action.ndim == 0:
        action = action[()]
    if isinstance(action, bool) or not isinstance(action, (int, np.integer)):
        raise InvalidAction(f"An action must be a token id, found {type(action).__name__}: {action!r}.")
    return int(action)


def _text_state(state: Mapping[str, Any]) -> dict[str, Any]:
    if not isinstance(state, Mapping) or not {"text", "written"} <= state.keys():
        raise CheckpointError("This is not the state of a token environment: it must come from its get_state().")
    return dict(state["text"])


def _written(table: TokenTable, ids: object) -> list[int]:
    if (
        not isinstance(ids, list)
        or len(ids) > table.max_tokens
        or not all(isinstance(token, int) and 0 <= token < table.size for token in ids)
    ):
        raise CheckpointError("The saved tokens do not fit this environment's tokenizer and max_tokens.")
    return ids
