"""Rows for prompt sets, from JSONL and CSV files and from Hugging Face datasets. A bad line is an error, never skipped.

    for place, split, row in rows("mine.csv"): ...            # ("line 2", None, {"text": "The bus was late."})
    for place, split, row in rows("hf:owner/dataset"): ...    # ("row 0 of train", "train", {...})

"hf:" takes a dataset's name on the hub, a folder of data files, or a folder that `Dataset.save_to_disk` wrote; only
data is read, never a dataset's own code.
"""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from humor_env.errors import InvalidOption, PromptError
from humor_env.shared.json_lines import NOT_JSON
from humor_env.shared.user_path import user_path

Row = tuple[str, str | None, dict[str, Any]]

_SUFFIXES = (".jsonl", ".csv")
_SAVED_MARKS = ("dataset_info.json", "dataset_dict.json", "state.json")


def is_table(path: str | os.PathLike[str]) -> bool:
    """Whether a file is CSV rather than JSON lines, by its name. Some programs write suffixes in capitals."""
    return os.fspath(path).lower().endswith(".csv")


def is_file_name(what: str) -> bool:
    """Whether a name refers to a file or folder on disk rather than to a registered prompt set."""
    return what.lower().endswith(_SUFFIXES) or (("/" in what or "\\" in what) and user_path(what).is_dir())


def rows(what: str, **reading: Any) -> Iterator[Row]:
    """(location, split implied by the location, row) for each row of a file or a dataset."""
    if what.startswith("hf:") or not what.lower().endswith(_SUFFIXES):
        return _dataset_rows(what.removeprefix("hf:"), **reading)
    if reading:
        raise InvalidOption(
            f"A prompt file takes the options text, split, task and limit; found {', '.join(sorted(reading))}."
        )
    return _csv_rows(what) if is_table(what) else _jsonl_rows(what)


def _lines(what: str) -> Iterator[tuple[int, str]]:
    """Numbered lines, decoded one by one so that an invalid UTF-8 byte is reported with its line."""
    try:
        raw = user_path(what).read_bytes()
    except OSError as problem:
        raise PromptError(f"The prompt file '{what}' cannot be read: {problem.strerror or problem}.") from None
    for number, line in enumerate(raw.removeprefix(b"\xef\xbb\xbf").split(b"\n"), start=1):
        try:
            yield number, line.decode("utf-8").removesuffix("\r")
        except UnicodeDecodeError as problem:
            raise PromptError(
                f"{what}, line {number}: not UTF-8 (byte 0x{line[problem.start]:02x} at {problem.start}). "
                "Save the file as UTF-8."
            ) from None


def _jsonl_rows(what: str) -> Iterator[Row]:
    for number, line in _lines(what):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as problem:
            raise PromptError(
                f"{what}, line {number}: not valid JSON ({problem.msg} at column {problem.colno})."
            ) from None
        except NOT_JSON as problem:  # a number with thousands of digits, endless brackets
            raise PromptError(f"{what}, line {number}: cannot be read as JSON ({problem}).") from None
        if not isinstance(row, dict):
            raise PromptError(
                f'{what}, line {number}: expected one JSON object per line, such as {{"text": "…"}}; found {line[:60]}'
            )
        yield f"line {number}", None, row


def _csv_rows(what: str) -> Iterator[Row]:
    reader = csv.DictReader((line + "\n" for _, line in _lines(what)), strict=True)
    try:
        for row in reader:
            place = f"line {reader.line_num}"
            if None in row or None in row.values():
                raise PromptError(
                    f"{what}, {place}: the header names {len(reader.fieldnames or [])} columns, this row has a "
                    'different number. Put a text with a comma in "double quotes".'
                )
            yield place, None, {key: value for key, value in row.items() if value != "" or key in ("text", "literal")}
    except csv.Error as problem:
        raise PromptError(f"{what}, line {reader.line_num}: not valid CSV ({problem}).") from None


def _dataset_rows(name: str, config: str | None = None, revision: str | None = None) -> Iterator[Row]:
    import datasets

    name = str(user_path(name)) if name.startswith("~") else name
    try:
        if any((Path(name) / mark).exists() for mark in _SAVED_MARKS):
            dataset = datasets.load_from_disk(name)
        else:
            dataset = datasets.load_dataset(name, config, revision=revision)
    except Exception as problem:  # the library raises many kinds of errors: hub, files, parsing, offline mode
        raise PromptError(
            f"The dataset '{name}' cannot be loaded ({type(problem).__name__}: {problem}). Expected the name of a "
            "dataset on the hub, or a folder of data files or one written by save_to_disk."
        ) from problem
    if isinstance(dataset, datasets.Dataset):
        # A single saved table has no splits: its rows are divided as a file's are.
        for index, row in enumerate(dataset):
            yield f"row {index}", None, dict(row)
        return
    # If "train" is the only split, the dataset is just not divided.
    divided = len(dataset) > 1
    for split, table in dataset.items():
        for index, row in enumerate(table):
            yield f"row {index} of {split}", split if divided else None, dict(row)
