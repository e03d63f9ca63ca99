"""Reads preferences, from people or another run, from a JSONL file.

    preferences = read_preferences("choices.jsonl", prompts)

Each line is a JSON object: `prompt_id` (of the run's prompts) or `prompt` (its text), `chosen`, `rejected`, and
optionally `probability`, the certainty of the choice (from one half to 1; default 1).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from humor_env.errors import InvalidOption
from humor_env.shared.json_lines import read_lines
from humor_env.shared.user_path import user_path
from humor_env.types import Preference, Prompt

KEYS = ("prompt_id", "prompt", "chosen", "rejected", "probability", "source")


def read_preferences(path: str | Path, prompts: Iterable[Prompt]) -> list[Preference]:
    """All preferences of the file; an error names the line that is wrong."""
    path = user_path(path)
    try:
        lines = read_lines(path)
    except (OSError, UnicodeDecodeError) as problem:
        raise InvalidOption(f"The preferences '{path}' cannot be read: {problem}.") from None
    by_id = {p.id: p for p in prompts}
    preferences = [_read(line, f"{path}, line {n}", by_id) for n, line in enumerate(lines, start=1) if line.strip()]
    if not preferences:
        raise InvalidOption(f"The preferences file '{path}' is empty.")
    return preferences


def _read(line: str, where: str, by_id: dict[str, Prompt]) -> Preference:
    try:
        row: Any = json.loads(line)
    except ValueError:
        raise InvalidOption(f"{where} is not JSON.") from None
    if not isinstance(row, dict) or set(row) - set(KEYS):
        raise InvalidOption(f"{where}: expected an object with the keys {', '.join(KEYS)}; found {line[:80]}.")
    for key in ("chosen", "rejected"):
        if not isinstance(row.get(key), str) or not row[key].strip():
            raise InvalidOption(f"{where}: '{key}' is the text of a line, found {row.get(key)!r}.")
    sure = row.get("probability", 1.0)
    if isinstance(sure, bool) or not isinstance(sure, (int, float)) or not 0.5 <= sure <= 1:
        raise InvalidOption(f"{where}: 'probability' must be between 0.5 and 1, found {sure!r}.")
    return Preference(
        _prompt(row, where, by_id), row["chosen"], row["rejected"], float(sure), str(row.get("source", "file"))
    )


def _prompt(row: dict[str, Any], where: str, by_id: dict[str, Prompt]) -> Prompt:
    name, text = row.get("prompt_id"), row.get("prompt")
    if name is not None:
        if name not in by_id:
            raise InvalidOption(f"{where}: the run's prompts have no '{name}'. Give the prompt's text as 'prompt'.")
        return by_id[name]
    if not isinstance(text, str) or not text.strip():
        raise InvalidOption(f"{where}: needs 'prompt_id' or 'prompt', found neither.")
    return Prompt(hashlib.blake2b(text.encode("utf-8", "replace"), digest_size=6).hexdigest(), text)
