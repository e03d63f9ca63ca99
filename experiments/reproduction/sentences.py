"""Literal sentences from published data sets, in their published columns, sampled once.

    material = read_sentences(spec.data)            # {"train": (Prompt, ...), "dev": ..., "test": ..., "ood": ...}

A source is anything that `load_prompts` reads rows from: a JSONL or CSV file, a folder of data files, `hf:owner/name`.
EmpatheticDialogues repeats a conversation's opening sentence in each of its rows and writes commas as `_comma_`; SAMSum
holds whole conversations, one turn a line. So texts are cleaned, kept if they have the length of a sentence, and used
once: no sentence is in two splits. The sample depends only on the seed and the texts.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator

from humor_env.errors import PromptError
from humor_env.experiments.reproduction.spec import DataSpec, SourceSpec
from humor_env.shared.streams import generator, stream_seed
from humor_env.sources import prompt_files
from humor_env.types import Prompt

_SPEAKER = re.compile(r"^[^:]{1,40}:\s*")
_NOT_SAID = re.compile(r"^<[^>]*>$")  # <file_photo> and the like


def read_sentences(data: DataSpec) -> dict[str, tuple[Prompt, ...]]:
    """The sentences of each split. Held-out splits choose first, so that training cannot take their sentences."""
    used_keys: set[str] = set()
    by_split: dict[str, tuple[Prompt, ...]] = {}
    for split in ("test", "ood", "dev", "train"):
        source: SourceSpec | None = getattr(data, split)
        if source is not None:
            by_split[split] = _sample(source, split, data.seed, used_keys)
    return {split: by_split[split] for split in ("train", "dev", "test", "ood") if split in by_split}


def _sample(source: SourceSpec, split: str, seed: int, used_keys: set[str]) -> tuple[Prompt, ...]:
    by_key: dict[str, str] = {}
    rows = 0
    for conversation in _texts(source):
        rows += 1
        candidates = [t for t in conversation if source.least_words <= len(t.split()) <= source.most_words]
        candidates = [t for t in candidates if _key(t) not in used_keys and _key(t) not in by_key]
        if candidates:
            # One turn of each conversation: several would not be independent.
            chosen = candidates[stream_seed(seed, "turn", "\x1f".join(conversation)) % len(candidates)]
            by_key[_key(chosen)] = chosen
    if len(by_key) < source.count:
        raise PromptError(
            f"'{source.source}' has {len(by_key)} different sentences of {source.least_words} to {source.most_words} "
            f"words for the split '{split}' (from {rows} rows of column '{source.column}'"
            + (f" in {', '.join(source.splits)}" if source.splits else "")
            + f"); {source.count} are needed. Lower data.{split}.count, or widen least_words and most_words."
        )
    keys = sorted(by_key)
    order = generator(seed, "sentences", split).permutation(len(keys))[: source.count]
    chosen_keys = [keys[i] for i in order]
    used_keys.update(chosen_keys)
    return tuple(Prompt(f"{split}/{_digest(k)}", by_key[k], "paraphrase", split) for k in chosen_keys)


def _texts(source: SourceSpec) -> Iterator[list[str]]:
    """The texts of each row of the wanted splits: one, or the turns of a conversation."""
    reading = {k: v for k, v in (("config", source.config), ("revision", source.revision)) if v is not None}
    last = ""
    for place, split, row in prompt_files.rows(source.source, **reading):
        row_split = row.get("split") or split
        if source.splits and row_split is not None and row_split not in source.splits:
            continue
        if source.column not in row:
            raise PromptError(
                f"{source.source}, {place}: no column '{source.column}'. It has: {', '.join(map(str, row))}."
            )
        text = row[source.column]
        if not isinstance(text, str):
            raise PromptError(f"{source.source}, {place}: '{source.column}' holds {text!r}; expected a text.")
        if text == last:
            continue  # a conversation's rows are consecutive
        last = text
        if source.turns:
            yield [t for line in text.splitlines() if (t := _clean(_SPEAKER.sub("", line), source)) is not None]
        else:
            cleaned = _clean(text, source)
            yield [] if cleaned is None else [cleaned]


def _clean(text: str, source: SourceSpec) -> str | None:
    for old, new in source.replace.items():
        text = text.replace(old, new)
    text = " ".join(text.split())
    return None if not text or _NOT_SAID.match(text) else text


def _key(text: str) -> str:
    return " ".join(text.casefold().split())


def _digest(text: str) -> str:
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=6).hexdigest()
