"""Published sets of human-written literal and humorous sentences, as prompts and teacher lines; you supply the files.

    load_prompts("isarcasm:train.En.csv")     # iSarcasmEval: a sarcastic tweet, and its author's literal rephrase
    load_prompts("flute:sarcasm_train.jsonl") # FLUTE: a premise, and the sarcastic hypothesis that contradicts it
    load_prompts("humicroedit:task-1_train.csv")    # a headline with one word in [brackets]; the line is the new word
    open_lines("flute:sarcasm_train.jsonl")   # the sarcastic sides, as a teacher buffer for the same prompts

A prompt is a literal sentence, however many lines it has, and its split depends on its hash (80 % train, 10 % dev, 10 %
test; for a headline the hash omits the brackets, so that all its edits share a split). Left out are literal sentences
of fewer than three words ("No."), which mean nothing without their tweet, lines equal to their literal sentence, and
headline edits graded below 1.2 of 3. None of this data is in the package; the publishers' licences apply.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from humor_env.errors import PromptError
from humor_env.prompts import PromptSet, comparable, split_by_hash
from humor_env.sources import prompt_files
from humor_env.types import Demonstration, Prompt


@dataclass(frozen=True, slots=True)
class _Set:
    """A file's suffix, its identifying column, the columns of both sides, and which rows count. With `is_edit`, the
    literal side marks the word that the other side replaces."""

    suffix: str
    mark: str
    literal: str
    line: str
    wanted: str
    counts: Callable[[str], bool]
    is_edit: bool = False


_SETS = {
    "isarcasm": _Set(".csv", "sarcastic", "rephrase", "tweet", "sarcastic is 1", lambda value: value == "1"),
    "flute": _Set(
        ".jsonl", "label", "premise", "hypothesis", "label is Contradiction", lambda value: value == "Contradiction"
    ),
    "humicroedit": _Set(
        ".csv", "meanGrade", "original", "edit", "meanGrade is at least 1.2", lambda v: _number(v) >= 1.2, is_edit=True
    ),
}
_FEWEST_WORDS = 3
REPLACED = re.compile(r"<([^<>]*)/>")  # how Humicroedit's files mark the replaced word


def is_pairs(what: str) -> bool:
    """Whether a name refers to a file of one of these sets, such as "flute:sarcasm_train.jsonl"."""
    return what.partition(":")[0] in _SETS and ":" in what


def file_of(what: str) -> str:
    """The path in such a name; other names are returned unchanged."""
    return what.partition(":")[2] if is_pairs(what) else what


def pair_prompts(what: str) -> PromptSet:
    """The literal sentences of a set's file, each once."""
    return PromptSet(what, {d.prompt.id: d.prompt for d in pair_lines(what)}.values())


def pair_lines(what: str) -> tuple[Demonstration, ...]:
    """The sarcastic sides of a set's file, each with its literal sentence."""
    name, _, path = what.partition(":")
    pair_set = _SETS[name]
    demonstrations: list[Demonstration] = []
    prompts: dict[str, Prompt] = {}
    for place, row in _rows(name, path):
        if not pair_set.counts(str(row.get(pair_set.mark))):
            continue
        literal, line = (_text(path, place, row, column) for column in (pair_set.literal, pair_set.line))
        prompt_text, whole = (REPLACED.sub(form, literal) if pair_set.is_edit else literal for form in (r"[\1]", r"\1"))
        if len(literal.split()) < _FEWEST_WORDS or comparable(literal) == comparable(line):
            continue
        digest = hashlib.blake2b(comparable(prompt_text).encode(), digest_size=6).hexdigest()
        prompt = prompts.setdefault(digest, Prompt(f"{name}-{digest}", prompt_text, split=split_by_hash(whole)))
        demonstrations.append(Demonstration(prompt, line, name, "its publisher's"))
    if not demonstrations:
        raise PromptError(f"{path}: no row of {name} has both sides ({pair_set.wanted}).")
    return tuple(demonstrations)


def _rows(name: str, path: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    suffix, mark = _SETS[name].suffix, _SETS[name].mark
    if not path.endswith(suffix):
        raise PromptError(f"The file of {name} is a {suffix} file, as in '{name}:train{suffix}'; found '{path}'.")
    rows = [(place, row) for place, _, row in prompt_files.rows(path)]
    # A cell may be empty in any row: such a row lacks the column.
    if rows and not any(mark in row for _, row in rows):
        raise PromptError(f"{path}, {rows[0][0]}: no column '{mark}', so this is not a file of {name}.")
    yield from rows


def _number(value: str) -> float:
    try:
        return float(value)
    except ValueError:
        return -math.inf


def _text(path: str, place: str, row: Mapping[str, Any], column: str) -> str:
    value = row.get(column)
    if not isinstance(value, str) or not value.strip():
        raise PromptError(f"{path}, {place}: '{column}' must hold a non-empty text, found {value!r}.")
    return " ".join(value.split())
