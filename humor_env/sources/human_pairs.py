"""Two sets of literal and humorous sentences that people wrote, as prompts and teacher lines; their files are yours.

    load_prompts("isarcasm:train.En.csv")     # iSarcasmEval: a sarcastic tweet, and its author's literal rephrase
    load_prompts("flute:sarcasm_train.jsonl") # FLUTE: a premise, and the sarcastic hypothesis that contradicts it
    open_lines("flute:sarcasm_train.jsonl")   # the sarcastic sides, as a teacher buffer for the same prompts

A prompt is a literal sentence, however many lines it has, and a hash of it decides its split (80 % train, 10 % dev,
10 % test). Left out are literal sentences of fewer than three words ("No."), which say nothing without the tweet
around them, and lines that are their own literal sentence. Nothing of either set is in this package; their licences
are their publishers'.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from typing import Any

from humor_env.errors import PromptError
from humor_env.prompts import PromptSet, comparable, split_by_hash
from humor_env.sources import prompt_files
from humor_env.types import Demonstration, Prompt

# How a file says that a row is sarcastic, and its columns of the literal and of the sarcastic side.
_SETS = {
    "isarcasm": ("sarcastic", "1", "rephrase", "tweet"),
    "flute": ("label", "Contradiction", "premise", "hypothesis"),
}
_FEWEST_WORDS = 3


def is_pairs(what: str) -> bool:
    """Whether a name means the file of one of these sets, such as "flute:sarcasm_train.jsonl"."""
    return what.partition(":")[0] in _SETS and ":" in what


def file_of(what: str) -> str:
    """The path in such a name; any other name as it is."""
    return what.partition(":")[2] if is_pairs(what) else what


def pair_prompts(what: str) -> PromptSet:
    """The literal sentences of a set's file, each once."""
    return PromptSet(what, {d.prompt.id: d.prompt for d in pair_lines(what)}.values())


def pair_lines(what: str) -> tuple[Demonstration, ...]:
    """The sarcastic sides of a set's file, each with its literal sentence."""
    name, _, path = what.partition(":")
    mark, sarcastic, literal_column, line_column = _SETS[name]
    demonstrations: list[Demonstration] = []
    prompts: dict[str, Prompt] = {}
    for place, row in _rows(name, path):
        if str(row.get(mark)) != sarcastic:
            continue
        literal, line = (_text(path, place, row, column) for column in (literal_column, line_column))
        if len(literal.split()) < _FEWEST_WORDS or comparable(literal) == comparable(line):
            continue
        digest = hashlib.blake2b(comparable(literal).encode(), digest_size=6).hexdigest()
        prompt = prompts.setdefault(digest, Prompt(f"{name}-{digest}", literal, split=split_by_hash(literal)))
        demonstrations.append(Demonstration(prompt, line, name, "its publisher's"))
    if not demonstrations:
        raise PromptError(f"{path}: no row of {name} has a literal and a sarcastic side ({mark} is {sarcastic}).")
    return tuple(demonstrations)


def _rows(name: str, path: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    suffix = ".csv" if name == "isarcasm" else ".jsonl"
    if not path.endswith(suffix):
        raise PromptError(f"The file of {name} is a {suffix} file, as in '{name}:train{suffix}'; found '{path}'.")
    for number, (place, _, row) in enumerate(prompt_files.rows(path)):
        if number == 0 and _SETS[name][0] not in row:
            raise PromptError(f"{path}, {place}: no column '{_SETS[name][0]}', so this is not a file of {name}.")
        yield place, row


def _text(path: str, place: str, row: Mapping[str, Any], column: str) -> str:
    value = row.get(column)
    if not isinstance(value, str) or not value.strip():
        raise PromptError(f"{path}, {place}: '{column}' must hold a text that is not empty, found {value!r}.")
    return " ".join(value.split())
