"""How critics without a model read a text: as words and runs of words, whatever the text holds.

    words("The MEETING was slow!")          # ['the', 'meeting', 'was', 'slow']
    ngrams(["the", "meeting", "was"], 2)    # {('the', 'meeting'), ('meeting', 'was')}

Everything here accepts any Python string (lone surrogates, control characters, right-to-left text, nothing at all),
because a student may write any string.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Sequence

from humor_env.shared.text_stats import UNSEEN, as_read, words

__all__ = ["as_read", "hidden_characters", "ngrams", "well_formed", "words"]

_JOINERS = "\u200c\u200d"


def well_formed(text: str) -> str:
    """`text` with each lone surrogate replaced, so that tokenizers and UTF-8 files take it."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def ngrams(tokens: Sequence[str], n: int) -> set[tuple[str, ...]]:
    """Every run of `n` words; for a text shorter than `n` words, the whole of it."""
    if not tokens:
        return set()
    n = min(n, len(tokens))
    return {tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1)}


def hidden_characters(text: str) -> Iterator[str]:
    """Characters that change what a program reads but not what a person sees: zero-width, bidirectional, control,
    private-use and unassigned ones, and lone surrogates. Line breaks, tabs and the joiners that Persian, Indic scripts
    and emoji are written with are not hidden."""
    if text.isascii() and text.isprintable():
        return
    for i, c in enumerate(text):
        if c.isascii():
            if not (c.isprintable() or c in "\n\r\t"):
                yield c
        elif unicodedata.category(c) in UNSEEN and not (c in _JOINERS and _joins(text, i)):
            yield c


def _joins(text: str, i: int) -> bool:
    before, after = text[i - 1 : i], text[i + 1 : i + 2]
    return bool(before and after) and _takes_joiner(before) and _takes_joiner(after)


def _takes_joiner(c: str) -> bool:
    # Arabic and Indic letters and marks, emoji, and the variation selector that follows an emoji.
    return ord(c) >= 0x0600 and unicodedata.category(c)[0] in "LMS"
