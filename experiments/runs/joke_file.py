"""Read a file of jokes, JSON Lines or CSV, with the field names that people and other commands use.

[line] = read_jokes(Path("jokes.jsonl"))     # {"prompt": "The meeting was slow.", "text": "Glaciers overtook it."}
line.joke, line.score                        # the joke, and its earlier score, if any
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from humor_env.errors import PromptError
from humor_env.shared.json_lines import NOT_JSON, read_lines
from humor_env.sources.prompt_files import is_table
from humor_env.sources.prompt_files import rows as table_rows
from humor_env.types import Joke, Prompt

TEXT_FIELDS = ("text", "joke", "line", "completion")


@dataclass(frozen=True, slots=True)
class Line:
    """One line of a file of jokes: its number from 1, the record as it was read, the joke, and an older score."""

    number: int
    record: Mapping[str, Any]
    joke: Joke
    score: float | None


def read_jokes(path: Path) -> list[Line]:
    """The jokes of a JSONL or CSV file, or of the `jokes.jsonl` in a run's folder."""
    if path.is_dir():
        path = path / "jokes.jsonl"
    if not path.is_file():
        raise PromptError(f"There is no file '{path}'. Give a JSONL file, or a run's folder with a jokes.jsonl in it.")
    try:
        if is_table(path):
            lines = [joke_of(f"{path}, {place}", n, row) for n, (place, _, row) in enumerate(table_rows(str(path)), 1)]
        else:
            lines = [_line(path, number, row) for number, row in enumerate(read_lines(path), 1) if row.strip()]
    except UnicodeDecodeError as problem:
        byte = problem.object[problem.start]
        raise PromptError(f"'{path}' is not UTF-8 (byte 0x{byte:02x}). Save it as UTF-8.") from None
    if not lines:
        raise PromptError(f"'{path}' holds no jokes.")
    return lines


def _line(path: Path, number: int, row: str) -> Line:
    try:
        record = json.loads(row)
    except NOT_JSON as problem:
        raise PromptError(f"{path}, line {number}: not JSON ({problem}).") from None
    return joke_of(f"{path}, line {number}", number, record)


def joke_of(place: str, number: int, record: Any) -> Line:
    field = next((f for f in TEXT_FIELDS if isinstance(record, dict) and isinstance(record.get(f), str)), None)
    prompt_fields = record.get("prompt") if isinstance(record, dict) else None
    if field is None or not isinstance(prompt_fields, str | dict):
        raise PromptError(
            f"{place}: expected an object with 'prompt' (a text, or an object with 'id' and 'text') and 'text', or a "
            f"table with columns of these names; found {str(record)[:80]!r}."
        )
    shape: dict[str, Any] = {"text": prompt_fields} if isinstance(prompt_fields, str) else prompt_fields
    text = shape.get("text")
    if not isinstance(text, str):
        raise PromptError(f"{place}: the prompt has no 'text'; found {prompt_fields!r}.")
    extra = shape.get("extra") or {}
    if not isinstance(extra, dict):
        raise PromptError(f"{place}: the prompt's 'extra' is an object; found {extra!r}.")
    prompt = Prompt(
        str(shape.get("id") or record.get("prompt_id") or text),
        text,
        str(shape.get("task") or record.get("task") or "paraphrase"),
        str(shape.get("split") or record.get("split") or "train"),
        extra,
    )
    joke = Joke(prompt, record[field], str(record.get("author") or "student"), record.get("stop_reason"))
    older = record.get("judgement", {}) if isinstance(record.get("judgement"), dict) else {}
    return Line(number, record, joke, score_of(record.get("score", older.get("score"))))


def score_of(value: Any) -> float | None:
    """The score as a number; in a table it is a string."""
    try:
        score = float(value) if isinstance(value, int | float | str) else math.nan
    except (ValueError, OverflowError):
        return None
    return score if math.isfinite(score) else None
