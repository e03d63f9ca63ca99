"""The rules of an episode, shared by the single, the vector and the token environment so that they agree.

    task = Task("pocket", "pocket", split="train", attempts=3)
    episode = Episode(task.prompts.get("p1"))
    [judgement] = task.judge([task.joke(episode, "…")])
    reward, over = episode.advance("…", judgement, task.attempts)

One attempt: the reward is the score. Several: the reward is the improvement over the best attempt so far, so that an
episode's return is its best score. A failed judgement has no score: the episode ends with reward 0, noted in `info`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from gymnasium import spaces

from humor_env import registry
from humor_env.errors import CriticContractError, InvalidOption, did_you_mean
from humor_env.prompts import PromptSet, load_prompts
from humor_env.shared.plain_numbers import at_least_one
from humor_env.shared.text_stats import missing_words
from humor_env.spaces import UnicodeText, is_encodable, text_space
from humor_env.types import Critic, Joke, Judgement, Prompt, critic_name

CONSTRAINT = "constraint"  # in place of a critic's name, and a part: 1 for a line with its prompt's required words
REASON_CHARS = 400  # length of a critic's reason in the next observation
_LAST_LINE = "\nYour last line: "
_CRITIC_SAYS = "\nThe critic says: "


@dataclass(slots=True)
class Episode:
    """The state of one episode."""

    prompt: Prompt
    attempt: int = 0
    best: float = 0.0
    line: str = ""
    reason: str = ""
    over: bool = False

    def advance(self, text: str, judgement: Judgement, attempts: int) -> tuple[float, bool]:
        """Add a judged attempt; return its reward and whether the episode is over."""
        self.attempt += 1
        self.line, self.reason = text, judgement.reason
        reward = 0.0
        if judgement.score is None:
            self.over = True
        else:
            reward = max(0.0, judgement.score - self.best)
            self.best = max(self.best, judgement.score)
            self.over = self.attempt >= attempts
        return reward, self.over

    def get_state(self) -> dict[str, Any]:
        return {
            "prompt_id": self.prompt.id,
            "attempt": self.attempt,
            "best": self.best,
            "line": self.line,
            "reason": self.reason,
            "over": self.over,
        }

    @classmethod
    def from_state(cls, state: Mapping[str, Any], prompts: PromptSet) -> Episode:
        fields = {name: value for name, value in state.items() if name != "prompt_id"}
        return cls(prompts.get(state["prompt_id"]), **fields)


class Task:
    """What is fixed over all episodes of an environment: prompts, critic, limits, spaces."""

    def __init__(
        self,
        prompts: str | PromptSet | Iterable[str | Prompt],
        critic: str | Critic,
        *,
        split: str = "train",
        attempts: int = 1,
        max_chars: int = 1000,
        space: str = "unicode",
        prompts_options: Mapping[str, Any] | None = None,
        critic_options: Mapping[str, Any] | None = None,
    ) -> None:
        attempts, max_chars = at_least_one("attempts", attempts), at_least_one("max_chars", max_chars)
        self.prompts = load_prompts(prompts, **(prompts_options or {}))
        self.split = split
        self.split_prompts = self.prompts.split(split)
        self.critic: Critic = registry.critics.make(critic, **(critic_options or {}))
        if not callable(self.critic):
            raise CriticContractError(
                f"A critic must be callable with a list of jokes; the critic {critic!r} is a "
                f"{type(self.critic).__name__}, which is not callable."
            )
        self.critic_name = critic_name(self.critic)
        self.attempts = attempts
        self.max_chars = max_chars
        bound = self.prompts.longest
        if attempts > 1:
            bound += max_chars + REASON_CHARS + len(_LAST_LINE) + len(_CRITIC_SAYS)
        self.action_space = text_space(space, max_chars)
        self.observation_space = text_space(space, bound, (prompt.text for prompt in self.prompts))

    def observe(self, episode: Episode) -> str:
        """What the student reads: the prompt, and after an attempt its line and the critic's judgement."""
        text = episode.prompt.text
        if episode.attempt == 0 or self.attempts == 1:
            return text
        return _fitting(
            f"{text}{_LAST_LINE}{_one_line(episode.line)}{_CRITIC_SAYS}{_one_line(episode.reason)[:REASON_CHARS]}",
            self.observation_space,
        )

    def joke(self, episode: Episode, text: str, stop_reason: str | None = None) -> Joke:
        return Joke(episode.prompt, text, "student", stop_reason)

    def judge(self, jokes: Sequence[Joke]) -> list[Judgement]:
        return judged_with_words(self.critic, jokes)

    def fingerprint(self) -> dict[str, Any]:
        """Values that must match those of a saved state for it to be restored here."""
        return {
            "prompts": self.prompts.name,
            "split": self.split,
            "digest": self.prompts.digest(self.split),
            "attempts": self.attempts,
        }


def step_info(episode: Episode, judgement: Judgement) -> dict[str, Any]:
    """`info` after an attempt: reproducible plain data, so never time, cost or latency."""
    return {
        "prompt_id": episode.prompt.id,
        "attempt": episode.attempt,
        "score": judgement.score,
        "parts": dict(judgement.parts),
        "reason": judgement.reason,
        "judgement_failed": judgement.failed,
        "error": judgement.error,
    }


def reset_info(episode: Episode) -> dict[str, Any]:
    return {"prompt_id": episode.prompt.id, "attempt": episode.attempt}


def judged_with_words(critic: Critic, jokes: Sequence[Joke]) -> list[Judgement]:
    """The judgements that count, in learning and in every measurement: one critic call for all jokes, except those
    without a required word of their prompt, which score 0 without a call. Otherwise as `checked_reply`."""
    name = critic_name(critic)
    required = [i for i, joke in enumerate(jokes) if joke.prompt.extra.get("words")]
    if not required:
        return checked_reply(critic, name, jokes)
    lacking = {i: lacking_words(jokes[i]) for i in required}
    to_ask = [i for i in range(len(jokes)) if not lacking.get(i)]
    replies = checked_reply(critic, name, [jokes[i] for i in to_ask]) if to_ask else []
    judgements = dict(zip(to_ask, replies, strict=True))
    for i, words in lacking.items():
        if words:
            judgements[i] = Judgement(CONSTRAINT, 0.0, {CONSTRAINT: 0.0}, must_contain(words))
        else:
            judgements[i] = replace(judgements[i], parts={CONSTRAINT: 1.0, **judgements[i].parts})
    return [judgements[i] for i in range(len(jokes))]


def lacking_words(joke: Joke) -> list[str]:
    """The words that the prompt requires and the line lacks."""
    return missing_words(joke.text, joke.prompt.extra.get("words") or ())


def must_contain(words: Iterable[str]) -> str:
    """The reason given to a line that lacks these words."""
    quoted = ", ".join(f"'{word}'" for word in words)
    return f"The line must contain {quoted}."


def checked_reply(critic: Critic, name: str, jokes: Sequence[Joke], *, strict: bool = False) -> list[Judgement]:
    """Call a critic and check its reply against the contract; its own exceptions pass through.

    An invalid item among valid ones (a NaN part, a number instead of a judgement) becomes a failed judgement, so that
    one joke does not end a batch. If every item is invalid, or with `strict`, it is an error.
    """
    if not callable(critic):
        raise CriticContractError(f"The critic '{name}' is a {type(critic).__name__}, which is not callable.")
    reply = critic(jokes)
    if not isinstance(reply, (list, tuple)):
        raise CriticContractError(
            f"The critic '{name}' must return a list of judgements, found {type(reply).__name__}."
        )
    if len(reply) != len(jokes):
        raise CriticContractError(
            f"The critic '{name}' was asked about {len(jokes)} jokes and returned {len(reply)} judgements: it must "
            "return one per joke, in the same order, with an error and no score where it cannot judge."
        )
    checked: list[Judgement] = []
    odd: list[CriticContractError] = []
    for judgement in reply:
        try:
            checked.append(_checked(name, judgement))
        except CriticContractError as problem:
            odd.append(problem)
            checked.append(Judgement(name, None, error=str(problem)))
    if odd and (strict or len(odd) == len(checked)):
        raise odd[0]
    return checked


def _checked(name: str, judgement: Judgement) -> Judgement:
    if type(judgement) is not Judgement:
        raise CriticContractError(
            f"The critic '{name}' must return humor_env.Judgement objects, found a {type(judgement).__name__}."
        )
    score = judgement.score
    # Judgement itself refuses scores outside [0, 1]; a tensor or an array would pass there and fail later.
    if score is not None and type(score) is not float:
        if not isinstance(score, (int, float, np.integer, np.floating)):
            raise CriticContractError(f"The critic '{name}' gave a score of type {type(score).__name__}, not a number.")
        judgement = replace(judgement, score=float(score))
    plain = True
    for part, value in judgement.parts.items():
        if type(part) is str and type(value) is float and value - value == 0.0:  # a fast test for finite
            continue
        if not isinstance(part, str) or not isinstance(value, (int, float, np.number)) or not math.isfinite(value):
            raise CriticContractError(
                f"The critic '{name}' gave a judgement's part {part!r} = {value!r}: parts map names to finite numbers."
            )
        plain = False
    if not plain:
        judgement = replace(judgement, parts={part: float(value) for part, value in judgement.parts.items()})
    for what, text in (("reason", judgement.reason), ("error", judgement.error or "")):
        if not isinstance(text, str):
            raise CriticContractError(f"The critic '{name}' gave a {what} of type {type(text).__name__}, not a str.")
    return judgement


def check_options(options: Mapping[str, Any] | None, names: Sequence[str]) -> dict[str, Any]:
    """A copy of the options of `reset`. A misspelt one is an error, not silently ignored."""
    options = dict(options or {})
    for name in options:
        if name not in names:
            raise InvalidOption(
                f"reset has no option '{name}'.{did_you_mean(str(name), names)} Known: {', '.join(names)}."
            )
    return options


def _one_line(text: str) -> str:
    """Remove line breaks, so that neither a line nor a reason can imitate another part of the observation."""
    return " ".join(text.split())


def _fitting(text: str, space: UnicodeText | spaces.Text) -> str:
    """Replace characters of a critic's reason that are not in the observation space."""
    if isinstance(space, UnicodeText):
        return text if is_encodable(text) else text.encode("utf-8", "replace").decode()
    return text if text in space else "".join([c if c in space.character_set else "?" for c in text])
