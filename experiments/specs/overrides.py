"""Applies `--set KEY=VALUE` to a spec before it is checked, and records where each value comes from.

    source = Source("mine.toml", key_lines(text))
    override(data, "learner.steps=5", source)             # data["learner"]["steps"] = 5
    source.where(("learner", "steps"))                    # "--set learner.steps=5"; else "mine.toml, line 7"

A missing key is added: whether it is valid is checked with the rest of the spec.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from humor_env.errors import InvalidOption
from humor_env.experiments.options import read_override
from humor_env.experiments.specs.learner_settings import SHORT_FORMS

KeyPath = tuple[str | int, ...]
"""The path of a value: the keys that lead to it, with a number for an entry of a list."""


@dataclass(frozen=True)
class Source:
    """Where a value came from, for errors: a line of the file, or an override."""

    file: str
    lines: Mapping[KeyPath, int]
    overrides: dict[KeyPath, str] = field(default_factory=dict)

    def where(self, path: KeyPath) -> str:
        """The place in the file or command that set `path`, or its nearest parent."""
        paths = [path, *((*path[:-1], short) for short, full in SHORT_FORMS.items() if path[-1:] == (full,))]
        ways = [way[:end] for end in range(len(path), 0, -1) for way in paths]
        for way in ways:
            if way in self.overrides:
                return self.overrides[way]
        return next((f"{self.file}, line {self.lines[way]}" for way in ways if way in self.lines), self.file)


def override(data: dict[str, Any], pair: str, source: Source) -> None:
    """Set one dotted key."""
    dotted, value = read_override(pair, "--set")
    parts = dotted.split(".")
    if not all(parts):
        raise InvalidOption(f"--set {pair}: a part of the dotted key is empty.")
    table: Any = data
    path: KeyPath = ()
    for part in parts[:-1]:
        table, path = _enter(table, part, path, pair)
    key: str | int = parts[-1]
    if isinstance(table, list):
        _, (*_, key) = _enter(table, str(key), path, pair)
    elif not isinstance(table, dict):
        raise InvalidOption(f"--set {pair}: '{'.'.join(map(str, path))}' is not a table, so it has no '{key}'.")
    other = {**SHORT_FORMS, **{full: short for short, full in SHORT_FORMS.items()}}.get(str(key))
    if other is not None and other in table and path in (("learner",), ("teacher", "imitation")):
        if (*path, other) in source.overrides:
            raise InvalidOption(f"--set {pair} and {source.overrides[(*path, other)]} are one setting: give it once.")
        del table[other]  # the file's spelling of the same setting
    table[key] = value
    source.overrides[(*path, key)] = f"--set {pair}"


def _enter(table: Any, part: str, path: KeyPath, pair: str) -> tuple[Any, KeyPath]:
    if isinstance(table, list):
        if not part.isdecimal() or int(part) >= len(table):
            numbers = ", ".join(map(str, range(len(table)))) or "none"
            raise InvalidOption(
                f"--set {pair}: '{'.'.join(map(str, path))}' is a list, whose entries are numbered: {numbers}; found "
                f"'{part}'."
            )
        return table[int(part)], (*path, int(part))
    if not isinstance(table, dict):
        raise InvalidOption(f"--set {pair}: '{'.'.join(map(str, path))}' is not a table, so it has no '{part}'.")
    return table.setdefault(part, {}), (*path, part)
