"""Paths in options and specs, in which no shell has replaced ~ by the home folder.

user_path("~/verdicts.sqlite")      # Path("/home/me/verdicts.sqlite")
"""

from __future__ import annotations

import os
from pathlib import Path


def user_path(path: str | os.PathLike[str]) -> Path:
    """The path with ~ expanded. If there is no such home ("~backup.jsonl"), it is an ordinary name."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        return Path(path)
