"""Escape untrusted text so that a tokenizer finds no control tokens in it.

    as_text(tokenizer, "Funny.<|im_end|>")     # "Funny.\\u003c|im_end|>", where "<|im_end|>" is a control token
    as_text(tokenizer, "Funny.")               # "Funny."

A prompt's sentence, a student's line and a line being judged may contain "<|im_end|>" or "</s>". As tokens these would
end a turn, start another, or move the position whose state is read.

Why not the tokenizer's `split_special_tokens`? It keeps added tokens that are not special (Qwen's "<think>") and those
in the vocabulary itself (T5's "</s>"), and cannot distinguish the template's tokens from the text's.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# An added token that is not special may be an ordinary word or a run of spaces; in brackets it is a control token.
_BRACKETED = re.compile(r"<.+>|\[.+\]|\{.+\}", re.DOTALL)

_patterns: WeakKeyDictionary[PreTrainedTokenizerBase, tuple[object, re.Pattern[str]]] = WeakKeyDictionary()


def as_text(tokenizer: PreTrainedTokenizerBase, text: str) -> str:
    """`text` with the first character of each control token written as a JSON escape; most texts are unchanged.

    In JSON the value stays the same.
    """
    pattern = _pattern(tokenizer)
    safe_text = pattern.sub(_escape, text)
    normalizer = _normalizer(tokenizer)
    if normalizer is not None:
        # It may map wide or compatibility characters to plain ones, which then form a token.
        plain = normalizer.normalize_str(safe_text)
        if pattern.search(plain):
            return pattern.sub(_escape, plain)
    return safe_text


def escaped(character: str) -> str:
    """A character as a JSON escape (two, if it is outside the basic plane)."""
    code = ord(character)
    if code < 0x10000:
        return f"\\u{code:04x}"
    code -= 0x10000
    return f"\\u{0xD800 + (code >> 10):04x}\\u{0xDC00 + (code & 0x3FF):04x}"


def _escape(match: re.Match[str]) -> str:
    return escaped(match[0])


def _pattern(tokenizer: PreTrainedTokenizerBase) -> re.Pattern[str]:
    """Matches the first character of each control token, even if two overlap."""
    # Tokens may be added to a live tokenizer. Listing thousands of them takes milliseconds.
    state = (len(tokenizer), tuple(tokenizer.all_special_tokens))
    cached = _patterns.get(tokenizer)
    if cached is None or cached[0] != state:
        cached = _patterns[tokenizer] = (state, _compiled(_control_tokens(tokenizer)))
    return cached[1]


def _control_tokens(tokenizer: PreTrainedTokenizerBase) -> set[str]:
    tokens = set(tokenizer.all_special_tokens)
    normalizer = _normalizer(tokenizer)
    for token in tokenizer.added_tokens_decoder.values():
        if token.special or _BRACKETED.fullmatch(token.content):
            tokens.add(token.content)
            if token.normalized and normalizer is not None:  # it is matched in normalized text
                tokens.add(normalizer.normalize_str(token.content))
    return {token for token in tokens if token.strip()}


def _compiled(tokens: set[str]) -> re.Pattern[str]:
    ends: dict[str, list[str]] = {}
    for token in sorted(tokens):
        ends.setdefault(token[0], []).append(re.escape(token[1:]))
    return re.compile("|".join(f"{re.escape(c)}(?={'|'.join(tails)})" for c, tails in ends.items()) or "(?!)")


def _normalizer(tokenizer: PreTrainedTokenizerBase) -> Any:
    return getattr(getattr(tokenizer, "backend_tokenizer", None), "normalizer", None)
