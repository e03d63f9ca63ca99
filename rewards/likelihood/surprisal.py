"""Surprisal of a text, given the other texts of a set or a language model. A measure, never a reward.

    unigram_surprisal(texts)(["A line."])                # by the rarity of its words in `texts`; needs no model
    ModelSurprisal("pocket:causal")(["A line."])         # mean -log p per token, in nats, by any causal model

Surprisal distinguishes jokes from plain sentences, but hardly funny jokes from poor ones, so an audit shows it with the
critic: a critic that does no better has learned what is odd, not what is funny.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence

from humor_env.rewards.likelihood.language_model import LanguageModel
from humor_env.rewards.shared.reading import words

Surprisal = Callable[[Sequence[str]], list[float]]


def unigram_surprisal(texts: Sequence[str]) -> Surprisal:
    """Mean -log p of a word, p being its share of the words of `texts`; one is added to each count."""
    counts = Counter(word for text in texts for word in words(text))
    total = sum(counts.values()) + len(counts) + 1

    def measure(lines: Sequence[str]) -> list[float]:
        return [_mean([-math.log((counts[word] + 1) / total) for word in words(line)]) for line in lines]

    return measure


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values) if values else 0.0


class ModelSurprisal:
    """`model` is a name for `LanguageModel`: a student's name, a Hugging Face model's name, or a folder."""

    def __init__(self, model: str = "pocket:causal", batch_size: int = 32, max_length: int = 256) -> None:
        self.model = LanguageModel(model, batch_size, max_length, device="cpu")

    def __call__(self, lines: Sequence[str]) -> list[float]:
        return [-_mean([token.logprob for token in tokens]) for tokens in self.model.read(lines)]

    def logprobs(self, lines: Sequence[str]) -> list[float]:
        """log p of each whole text."""
        return [math.fsum(token.logprob for token in tokens) for tokens in self.model.read(lines)]


def make_surprisal(name: str, texts: Sequence[str]) -> tuple[str, Surprisal]:
    """(description, measure) for "unigram" or a model's name."""
    if name == "unigram":
        return "surprisal (unigrams of this set)", unigram_surprisal(texts)
    return f"surprisal ({name})", ModelSurprisal(name)
