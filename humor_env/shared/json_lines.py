"""Reading files that people write: UTF-8 with or without a byte order mark, and JSON Lines split at line feeds only.

    for number, line in enumerate(read_lines("jokes.jsonl"), start=1): record = json.loads(line)

`str.splitlines` also splits at U+0085, U+2028 and U+2029, which may occur inside a JSON string. Notepad and PowerShell
write a byte order mark.
"""

from __future__ import annotations

import os
from pathlib import Path

MARK = "\ufeff"
NOT_JSON = (ValueError, RecursionError)  # what json.loads raises; the second for thousands of open brackets


def read_text(path: str | os.PathLike[str], errors: str = "strict") -> str:
    """A file's text. Raises OSError, or UnicodeDecodeError if it is not UTF-8."""
    return Path(path).read_text(encoding="utf-8-sig", errors=errors)


def read_lines(path: str | os.PathLike[str], errors: str = "strict") -> list[str]:
    """A file's lines, including empty ones."""
    return lines_of(read_text(path, errors))


def lines_of(text: str) -> list[str]:
    """The lines of a text. A line break at its end does not start another line."""
    lines = text.removeprefix(MARK).split("\n")
    return lines[:-1] if not lines[-1] else lines
