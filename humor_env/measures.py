"""Numbers about a set of lines that need no critic: how varied they are, and how much they borrow.

distinct_n(lines, 2)             # share of different bigrams: 1 when nothing repeats
overlap(lines, teacher_lines)    # share of the lines' 4-grams that the others contain
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence

_WORD = re.compile(r"\w+(?:'\w+)?")


def words(text: str) -> list[str]:
    return _WORD.findall(text.lower())


def ngrams(text: str, n: int) -> list[tuple[str, ...]]:
    found = words(text)
    return [tuple(found[i : i + n]) for i in range(len(found) - n + 1)]


def distinct_n(lines: Iterable[str], n: int) -> float:
    """Different n-grams over all n-grams. It falls as the sample grows: compare samples of one size only."""
    counts = Counter(g for line in lines for g in ngrams(line, n))
    total = sum(counts.values())
    return len(counts) / total if total else 0.0


def ngram_set(lines: Iterable[str], n: int = 4) -> frozenset[tuple[str, ...]]:
    """All n-grams of the lines: made once, for `overlap` with the same lines again and again."""
    return frozenset(g for line in lines for g in ngrams(line, n))


def overlap(lines: Iterable[str], others: Iterable[str] | frozenset[tuple[str, ...]], n: int = 4) -> float:
    """The share of the lines' n-grams that also stand in the other lines (or in their `ngram_set`)."""
    known = others if isinstance(others, frozenset) else ngram_set(others, n)
    grams = [g for line in lines for g in ngrams(line, n)]
    return sum(g in known for g in grams) / len(grams) if grams else 0.0


def self_overlap(lines: Sequence[str], n: int = 4) -> float:
    """The share of n-gram occurrences that another line of the set contains too."""
    per_line = [set(ngrams(line, n)) for line in lines]
    counts = Counter(g for grams in per_line for g in grams)
    total = sum(len(grams) for grams in per_line)
    return sum(counts[g] > 1 for grams in per_line for g in grams) / total if total else 0.0


def commonest_share(lines: Sequence[str], top: int = 10) -> float:
    """The share of the set taken by its `top` commonest lines: near 1 when everything is the same joke."""
    if not lines:
        return 0.0
    counts = Counter(" ".join(words(line)) for line in lines)
    return sum(n for _, n in counts.most_common(top)) / len(lines)
