"""The tokenizer of the token-level environments: prompts to ids once, ids to text at the end of an episode.

    table = TokenTable("pocket", prompts, max_tokens=48, max_prompt_tokens=None)
    table.prompt("p1")                     # the ids of a prompt
    table.decode([17, 4], max_chars=1000)

Data common to all environments with the same tokenizer and prompt set is computed once and shared.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
from gymnasium import spaces

from humor_env.errors import InvalidOption, PromptError
from humor_env.prompts import PromptSet
from humor_env.shared.framing import framed
from humor_env.shared.plain_numbers import at_least_one

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True, eq=False)
class Encoded:
    """A tokenized prompt set: row `rows[id]` of `prompts` holds `lengths[row]` ids, then padding."""

    tokenizer: PreTrainedTokenizerBase
    end: int
    padding: int
    rows: dict[str, int]
    prompts: np.ndarray  # [prompts, longest]
    lengths: np.ndarray  # [prompts]
    pieces: list[bytes] | None
    useful: np.ndarray  # [vocabulary]: whether an id can add to a text or end it; special tokens vanish in decoding


class TokenTable:
    """`width` is the size of an observation: room for the set's longest prompt and `max_tokens` more."""

    def __init__(
        self,
        tokenizer: str | PreTrainedTokenizerBase,
        prompts: PromptSet,
        max_tokens: int,
        max_prompt_tokens: int | None,
    ) -> None:
        max_tokens = at_least_one("max_tokens", max_tokens)
        if max_prompt_tokens is not None:
            max_prompt_tokens = at_least_one("max_prompt_tokens", max_prompt_tokens)
        encoded = _encode_once(tokenizer, prompts) if isinstance(tokenizer, str) else _encode(tokenizer, prompts)
        self.tokenizer, self.end, self.padding = encoded.tokenizer, encoded.end, encoded.padding
        self.row, self.prompts, self.lengths, self._pieces = (
            encoded.rows,
            encoded.prompts,
            encoded.lengths,
            encoded.pieces,
        )
        self.size, self.useful = len(self.tokenizer), encoded.useful
        self.max_tokens = max_tokens
        need = int(self.lengths.max())
        if max_prompt_tokens is not None and need > max_prompt_tokens:
            longest = prompts.prompts[int(self.lengths.argmax())].id
            raise PromptError(
                f"The prompt '{longest}' has {need} tokens, but max_prompt_tokens is {max_prompt_tokens}: raise it, or "
                "leave it out to make room for the longest prompt."
            )
        self.width = (max_prompt_tokens or need) + max_tokens

    def prompt(self, prompt_id: str) -> np.ndarray:
        row = self.row[prompt_id]
        return self.prompts[row, : self.lengths[row]]

    def decode(self, ids: list[int], max_chars: int) -> str:
        if self._pieces is not None:
            pieces = self._pieces
            text = b"".join([pieces[i] for i in ids]).decode("utf-8", "replace")
        else:
            text = str(self.tokenizer.decode(ids, skip_special_tokens=True))
        return text.strip()[:max_chars]

    def observation_space(self) -> spaces.Dict:
        return spaces.Dict(
            {
                "tokens": spaces.Box(0, self.size - 1, (self.width,), np.int64),
                "length": spaces.Discrete(self.width + 1),
            }
        )

    def blank(self, *shape: int) -> np.ndarray:
        return np.full((*shape, self.width), self.padding, dtype=np.int64)


@lru_cache(maxsize=8)
def _encode_once(tokenizer: str, prompts: PromptSet) -> Encoded:
    """Shared by the environments of a process: encoding a few thousand prompts takes a quarter of a second."""
    return _encode(load_tokenizer(tokenizer), prompts)


def _encode(tokenizer: PreTrainedTokenizerBase, prompts: PromptSet) -> Encoded:
    end, pad = tokenizer.eos_token_id, tokenizer.pad_token_id
    if not isinstance(end, int):
        raise InvalidOption(
            f"The tokenizer {_name(tokenizer.name_or_path or tokenizer)} has no end token (eos_token), so no text "
            "could end."
        )
    padding = pad if isinstance(pad, int) else end
    texts = [framed(tokenizer, prompt.text) for prompt in prompts]
    ids = tokenizer(texts, add_special_tokens=not tokenizer.chat_template)["input_ids"]
    lengths = np.array([len(prompt_ids) for prompt_ids in ids], dtype=np.int64)
    table = np.full((len(ids), int(lengths.max())), padding, dtype=np.int32)
    for row, prompt_ids in zip(table, ids, strict=True):
        row[: len(prompt_ids)] = prompt_ids
    rows = {prompt.id: i for i, prompt in enumerate(prompts)}
    special = _special_ids(tokenizer)
    useful = np.array([i == end or i not in special for i in range(len(tokenizer))])
    return Encoded(tokenizer, end, padding, rows, table, lengths, _byte_pieces(tokenizer, special), useful)


def _special_ids(tokenizer: PreTrainedTokenizerBase) -> set[int]:
    added = tokenizer.added_tokens_decoder
    return {*tokenizer.all_special_ids, *(i for i, token in added.items() if token.special)}


def load_tokenizer(what: str | PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """The bundled pocket tokenizer, any Hugging Face tokenizer by name or folder, or a live one."""
    if not isinstance(what, str):
        return what
    from transformers import AutoTokenizer

    source = what
    if what == "pocket":
        from humor_env import pocket

        source = pocket.path("causal")
    try:
        return AutoTokenizer.from_pretrained(source, trust_remote_code=False)
    except (OSError, ValueError) as problem:
        raise InvalidOption(
            f'The tokenizer {_name(what)} cannot be loaded ({problem}). Give "pocket", a name on the Hugging Face hub, '
            "a folder, or a tokenizer object."
        ) from problem


def _byte_pieces(tokenizer: PreTrainedTokenizerBase, special: set[int]) -> list[bytes] | None:
    """The bytes of each token, empty for special ones, if decoding is just joining them; else None.

    This holds for byte-level tokenizers like GPT-2's (and the pocket one), and is ten times as fast as their own
    `decode`, which would otherwise dominate a token environment's run time.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None or getattr(tokenizer, "clean_up_tokenization_spaces", False):
        return None
    if (json.loads(backend.to_str()).get("decoder") or {}).get("type") != "ByteLevel":
        return None
    letters = _byte_letters()
    added = tokenizer.added_tokens_decoder
    pieces = []
    for i, token in enumerate(tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))):
        if i in special:
            pieces.append(b"")
        elif token is None or i in added or any(letter not in letters for letter in token):
            return None
        else:
            pieces.append(bytes(letters[letter] for letter in token))
    return pieces


def _byte_letters() -> dict[str, int]:
    """From the printable letters of byte-level vocabularies to the bytes they stand for."""
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(256) if byte not in plain]
    return {chr(byte): byte for byte in plain} | {chr(256 + i): byte for i, byte in enumerate(hidden)}


def _name(tokenizer: object) -> str:
    return f"'{tokenizer}'" if isinstance(tokenizer, str) else type(tokenizer).__name__
