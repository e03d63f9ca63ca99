"""A critic with a memory: it lowers the score of what the student keeps writing.

    critic = NoveltyCritic(lines=2048)
    critic(jokes)                # 1: nothing like it among the last lines. Scoring changes nothing
    critic.remember(jokes)       # the lines learned from; a run's learner calls this after each step
    critic(jokes)                # less

A critic that scores each line by itself has a single best line, and a student may answer every prompt with it. This
critic compares a line with the last `lines` lines that the student learned from, over all processes. The score is the
smallest of three parts:

- `line`: 1 - log(1 + c) / log(1 + lines), where c of them are the same line. The first repetitions cost most.
- `pairs`: 1 minus the share of `lines` that have the line's commonest word pair, excluding pairs in the prompt.
- `frame`: 1 minus the share of `lines` that have the line's commonest frame ("was so _ that"), excluding the prompt's.

It does not measure quality: nonsense is new. Use it in a mix, with a critic and behind gates:

    [{"critic": "rules", "gate": 0.5}, {"critic": "reward-model", "weight": 2}, {"critic": "novelty", "weight": 1}]

A checkpoint keeps the memory (`get_state`, `set_state`). Evaluations and monitors call the critic but not `remember`,
so they do not change it.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter, deque
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from humor_env.errors import CheckpointError, InvalidOption
from humor_env.rewards.shared.reading import ngrams, words
from humor_env.shared.plain_numbers import whole_number
from humor_env.shared.text_stats import frames, line_key
from humor_env.types import Joke, Judgement


class NoveltyCritic:
    """Remembers the newest `lines` lines; a step's batch should be a small part of them."""

    name = "novelty"

    def __init__(self, lines: int = 2048) -> None:
        most = whole_number(lines)
        if most is None or most < 1:
            raise InvalidOption(f"lines is the number of remembered lines and must be at least 1; found {lines!r}.")
        self.lines = most
        self._memory: deque[str] = deque()
        self._same: Counter[str] = Counter()
        self._pairs: Counter[tuple[str, ...]] = Counter()
        self._frames: Counter[str] = Counter()

    def __call__(self, jokes: Sequence[Joke]) -> list[Judgement]:
        return [self._judge(joke) for joke in jokes]

    def remember(self, jokes: Sequence[Joke]) -> None:
        """Add the lines of one step, from all processes, in any order."""
        texts = [line_key(joke.text) for joke in jokes]
        # By hash, so that the order of forgetting within a step does not depend on prompts or processes.
        for text in sorted(texts, key=lambda t: (hashlib.blake2b(t.encode("utf-8", "surrogatepass")).digest(), t)):
            self._memory.append(text)
            self._count(text, 1)
        while len(self._memory) > self.lines:
            self._count(self._memory.popleft(), -1)

    def get_state(self) -> dict[str, Any]:
        """Plain data from which `set_state` continues exactly."""
        return {"lines": self.lines, "memory": list(self._memory)}

    def set_state(self, state: Mapping[str, Any]) -> None:
        memory = state.get("memory") if isinstance(state, Mapping) else None
        if not isinstance(memory, list) or not all(isinstance(text, str) for text in memory):
            raise CheckpointError("The saved state of the critic 'novelty' has no list of lines.")
        self._memory = deque(memory[-self.lines :])
        for counts in (self._same, self._pairs, self._frames):
            counts.clear()
        for text in self._memory:
            self._count(text, 1)

    def _count(self, text: str, by: int) -> None:
        _add(self._same, [text], by)
        _add(self._pairs, _pairs(text), by)
        _add(self._frames, frames(text), by)

    def _judge(self, joke: Joke) -> Judgement:
        text = line_key(joke.text)
        if not text:
            return Judgement(self.name, 0.0, {"line": 0.0, "pairs": 0.0, "frame": 0.0}, "there are no words in it")
        # What the prompt dictates is not a habit.
        pair, pair_share = self._commonest(self._pairs, _pairs(text) - _pairs(joke.prompt.text))
        frame, frame_share = self._commonest(self._frames, frames(text) - frames(joke.prompt.text))
        same = self._same[text]
        parts = {
            "line": 1 - math.log1p(same) / math.log1p(self.lines),
            "pairs": 1 - pair_share,
            "frame": 1 - frame_share,
        }
        least = min(parts, key=lambda name: parts[name])
        reasons = {
            "line": f"written {same} times before",
            "pairs": f"'{' '.join(pair)}' is in {self._of_those_remembered(pair_share)}",
            "frame": f"'{frame}' is in {self._of_those_remembered(frame_share)}",
        }
        return Judgement(self.name, max(0.0, parts[least]), parts, "new" if parts[least] == 1 else reasons[least])

    def _of_those_remembered(self, share: float) -> str:
        """A share of the memory's size, in words, as a share of the lines in it."""
        count = len(self._memory)
        return f"{share * self.lines / count:.0%} of the last {count} lines" if count else "no line yet"

    def _commonest(self, counts: Counter[Any], grams: Iterable[Any]) -> tuple[Any, float]:
        """The line's feature that is most frequent in memory, and its share; ties go to the first in order."""
        most = min(grams, key=lambda each: (-counts[each], "_" in each, each), default="")
        return most, counts[most] / self.lines if most else 0.0


def _pairs(text: str) -> set[tuple[str, ...]]:
    return ngrams(words(text), 2)


def _add(counts: Counter[Any], keys: Iterable[Any], by: int) -> None:
    for key in keys:
        counts[key] += by
        if not counts[key]:
            del counts[key]
