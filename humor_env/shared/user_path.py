"""A path as a user writes it in an option or a spec, which no shell has read: ~ is the home.

user_path("~/verdicts.sqlite")      # Path("/home/me/verdicts.sqlite")
"""

from __future__ import annotations

import os
from pathlib import Path


def user_path(path: str | os.PathLike[str]) -> Path:
    """The path; where there is no such home ("~backup.jsonl"), it is a name like any other."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        return Path(path)
