"""How much likelier a line is with its prompt than without, by a language model: does it answer this prompt?

    critic = FitCritic("smollm2")
    critic([joke])[0].parts            # {"line": 14.2, "rest": 0.0} nats; the score is 0.86

A critic trained on people's grades may hardly read the prompt; an untrained language model does. With `form="pair"`
(the line follows its prompt) the score compares log p(line | prompt) with log p(line). With `form="edit"` (the line is
the prompt with some words replaced) it compares the new words in their place with the new words alone, and the kept
words after them with how they follow the old ones. The score is the logistic function of the sum over `nats`: 0.5 if
the prompt makes no difference. Any text before a line makes it likelier than none: SmolLM2 gives lines under prompts
that are not theirs about 0.7, so compare scores with each other, not with 0.5.

It does not measure humor, and a line that repeats its prompt fits best of all. So use it with a critic of humor, with a
small weight, behind gates:

    [{"critic": "rules", "gate": 0.5}, {"critic": "reward-model", "weight": 3, …}, {"critic": "fit", "weight": 1}]
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from humor_env.errors import InvalidOption, did_you_mean
from humor_env.rewards.likelihood.language_model import LanguageModel, Token
from humor_env.rewards.shared.read_once import read_once
from humor_env.rewards.shared.reading import changed
from humor_env.shared.plain_numbers import real_number
from humor_env.types import Joke, Judgement

FORMS = ("pair", "edit")


@dataclass(frozen=True, slots=True)
class _Passage:
    """A text, and the range of the words in question; what follows them is the rest."""

    text: str
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class _Question:
    """The line's words in place and alone; for an edit also the prompt, which has the same rest."""

    placed: _Passage
    alone: _Passage
    before: _Passage | None


class FitCritic:
    """`model` is a student's name, a Hugging Face model's name, a folder or a GGUF file. `form` is "pair" or "edit".
    A sum of `nats` gives a score of 0.73. `batch_size` and `max_length` (tokens) bound memory; `device` is "auto" or
    a torch device."""

    name = "fit"

    def __init__(
        self,
        model: str = "smollm2",
        form: str = "pair",
        nats: float = 8.0,
        batch_size: int = 16,
        max_length: int = 256,
        device: str = "auto",
    ) -> None:
        if form not in FORMS:
            raise InvalidOption(f"form must be 'pair' or 'edit', found {form!r}.{did_you_mean(str(form), FORMS)}")
        scale = real_number(nats)
        if scale is None or not 0 < scale < math.inf:
            raise InvalidOption(f"nats is the scale of the score and must be above 0; found {nats!r}.")
        self.model = LanguageModel(model, batch_size, max_length, device)
        self.form, self.nats = form, scale

    def __call__(self, jokes: Sequence[Joke]) -> list[Judgement]:
        reader = (self.name, self.model.name, self.form, self.model.max_length, self.model.device)
        return [self._judgement(*gains) for gains in read_once(reader, jokes, self._read)]

    def _judgement(self, line: float, rest: float) -> Judgement:
        total = line + rest
        if not math.isfinite(total):
            return Judgement(self.name, None, error=f"the model's number is {total}")
        x = max(-700.0, min(700.0, total / self.nats))
        reason = f"{abs(total):.1f} nats {'likelier' if total >= 0 else 'less likely'} with its prompt than without"
        return Judgement(self.name, 1 / (1 + math.exp(-x)), {"line": line, "rest": rest}, reason)

    def _read(self, jokes: Sequence[Joke]) -> list[tuple[float, float]]:
        """The nats that the prompt adds to each line's own words, and to the words after them."""
        questions = [self._question(joke) for joke in jokes]
        passages = [p for q in questions for p in (q.placed, q.alone, q.before) if p is not None]
        texts = list(dict.fromkeys(p.text for p in passages))
        tokens = dict(zip(texts, self.model.read(texts), strict=True))

        return [_gains(question, tokens) for question in questions]

    def _question(self, joke: Joke) -> _Question:
        prompt, line = self.model.clean(joke.prompt.text), self.model.clean(joke.text)
        if self.form == "pair":
            text = f"{prompt}\n{line}"
            return _Question(_Passage(text, len(text) - len(line), len(text)), _Passage(line, 0, len(line)), None)
        # With single spaces, the common ending has the same length in both.
        prompt, line = " ".join(prompt.split()), " ".join(line.split())
        _, (start, end) = changed(prompt, line)
        if start == end:  # words were removed, or none changed
            return _Question(_Passage(line, 0, 0), _Passage(line, 0, 0), None)
        # A word in the middle includes the space before it, in both places.
        alone = f" {line[start:end]}" if start else line[start:end]
        behind = len(prompt) - len(line[end:])
        return _Question(_Passage(line, start, end), _Passage(alone, 0, len(alone)), _Passage(prompt, 0, behind))


def _gains(question: _Question, tokens: Mapping[str, Sequence[Token]]) -> tuple[float, float]:
    """The nats of the words in place minus those alone, and of the rest minus those of the prompt's. If a text was
    truncated, only what was read in both counts: otherwise a line that is too long would seem to fit."""
    placed, alone, before = question.placed, question.alone, question.before
    unread = max(0, placed.end - _read_to(placed, tokens))
    line = _sum(placed, tokens, placed.start, placed.end) - _sum(alone, tokens, 0, alone.end - unread)
    if before is None:
        return line, 0.0
    length = min(_read_to(passage, tokens) - passage.end for passage in (placed, before))
    rest = _sum(placed, tokens, placed.end, placed.end + length)
    return line, rest - _sum(before, tokens, before.end, before.end + length)


def _read_to(passage: _Passage, tokens: Mapping[str, Sequence[Token]]) -> int:
    """The end of the text that the model read, in characters."""
    return tokens[passage.text][-1].end if tokens[passage.text] else 0


def _sum(passage: _Passage, tokens: Mapping[str, Sequence[Token]], start: int, end: int) -> float:
    """log p of the tokens between two characters, including one that starts with the space before the first."""
    return math.fsum(t.logprob for t in tokens[passage.text] if t.end > start and t.end <= end)
