"""Log-probabilities of texts under a causal language model, token by token.

    model = LanguageModel("smollm2")
    [tokens] = model.read(["Senate passes gas"])
    [(token.start, token.end, token.logprob) for token in tokens]     # characters of the text, and log p in nats

The weights are loaded on the first call. Texts are sorted by length to reduce padding. Control tokens in a text are
read as plain text: `clean` gives it as the model sees it, and character positions refer to that.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from humor_env.errors import InvalidOption
from humor_env.rewards.shared.reading import without_hidden
from humor_env.shared.control_tokens import as_text
from humor_env.shared.frozen_weights import share_weights
from humor_env.shared.model_hub import check_hub
from humor_env.shared.precision import device_for, in_paying_precision
from humor_env.sources import students


class Token(NamedTuple):
    """`start` and `end` are its characters in the text."""

    start: int
    end: int
    logprob: float


class LanguageModel:
    """`name` is a student's ("smollm2", "pocket:causal"), a Hugging Face model's name, a folder or a GGUF file."""

    def __init__(self, name: str, batch_size: int = 32, max_length: int = 256, device: str = "auto") -> None:
        if batch_size < 1 or max_length < 2:
            raise InvalidOption(
                f"batch_size must be at least 1 and max_length at least 2, found {batch_size} and {max_length}."
            )
        self.name, self.batch_size, self.max_length, self.device = name, batch_size, max_length, device
        self._loaded: tuple[Any, Any] | None = None

    def clean(self, text: str) -> str:
        """The text as the model reads it, without control tokens and hidden characters."""
        return as_text(self._parts()[1], without_hidden(text))

    def read(self, texts: Sequence[str]) -> list[list[Token]]:
        """Each text after the model's start token; a text that is too long is truncated."""
        import torch

        model, tokenizer = self._parts()
        start = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
        most = self.max_length - 1
        # Truncate by characters first: tokenizing 10,000 characters to keep 256 tokens is slow.
        cleaned = [self.clean(text)[: 16 * most] for text in texts]
        rows, places = [], []
        for text in cleaned:
            read = tokenizer(
                text, add_special_tokens=False, return_offsets_mapping=True, truncation=True, max_length=most
            )
            rows.append([start, *read["input_ids"]])
            places.append(read["offset_mapping"])
        # By length, then by content, so that the same texts form the same batches in any order.
        order = sorted(range(len(rows)), key=lambda i: (len(rows[i]), rows[i]))
        answers: list[list[Token]] = [[] for _ in rows]
        for first in range(0, len(order), self.batch_size):
            chosen = order[first : first + self.batch_size]
            width = max(len(rows[i]) for i in chosen)
            ids = torch.tensor([rows[i] + [start] * (width - len(rows[i])) for i in chosen], device=model.device)
            mask = torch.tensor(
                [[1] * len(rows[i]) + [0] * (width - len(rows[i])) for i in chosen], device=model.device
            )
            with torch.inference_mode():
                logits: torch.Tensor = model(input_ids=ids, attention_mask=mask).logits.float()
                # Column t of the logits is about token t + 1.
                gained = logits[:, :-1].gather(-1, ids[:, 1:, None])[..., 0] - logits[:, :-1].logsumexp(-1)
            for i, values in zip(chosen, gained.tolist(), strict=True):
                answers[i] = [
                    Token(low, high, value)
                    for (low, high), value in zip(places[i], values[: len(places[i])], strict=True)
                ]
        return answers

    def _parts(self) -> tuple[Any, Any]:
        self._loaded = self._loaded or self.load()
        return self._loaded

    def load(self) -> tuple[Any, Any]:
        """The model and its tokenizer."""
        from transformers import AutoModelForCausalLM, AutoTokenizer

        folder = students.source(self.name)
        try:
            check_hub(folder)
            tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
            model = AutoModelForCausalLM.from_pretrained(folder, use_safetensors=True, trust_remote_code=False)
        except (OSError, ValueError) as problem:
            why = str(problem).strip().split("\n")[0]
            install = students.how_to_install(self.name)
            raise InvalidOption(
                f"The language model '{self.name}' could not be loaded ({why}). "
                + (
                    f"Install it: {install}"
                    if install
                    else "Give a student's name ('smollm2'), a Hugging Face model's name, a folder or a GGUF file."
                )
            ) from problem
        if tokenizer.bos_token_id is None and tokenizer.eos_token_id is None:
            raise InvalidOption(f"The tokenizer of '{self.name}' has neither a start nor an end token to begin with.")
        device = device_for(self.device)
        model = in_paying_precision(model, device).eval()
        return share_weights(model.to(device)), tokenizer
