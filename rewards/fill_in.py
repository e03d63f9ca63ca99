"""For prompts with a word in [brackets] that the line replaces: another critic scores the whole sentence.

    critic = FillInCritic(critic="reward-model", critic_options={"folder": "runs/critic"})
    [judgement] = critic([Joke(Prompt("p", "Senate passes [budget] after long debate"), "gas")])
    judgement.score          # the other critic's score of "Senate passes gas after long debate", as an edit

A line that is not such a word (more than `words` words, characters other than letters, hyphens and apostrophes, or the
replaced word itself) scores 0 without a call to the other critic. So a gate above 0 stops malformed lines:

    [{"critic": "fill-in", "gate": 0.01, "weight": 1, …}, {"critic": "novelty"}]

A student that is paid for new words soon makes them up ("hairballinghairpicking"). `known_words` is a text file, such
as that of the prompts or a list of words: a line with a word that is not in it scores 0 too.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

from humor_env.episodes.closing import close_all
from humor_env.episodes.episode import checked_reply
from humor_env.errors import InvalidOption
from humor_env.registry import critics
from humor_env.rewards.rated.semeval import HEADLINE_EDIT
from humor_env.shared.plain_numbers import whole_number
from humor_env.shared.user_path import user_path
from humor_env.types import Critic, Joke, Judgement, Prompt, critic_name

_PLACE = re.compile(r"\[([^\[\]]*)\]")
_LETTERS = r"[^\W\d_]+"
_WORD = rf"{_LETTERS}(?:['’-]{_LETTERS})*"
LONGEST_WORD = 24  # characters


class FillInCritic:
    """`critic` gets the sentence without brackets as the prompt, and the sentence with the line in their place as the
    joke. A line may have up to `words` words; every run of letters in it must also be one of those in the text file
    `known_words`, if given. A prompt without exactly one pair of brackets cannot be judged."""

    name = "fill-in"

    def __init__(
        self,
        critic: str | Critic,
        critic_options: Mapping[str, Any] | None = None,
        words: int = 2,
        known_words: str | None = None,
    ) -> None:
        most = whole_number(words)
        if most is None or most < 1:
            raise InvalidOption(f"words is the most words of a line and must be at least 1; found {words!r}.")
        self.critic = cast(Critic, critics.make(critic, **(critic_options or {})))
        self.words = most
        self.known_words = None if known_words is None else _words_of(known_words)
        self._form = re.compile(rf"{_WORD}(?: {_WORD}){{0,{most - 1}}}")

    @property
    def inner_critics(self) -> list[Critic]:
        return [self.critic]

    def __call__(self, jokes: Sequence[Joke]) -> list[Judgement]:
        judgements: list[Judgement | None] = [None] * len(jokes)
        filled: dict[int, Joke] = {}
        for i, joke in enumerate(jokes):
            place = _place(joke.prompt)
            if place is None:
                judgements[i] = Judgement(
                    self.name, None, error=f"the prompt has no single word in [brackets]: {joke.prompt.text[:80]!r}"
                )
            elif fault := self._fault(joke.text, place[1]):
                judgements[i] = Judgement(self.name, 0.0, {"form": 0.0}, fault)
            else:
                filled[i] = _whole(joke, place)
        replies = checked_reply(self.critic, critic_name(self.critic), list(filled.values())) if filled else []
        for i, reply in zip(filled, replies, strict=True):
            judgements[i] = self._own(reply)
        return cast(list[Judgement], judgements)

    def _fault(self, line: str, replaced: str) -> str:
        """Why a line is not a valid replacement; "" if it is."""
        text = line.strip()
        if not self._form.fullmatch(text) or len(text) > LONGEST_WORD * self.words:
            return f"expected {'one word' if self.words == 1 else f'at most {self.words} words'} of letters"
        if text.casefold() == replaced.strip().casefold():
            return "it is the word to be replaced"
        if self.known_words is None:
            return ""
        unknown = [word for word in _runs_of_letters(text) if word not in self.known_words]
        return f"not among the known words: {', '.join(unknown)}" if unknown else ""

    def _own(self, reply: Judgement) -> Judgement:
        if reply.score is None:
            return Judgement(self.name, None, error=f"{reply.critic}: {reply.error}", usage=reply.usage)
        return Judgement(self.name, reply.score, {"form": 1.0, **reply.parts}, reply.reason, usage=reply.usage)

    def close(self) -> None:
        close_all(self.inner_critics)


def _runs_of_letters(text: str) -> list[str]:
    return re.findall(_LETTERS, text.casefold())


def _words_of(file: str) -> frozenset[str]:
    if not isinstance(file, str):
        raise InvalidOption(f"known_words is the name of a text file; found {file!r}.")
    try:
        words = frozenset(_runs_of_letters(user_path(file).read_text(encoding="utf-8")))
    except (OSError, UnicodeDecodeError) as problem:
        raise InvalidOption(f"known_words must be a text file in UTF-8; cannot read {file!r}: {problem}.") from None
    if not words:
        raise InvalidOption(f"known_words: there is no word in {file!r}.")
    return words


def _place(prompt: Prompt) -> tuple[str, str, str] | None:
    """The text before, in, and after the brackets; None unless there is exactly one pair."""
    matches = list(_PLACE.finditer(prompt.text))
    if len(matches) != 1 or not matches[0][1].strip():
        return None
    return prompt.text[: matches[0].start()], matches[0][1], prompt.text[matches[0].end() :]


def _whole(joke: Joke, place: tuple[str, str, str]) -> Joke:
    before, replaced, behind = place
    sentence, edited = (" ".join(f"{before}{word}{behind}".split()) for word in (replaced, joke.text.strip()))
    # Keep the whole prompt's id: the replaced word is part of the question.
    prompt = Prompt(joke.prompt.id, sentence, HEADLINE_EDIT, joke.prompt.split)
    return replace(joke, prompt=prompt, text=edited)
