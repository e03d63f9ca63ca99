"""Preferences made before, by people or in another run, from a file that anyone can write.

    preferences = read_preferences("choices.jsonl", prompts)

One JSON object a line: `prompt_id` (of the run's prompts) or `prompt` (its text), `chosen`, `rejected`, and if it is
known how sure the choice is, `probability` (from one half to 1; 1 where it is left out).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from humor_env.errors import InvalidOption
from humor_env.shared.user_path import user_path
from humor_env.types import Preference, Prompt

KEYS = ("prompt_id", "prompt", "chosen", "rejected", "probability", "source")


def read_preferences(path: str | Path, prompts: Iterable[Prompt]) -> list[Preference]:
    """All of the file; a line that is wrong is an error that names it."""
    path = user_path(path)
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as problem:
        raise InvalidOption(f"The preferences '{path}' cannot be read: {problem}.") from None
    known = {p.id: p for p in prompts}
    preferences = [_read(line, f"{path}, line {n}", known) for n, line in enumerate(lines, start=1) if line.strip()]
    if not preferences:
        raise InvalidOption(f"The preferences '{path}' hold no line.")
    return preferences


def _read(line: str, where: str, known: dict[str, Prompt]) -> Preference:
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
        raise InvalidOption(f"{where}: 'probability' lies between 0.5 and 1, found {sure!r}.")
    return Preference(
        _prompt(row, where, known), row["chosen"], row["rejected"], float(sure), str(row.get("source", "file"))
    )


def _prompt(row: dict[str, Any], where: str, known: dict[str, Prompt]) -> Prompt:
    name, text = row.get("prompt_id"), row.get("prompt")
    if name is not None:
        if name not in known:
            raise InvalidOption(f"{where}: the run's prompts have no '{name}'. Give the prompt's text as 'prompt'.")
        return known[name]
    if not isinstance(text, str) or not text.strip():
        raise InvalidOption(f"{where}: needs 'prompt_id' or 'prompt', found neither.")
    return Prompt(hashlib.blake2b(text.encode("utf-8", "replace"), digest_size=6).hexdigest(), text)
