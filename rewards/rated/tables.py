"""Read third-party tables (CSV, TSV, JSON and JSON lines), with errors that say what was expected.

    table = read_table(path, "hahackathon", [Column("text"), Column("score", "humor_rating", empty=True)])
    for row in table: row.place, row["text"], row.number("score")

Columns are found by any of the names that published copies use, ignoring case and punctuation.
"""

from __future__ import annotations

import csv
import io
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from humor_env.errors import RatingsError


@dataclass(frozen=True, slots=True)
class Column:
    """A column to read: our name, then its other names in published copies. If not `required` it may be missing; if
    `empty` it may be empty in some rows."""

    name: str
    others: tuple[str, ...] = ()
    required: bool = True
    empty: bool = False

    def known_as(self) -> tuple[str, ...]:
        return (self.name, *self.others)


@dataclass(frozen=True)
class Row:
    """One row: its location as text, and its values by our names."""

    place: str
    values: Mapping[str, Any]

    def __getitem__(self, name: str) -> str:
        value = self.values.get(name)
        return "" if value is None else str(value)

    def number(self, name: str) -> float:
        """The value as a finite number."""
        try:
            number = float(self[name])
        except ValueError:
            number = math.nan
        if not math.isfinite(number):
            raise RatingsError(f"{self.place}: expected a number in '{name}', found {self[name][:40]!r}.")
        return number

    def numbers(self, name: str) -> tuple[float, ...]:
        """Several numbers in one cell: a JSON list, or numbers separated by commas, semicolons or spaces."""
        value = self.values.get(name)
        if value is None or value == "":
            return ()
        parts = value if isinstance(value, list) else [p for p in re.split(r"[\s,;\[\]]+", str(value)) if p]
        try:
            numbers = tuple(float(part) for part in parts)
        except (TypeError, ValueError):
            raise RatingsError(f"{self.place}: expected numbers in '{name}', found {str(value)[:60]!r}.") from None
        if not all(map(math.isfinite, numbers)):
            raise RatingsError(f"{self.place}: expected finite numbers in '{name}', found {str(value)[:60]!r}.")
        return numbers


def read_text(path: Path, encoding: str = "utf-8") -> str:
    """The file's text. A decoding error is reported with its line."""
    try:
        raw = path.read_bytes()
    except OSError as problem:
        raise RatingsError(f"The file '{path}' cannot be read: {problem.strerror or problem}.") from None
    try:
        return raw.removeprefix(b"\xef\xbb\xbf").decode(encoding)
    except UnicodeDecodeError as problem:
        line = raw[: problem.start].count(b"\n") + 1
        raise RatingsError(
            f"{path}, line {line}: not {encoding.upper()} (byte 0x{raw[problem.start]:02x}). Give the file as it was "
            "published, or save it as UTF-8."
        ) from None


def read_table(path: Path, what: str, columns: Sequence[Column], encoding: str = "utf-8") -> list[Row]:
    """The rows of a file, by suffix: .csv, .tsv, .json (a list, or objects by id) or .jsonl."""
    text = read_text(path, encoding)
    suffix = path.suffix.lower()
    if suffix in (".json", ".jsonl", ".ndjson"):
        records = list(_json_records(path, text))
    elif suffix in (".csv", ".tsv", ".txt", ""):
        records = list(_csv_records(path, text, "\t" if suffix == ".tsv" else ","))
    else:
        raise RatingsError(f"'{path}' has the suffix '{suffix}': expected .csv, .tsv, .json or .jsonl.")
    if not records:
        raise RatingsError(f"'{path}' holds no rows; expected {describe(what, columns)}.")
    names = _match(path, what, columns, list(dict.fromkeys(key for _, record in records for key in record)))
    rows = []
    for place, record in records:
        values = {ours: record.get(theirs) for ours, theirs in names.items()}
        for column in columns:
            if column.required and not column.empty and str(values.get(column.name) or "").strip() == "":
                # 0 is a value.
                if values.get(column.name) == 0:
                    continue
                raise RatingsError(f"{path}, {place}: '{names[column.name]}' is empty.")
        rows.append(Row(f"{path}, {place}", values))
    return rows


def describe(what: str, columns: Sequence[Column]) -> str:
    """The expected form of a file, for an error message."""
    required = ", ".join("/".join(c.known_as()) for c in columns if c.required)
    optional = ", ".join("/".join(c.known_as()) for c in columns if not c.required)
    return f"a table of '{what}' with the columns {required}" + (f" and perhaps {optional}" if optional else "")


def plain(name: str) -> str:
    """A column's name, normalised for comparison."""
    return re.sub(r"[^a-z0-9]", "", name.lower())


def _match(path: Path, what: str, columns: Sequence[Column], headings: Sequence[str]) -> dict[str, str]:
    by_plain = {plain(name): name for name in reversed(headings)}
    names: dict[str, str] = {}
    missing = []
    for column in columns:
        theirs = next((by_plain[plain(n)] for n in column.known_as() if plain(n) in by_plain), None)
        if theirs is not None:
            names[column.name] = theirs
        elif column.required:
            missing.append("/".join(column.known_as()))
    if missing:
        some_headings = ", ".join(name[:30] for name in headings[:12]) or "none"
        raise RatingsError(
            f"'{path}' has no column {', '.join(missing)}. Expected {describe(what, columns)}; found the columns "
            f"{some_headings}."
        )
    return names


def _csv_records(path: Path, text: str, delimiter: str) -> Iterator[tuple[str, dict[str, Any]]]:
    csv.field_size_limit(2**24)
    # newline="" keeps all three kinds of line end; some published files use bare carriage returns.
    reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter)
    try:
        for row in reader:
            if None in row or None in row.values():
                raise RatingsError(
                    f"{path}, line {reader.line_num}: this row does not have the header's "
                    f"{len(reader.fieldnames or [])} columns. Expected the file as it was published."
                )
            yield f"line {reader.line_num}", row
    except csv.Error as problem:
        raise RatingsError(f"{path}, line {reader.line_num}: not a valid table ({problem}).") from None


def _json_records(path: Path, text: str) -> Iterator[tuple[str, dict[str, Any]]]:
    try:
        whole = json.loads(text)
    except ValueError:
        whole = None
    if isinstance(whole, dict) and whole and all(isinstance(value, dict) for value in whole.values()):
        for key, record in whole.items():
            yield f"entry '{key}'", {"id": key, **record}
        return
    if isinstance(whole, list):
        numbered = [(f"entry {i}", record) for i, record in enumerate(whole, 1)]
    else:
        numbered = []
        for number, line in enumerate(text.split("\n"), 1):
            if line.strip():
                try:
                    numbered.append((f"line {number}", json.loads(line)))
                except ValueError as problem:
                    raise RatingsError(f"{path}, line {number}: not JSON ({problem}).") from None
    for place, record in numbered:
        if not isinstance(record, dict):
            raise RatingsError(f"{path}, {place}: expected an object, found {type(record).__name__}.")
        yield place, record
