"""Text processing of critics without a model: words and n-grams of any text.

    words("The MEETING was slow!")          # ['the', 'meeting', 'was', 'slow']
    ngrams(["the", "meeting", "was"], 2)    # {('the', 'meeting'), ('meeting', 'was')}
    changed("a slow meeting", "a fast meeting")    # ((2, 6), (2, 6)): the replaced range, and the new one

Everything here accepts any Python string (lone surrogates, control characters, right-to-left text, ""), because a
student may write any string.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Sequence

from humor_env.shared.text_stats import UNSEEN, as_read, words

__all__ = ["as_read", "changed", "hidden_characters", "ngrams", "well_formed", "without_hidden", "words"]

_SPACED = re.compile(r"\S+")
_JOINERS = "\u200c\u200d"


def well_formed(text: str) -> str:
    """`text` with each lone surrogate replaced, so that tokenizers and UTF-8 files accept it."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def ngrams(tokens: Sequence[str], n: int) -> set[tuple[str, ...]]:
    """Every run of `n` words; for a shorter text, the whole text."""
    if not tokens:
        return set()
    n = min(n, len(tokens))
    return {tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1)}


def changed(before: str, after: str) -> tuple[tuple[int, int], tuple[int, int]]:
    """The character ranges of `before` and `after` between their common first and last words."""
    first, second = list(_SPACED.finditer(before)), list(_SPACED.finditer(after))
    shorter = min(len(first), len(second))
    head = 0
    while head < shorter and first[head][0] == second[head][0]:
        head += 1
    tail = 0
    while tail < shorter - head and first[-1 - tail][0] == second[-1 - tail][0]:
        tail += 1
    return _range(first[head : len(first) - tail]), _range(second[head : len(second) - tail])


def _range(words: Sequence[re.Match[str]]) -> tuple[int, int]:
    return (words[0].start(), words[-1].end()) if words else (0, 0)


def hidden_characters(text: str) -> Iterator[str]:
    """Characters that change what a program reads but not what a person sees: zero-width, bidirectional, control,
    private-use and unassigned ones, and lone surrogates. Line breaks, tabs, and the joiners used in Persian, Indic
    scripts and emoji do not count."""
    if text.isascii() and text.isprintable():
        return
    for i, c in enumerate(text):
        if _is_hidden(text, i):
            yield c


def without_hidden(text: str) -> str:
    """`text` as a person sees it: without hidden characters, and well formed."""
    if text.isascii() and text.isprintable():
        return text
    return well_formed("".join(c for i, c in enumerate(text) if not _is_hidden(text, i)))


def _is_hidden(text: str, i: int) -> bool:
    c = text[i]
    if c.isascii():
        return not (c.isprintable() or c in "\n\r\t")
    return unicodedata.category(c) in UNSEEN and not (c in _JOINERS and _joins(text, i))


def _joins(text: str, i: int) -> bool:
    before, after = text[i - 1 : i], text[i + 1 : i + 2]
    return bool(before and after) and _takes_joiner(before) and _takes_joiner(after)


def _takes_joiner(c: str) -> bool:
    # Arabic and Indic letters and marks, emoji, and the variation selector that follows an emoji.
    return ord(c) >= 0x0600 and unicodedata.category(c)[0] in "LMS"
