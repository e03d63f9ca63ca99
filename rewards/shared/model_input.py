"""Shared by a trained critic and its training: the file that marks its folder, and how a text is read and framed.

    text = as_seen(tokenizer, joke.text, 128)       # the visible text, for a model that reads 128 tokens
    before, after = frame(tokenizer)                # token ids around each text
    most = longest(model.config, tokenizer)         # the longest row that the model accepts

Used by the critic that loads a folder and the training that writes it; needs neither torch nor a model.
"""

from __future__ import annotations

from typing import Any

from humor_env.rewards.shared.reading import without_hidden
from humor_env.shared.control_tokens import as_text

SCORING_FILE = "scoring.json"


def as_seen(tokenizer: Any, text: str, tokens: int) -> str:
    """`text` without hidden characters, with control tokens as plain text, cut to what `tokens` tokens can need."""
    # Truncate by characters first: tokenizing 10,000 characters to keep 128 tokens is slow.
    return as_text(tokenizer, without_hidden(text[: 16 * tokens])[: 8 * tokens])


def frame(tokenizer: Any) -> tuple[list[int], list[int]]:
    """The special tokens that the tokenizer puts before and after a single text."""
    inner, whole = tokenizer.encode("a", add_special_tokens=False), tokenizer.encode("a")
    for start in range(len(whole) - len(inner) + 1):
        if whole[start : start + len(inner)] == inner:
            return whole[:start], whole[start + len(inner) :]
    return [], []


def longest(config: Any, tokenizer: Any) -> int:
    """How many tokens the model can read."""
    config = config.get_text_config()
    limit = getattr(config, "max_position_embeddings", None) or tokenizer.model_max_length
    if "roberta" in config.model_type:
        limit -= (config.pad_token_id or 0) + 1  # its positions start after the padding's id
    return int(min(limit, tokenizer.model_max_length))
