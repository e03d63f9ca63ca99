"""Novelty of a line, compared with its siblings and with an archive of known lines.

    critic = DiversityCritic(archive="old_jokes.txt")
    critic([first, second, third])[0].score          # 1: shares no word pairs; 0: the same as others

The similarity of two lines is the share of word pairs that they have in common (Jaccard), without those in the prompt:
a set-up that the prompt dictates is not a repetition. `siblings` is one minus the *mean* similarity to the other
attempts at the same prompt, so that two equal lines in a large group are not ruined by each other; `archive` is one
minus the similarity to the *nearest* archived line, because a repeated old joke is old. The score is the smaller of the
two. It does not measure quality: nonsense is new. Use it in a mix, with a small weight, together with a critic and
gates.
"""

from __future__ import annotations

import json
import math
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from humor_env.errors import InvalidOption
from humor_env.rewards.shared.reading import ngrams, words
from humor_env.shared.user_path import user_path
from humor_env.types import Joke, Judgement

_Grams = frozenset[tuple[str, ...]]


class DiversityCritic:
    """`archive` is a list of lines, a text file (one per row) or a JSON-lines file (strings, or objects with "text");
    `n` is the length of the compared word n-grams."""

    name = "diversity"

    def __init__(self, archive: str | os.PathLike[str] | Iterable[str] = (), n: int = 2) -> None:
        if n < 1:
            raise InvalidOption(f"n must be at least 1, found {n}.")
        self.n = n
        lines = _read_archive(archive) if isinstance(archive, (str, os.PathLike)) else _lines(archive)
        self._archive = [frozenset(ngrams(words(line), n)) for line in dict.fromkeys(lines)]
        self._holders: dict[tuple[str, ...], list[int]] = {}
        for index, grams in enumerate(self._archive):
            for gram in grams:
                self._holders.setdefault(gram, []).append(index)

    def __call__(self, jokes: Sequence[Joke]) -> list[Judgement]:
        grams = [self._grams(joke) for joke in jokes]
        families: dict[tuple[str, str], list[int]] = {}
        for index, joke in enumerate(jokes):
            families.setdefault((joke.prompt.id, joke.prompt.text), []).append(index)
        judgements = []
        for index, joke in enumerate(jokes):
            siblings = [k for k in families[joke.prompt.id, joke.prompt.text] if k != index]
            judgements.append(self._judge(joke, grams[index], [grams[k] for k in siblings]))
        return judgements

    def _grams(self, joke: Joke) -> _Grams:
        tokens = words(joke.text)
        return frozenset(ngrams(tokens, self.n) - ngrams(words(joke.prompt.text), self.n))

    def _judge(self, joke: Joke, grams: _Grams, siblings: Sequence[_Grams]) -> Judgement:
        if not grams:
            return Judgement(self.name, 0.0, {"siblings": 0.0, "archive": 0.0}, "it adds no words to the prompt")
        parts = {}
        if siblings:
            # Exact summation: the mean must not depend on the order of the siblings.
            parts["siblings"] = 1 - math.fsum(_jaccard(grams, other) for other in siblings) / len(siblings)
        if self._archive:
            parts["archive"] = 1 - self._nearest(grams)
        if not parts:
            return Judgement(self.name, 1.0, {}, "there is nothing to compare it with")
        least = min(parts, key=lambda name: parts[name])
        return Judgement(self.name, parts[least], parts, f"{1 - parts[least]:.0%} like {_WHAT[least]}")

    def _nearest(self, grams: _Grams) -> float:
        shared = Counter(index for gram in grams for index in self._holders.get(gram, ()))
        return max((s / (len(grams) + len(self._archive[i]) - s) for i, s in shared.items()), default=0.0)


_WHAT = {"siblings": "its siblings on average", "archive": "a line of the archive"}


def _jaccard(a: _Grams, b: _Grams) -> float:
    both = len(a & b)
    return both / (len(a) + len(b) - both)


def _lines(archive: Iterable[str]) -> list[str]:
    iterable = isinstance(archive, Iterable) and not isinstance(archive, Mapping)
    lines = list(archive) if iterable else []
    if not iterable or not all(isinstance(line, str) for line in lines):
        raise InvalidOption(f"archive is {archive!r}; expected a list of lines, or a file's path as text.")
    return lines


def _read_archive(path: str | os.PathLike[str]) -> list[str]:
    try:
        content = user_path(path).read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as problem:
        raise InvalidOption(f"The archive '{os.fspath(path)}' cannot be read as UTF-8 text: {problem}") from problem
    lines = [line for line in content.split("\n") if line.strip()]
    if Path(path).suffix != ".jsonl":
        return lines
    texts = []
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
            text = row if isinstance(row, str) else row["text"]
        except (ValueError, TypeError, KeyError):
            text = None
        if not isinstance(text, str):
            raise InvalidOption(
                f"Record {number} of the archive '{os.fspath(path)}' is neither a string nor an object with a 'text'."
            )
        texts.append(text)
    return texts
