"""How improbable a text is: to the other texts beside it, or to a language model. A measure, never a reward.

    unigram_surprisal(texts)(["A line."])                # by how rare its words are among `texts`; needs nothing
    ModelSurprisal("pocket:causal")(["A line."])         # mean -log p of a token, in nats, by any causal model

Surprisal tells jokes from plain sentences and hardly tells a funny joke from a poor one, so an audit prints it beside
a critic: one that does no better has learned what is odd, not what is funny.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from humor_env.errors import InvalidOption
from humor_env.rewards.shared.reading import well_formed, words
from humor_env.shared.control_tokens import as_text
from humor_env.shared.precision import in_paying_precision

if TYPE_CHECKING:
    import torch

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
    """`model` is "pocket:causal", a Hugging Face model's name or a folder. The weights are loaded at the first call."""

    def __init__(self, model: str = "pocket:causal", batch_size: int = 32, max_length: int = 256) -> None:
        if batch_size < 1 or max_length < 2:
            raise InvalidOption(
                f"batch_size must be at least 1 and max_length at least 2, found {batch_size} and {max_length}."
            )
        self.model, self.batch_size, self.max_length = model, batch_size, max_length
        self._loaded: tuple[Any, Any] | None = None

    def __call__(self, lines: Sequence[str]) -> list[float]:
        batches = [self._sums(lines[i : i + self.batch_size]) for i in range(0, len(lines), self.batch_size)]
        return [-total / max(1, count) for part in batches for total, count in part]

    def logprobs(self, lines: Sequence[str]) -> list[float]:
        """log p of each whole text."""
        batches = [self._sums(lines[i : i + self.batch_size]) for i in range(0, len(lines), self.batch_size)]
        return [total for part in batches for total, _ in part]

    def _sums(self, lines: Sequence[str]) -> list[tuple[float, int]]:
        """(log p, tokens) of each text, given the model's begin token where it has one."""
        model, tokenizer = self._loaded = self._loaded or self._load()
        import torch

        start = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
        rows = [
            [start, *tokenizer.encode(text, add_special_tokens=False)[: self.max_length - 1]]
            for text in (as_text(tokenizer, well_formed(line)) for line in lines)
        ]
        width = max(map(len, rows))
        ids = torch.tensor([row + [start] * (width - len(row)) for row in rows])
        mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows])
        with torch.inference_mode():
            logits: torch.Tensor = model(input_ids=ids, attention_mask=mask).logits.float()
        # Column t of the logits speaks about token t + 1.
        gained = torch.log_softmax(logits[:, :-1], -1).gather(-1, ids[:, 1:, None])[..., 0] * mask[:, 1:]
        return [(float(total), len(row) - 1) for total, row in zip(gained.sum(1), rows, strict=True)]

    def _load(self) -> tuple[Any, Any]:
        from humor_env import pocket

        service, _, name = self.model.partition(":")
        folder = str(pocket.path(name)) if service == "pocket" else self.model
        from transformers import AutoModelForCausalLM, AutoTokenizer

        try:
            tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
            model = AutoModelForCausalLM.from_pretrained(folder, use_safetensors=True, trust_remote_code=False)
        except (OSError, ValueError) as problem:
            why = str(problem).strip().split("\n")[0]
            raise InvalidOption(
                f"The language model '{self.model}' for surprisal could not be loaded ({why}). Give 'pocket:causal', a "
                "Hugging Face model's name, a folder, or 'unigram'."
            ) from problem
        if tokenizer.bos_token_id is None and tokenizer.eos_token_id is None:
            raise InvalidOption(f"The tokenizer of '{self.model}' has neither a begin nor an end token to start from.")
        return in_paying_precision(model, "cpu").eval(), tokenizer


def make_surprisal(name: str, texts: Sequence[str]) -> tuple[str, Surprisal]:
    """(what it is, in words; the measure) for "unigram" or a model's name."""
    if name == "unigram":
        return "surprisal (unigrams of this set)", unigram_surprisal(texts)
    return f"surprisal ({name})", ModelSurprisal(name)
