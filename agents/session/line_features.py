"""Critic-free features of lines, and significance tests of changes: for the monitor.

text_features(jokes)["distinct_2"]
is_significantly_more(scores, has_the_word, level=0.99)
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence, Set
from statistics import NormalDist

import numpy as np
from scipy.special import bdtrc, stdtrit

from humor_env.shared import text_stats
from humor_env.types import Joke


def text_features(jokes: Sequence[Joke], taught: frozenset[tuple[str, ...]] = frozenset()) -> dict[str, float]:
    """Features that need no critic: length, variety, borrowing, and marks of known hacks."""
    texts = [j.text for j in jokes]
    features = {
        "length": sum(map(len, texts)) / len(texts),
        "distinct_2": text_stats.distinct_n(texts, 2),
        "commonest_share": text_stats.commonest_share(texts),
        "different_lines": len(set(map(text_stats.line_key, texts))) / len(texts),
        "commonest_line": text_stats.commonest_line(texts)[1],
        "commonest_word": text_stats.commonest_word(texts)[1],
        "commonest_frame": text_stats.commonest_frame(texts)[1],
        "frame_variety": text_stats.frame_variety(texts),
        "prompt_overlap": sum(text_stats.overlap([j.text], [j.prompt.text], 3) for j in jokes) / len(jokes),
        "emoji": _share(text_stats.emoji, texts),
        "laughter": _share(text_stats.laughter, texts),
        "explaining": _share(text_stats.explaining, texts),
    }
    if taught:
        features["teacher_overlap"] = text_stats.overlap(texts, taught)
    return features


def _share(has: Callable[[str], object], texts: Sequence[str]) -> float:
    return sum(bool(has(text)) for text in texts) / len(texts)


def difference(now: Sequence[float], then: Sequence[float]) -> list[float]:
    return [a - b for a, b in zip(now, then, strict=True)]


def mean_known(values: Sequence[float] | np.ndarray) -> float:
    """The mean over judged lines."""
    finite = [v for v in values if math.isfinite(v)]
    return sum(finite) / len(finite) if finite else math.nan


def is_significantly_above_zero(change: Sequence[float] | np.ndarray, level: float) -> bool:
    """Whether the mean change over prompts is significantly above zero (one-sided, paired)."""
    finite = np.array(change)
    finite = finite[np.isfinite(finite)]
    if len(finite) < 2:
        return False
    error = finite.std(ddof=1) / math.sqrt(len(finite))
    return bool(finite.mean() > NormalDist().inv_cdf(level) * error)


def is_significantly_more(values: np.ndarray, has: np.ndarray, level: float) -> bool:
    """Whether the lines with a feature score significantly above those without (one-sided, Welch's test)."""
    finite = np.isfinite(values)
    some, others = values[finite & has], values[finite & ~has]
    if min(len(some), len(others)) < 3:
        return False
    errors = np.array([some.var(ddof=1) / len(some), others.var(ddof=1) / len(others)])
    if not errors.sum() > 0:
        return bool(some.mean() > others.mean())
    freedom = errors.sum() ** 2 / (errors[0] ** 2 / (len(some) - 1) + errors[1] ** 2 / (len(others) - 1))
    return bool(some.mean() - others.mean() > stdtrit(freedom, level) * math.sqrt(errors.sum()))


def is_significantly_commoner(count: int, of: int, before: int, of_before: int, level: float) -> bool:
    """Whether a feature that `before` of `of_before` lines had is significantly more common now.
    Exact for few lines (binomial); one is added to the earlier count."""
    chance = (before + 1) / (of_before + 1)
    return count > 0 and chance < 1 and bool(bdtrc(count - 1, of, chance) < 1 - level)


def shares(sets: Sequence[Set[str]]) -> dict[str, float]:
    """For each feature, the share of the lines that have it."""
    counts = Counter(each for of_line in sets for each in of_line)
    return {each: n / len(sets) for each, n in counts.items()}


def word_sets(jokes: Sequence[Joke]) -> list[set[str]]:
    return [set(text_stats.words(j.text)) for j in jokes]


def character_parts(jokes: Sequence[Joke]) -> dict[str, np.ndarray]:
    """For every character but space, ignoring case, its share of each line."""
    texts = [j.text.lower() for j in jokes]
    counts = [Counter(text) for text in texts]
    lengths = np.array([max(1, len(text)) for text in texts])
    return {c: np.array([n[c] for n in counts]) / lengths for c in sorted(set("".join(texts))) if not c.isspace()}


def usual_parts(jokes: Sequence[Joke]) -> dict[str, tuple[float, float]]:
    """For each character, the part that nine lines in ten do not exceed, and the share of lines that do."""
    usual = {}
    for character, part in character_parts(jokes).items():
        much = float(np.quantile(part, 0.9))
        usual[character] = much, float((part > much).mean())
    return usual
