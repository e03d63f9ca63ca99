"""Reading text that people write: UTF-8 with or without a byte order mark, and JSON lines cut where JSON allows it.

    for number, line in enumerate(read_lines("jokes.jsonl"), start=1): record = json.loads(line)

`str.splitlines` also cuts at U+0085, U+2028 and U+2029, which may stand inside a JSON string. Notepad and PowerShell
put a byte order mark in front of what they save.
"""

from __future__ import annotations

import os
from pathlib import Path

MARK = "\ufeff"


def read_text(path: str | os.PathLike[str], errors: str = "strict") -> str:
    """A file's text. OSError, and UnicodeDecodeError where it is not UTF-8, are the caller's to explain."""
    return Path(path).read_text(encoding="utf-8-sig", errors=errors)


def read_lines(path: str | os.PathLike[str], errors: str = "strict") -> list[str]:
    """A file's lines, the empty ones too."""
    return lines_of(read_text(path, errors))


def lines_of(text: str) -> list[str]:
    """The lines of a text. A line break at its end begins no further line."""
    lines = text.removeprefix(MARK).split("\n")
    return lines[:-1] if not lines[-1] else lines
