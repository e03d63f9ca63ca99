"""Measured results for README and docs, from the files under docs/results; nothing where there are none."""

from __future__ import annotations

from pathlib import Path


def results_table(root: Path) -> str:
    return ""


def curve(root: Path, learner: str, page: Path) -> str:
    return ""
