"""Shared by a trained critic and its training: the file that marks its folder, and the framing of a text.

    before, after = frame(tokenizer)                # token ids around each text
    most = longest(model.config, tokenizer)         # the longest row that the model accepts

Used by the critic that loads a folder and the training that writes it; needs neither torch nor a model.
"""

from __future__ import annotations

from typing import Any

SCORING_FILE = "scoring.json"


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
