"""What the standard library's TOML reader lacks: the line of a key, dotted names for keys, and writing.

    places = key_lines(text)
    places["learner", "steps"]                # 12: the line, from 1
    dumps({"name": "first", "learner": {"steps": 5}})
    flat({"learner": {"steps": 5}})      # {"learner.steps": 5}

Arrays of tables count from 0: the second `[[critic]]` is `("critic", 1)`.
"""

from __future__ import annotations

import json
import math
import re
import tomllib
from collections.abc import Mapping
from typing import Any

Path = tuple[str | int, ...]

_PART = r"""(?:[A-Za-z0-9_-]+|"(?:[^"\\\n]|\\.)*"|'[^'\n]*')"""
_DOTTED = rf"{_PART}(?:[ \t]*\.[ \t]*{_PART})*"
_ASSIGNMENT = re.compile(rf"[ \t]*({_DOTTED})[ \t]*=")
_HEADER = re.compile(rf"[ \t]*(\[\[?)[ \t]*({_DOTTED})[ \t]*\]")
_BARE = re.compile(r"[A-Za-z0-9_-]+\Z")


def key_lines(text: str) -> dict[Path, int]:
    """The line of every header and key. Keys in an inline table have the line of the key that holds the table."""
    places: dict[Path, int] = {}
    arrays: dict[Path, int] = {}
    table: Path = ()
    for number, line in _statements(text):
        if header := _HEADER.match(line):
            path = _parts(header[2])
            if header[1] == "[[":
                outer = _counted(path[:-1], arrays)
                key = (*outer, path[-1])
                arrays[key] = arrays.get(key, -1) + 1
                table = (*key, arrays[key])
                places.setdefault(key, number)
            else:
                table = _counted(path, arrays)
            places[table] = number
        elif assignment := _ASSIGNMENT.match(line):
            places[table + _parts(assignment[1])] = number
    return places


def _statements(text: str) -> list[tuple[int, str]]:
    """The lines at which a statement starts, but not those inside a multi-line string or list."""
    statements = []
    quote, depth, place = "", 0, 0
    for number, line in enumerate(text.split("\n"), start=1):
        if not quote and depth == 0:
            statements.append((number, line))
            if header := _HEADER.match(line):
                line = line[header.end() :].lstrip("]")
        place = 0
        while place < len(line):
            rest = line[place:]
            if quote:
                if quote[0] == '"' and rest[0] == "\\":
                    place += 2
                elif rest.startswith(quote):
                    place += len(quote)
                    quote = ""
                else:
                    place += 1
                continue
            if rest[0] == "#":
                break
            mark = next((q for q in ('"""', "'''", '"', "'") if rest.startswith(q)), "")
            if mark:
                quote = mark
            elif rest[0] in "[{":
                depth += 1
            elif rest[0] in "]}":
                depth = max(0, depth - 1)
            place += len(mark) or 1
        if len(quote) == 1:
            quote = ""  # a single-line string ends with its line
    return statements


def _parts(dotted: str) -> Path:
    """The parts of a dotted key, with quotes and dots parsed by the TOML reader itself."""
    keys: list[str | int] = []
    table: Any = tomllib.loads(f"{dotted} = 0")
    while isinstance(table, dict):
        [(part, table)] = table.items()
        keys.append(part)
    return tuple(keys)


def _counted(path: Path, arrays: Mapping[Path, int]) -> Path:
    """The path with the index of the latest element after each array of tables in it."""
    counted: Path = ()
    for part in path:
        counted = (*counted, part)
        if counted in arrays:
            counted = (*counted, arrays[counted])
    return counted


def dumps(table: Mapping[str, Any]) -> str:
    """TOML text. Keys whose value is None are left out: TOML has no null."""
    lines: list[str] = []
    _write_table(table, (), lines)
    return "\n".join(lines).strip("\n") + "\n"


def _write_table(table: Mapping[str, Any], path: tuple[str, ...], lines: list[str]) -> None:
    later = {k: v for k, v in table.items() if isinstance(v, Mapping) or _is_tables(v)}
    lines += [f"{_key(k)} = {_value(v)}" for k, v in table.items() if k not in later and v is not None]
    for key, value in later.items():
        inner = (*path, key)
        name = ".".join(_key(part) for part in inner)
        for element in [value] if isinstance(value, Mapping) else value:
            lines += ["", f"[{name}]" if isinstance(value, Mapping) else f"[[{name}]]"]
            _write_table(element, inner, lines)


def _is_tables(value: object) -> bool:
    return isinstance(value, (list, tuple)) and bool(value) and all(isinstance(v, Mapping) for v in value)


def _key(key: str) -> str:
    return key if _BARE.match(key) else _text(key)


def _text(text: str) -> str:
    # JSON's escapes are valid TOML too. What does not print, such as a change of direction, is escaped as well: a spec
    # is shown on the terminal.
    return "".join(
        c if c.isprintable() or "\ud800" <= c <= "\udfff" else _escaped(c) for c in json.dumps(text, ensure_ascii=False)
    )


def _escaped(character: str) -> str:
    code = ord(character)
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def _value(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float) and not math.isfinite(value):
        return "nan" if math.isnan(value) else "inf" if value > 0 else "-inf"
    if isinstance(value, (int, float)):
        return repr(value)
    if isinstance(value, str):
        return _text(value)
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_key(k)} = {_value(v)}" for k, v in value.items() if v is not None) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(_value(v) for v in value) + "]"
    raise TypeError(f"TOML cannot represent {type(value).__name__}: {value!r}")


def flat(table: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """The values of nested tables by dotted names; the tables of a list are numbered from 0, as in --set."""
    entries: dict[str, Any] = {}
    for key, value in table.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping) and value:
            entries |= flat(value, f"{name}.")
        elif isinstance(value, list) and value and all(isinstance(each, Mapping) for each in value):
            entries |= flat({f"{i}": each for i, each in enumerate(value)}, f"{name}.")
        else:
            entries[name] = value
    return entries
