"""The output of `humor-env judge`: a JSON line for each joke, with its judgement and the critic's options.

    resume(lines, output, "scorer", asked_of("scorer", {"client": "anthropic"}))   # scores by line number, or a refusal

A row records the critic and a digest of each option that can change a score, so that an output is never mistaken for
the answer to another question, and reveals no address or path.
"""

from __future__ import annotations

import csv
import dataclasses
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from humor_env.errors import InvalidOption, PromptError
from humor_env.experiments.options import parameters
from humor_env.experiments.runs.joke_file import TEXT_FIELDS, Line, joke_of, score_of
from humor_env.llm.factory import what_is_asked
from humor_env.registry import critics
from humor_env.shared.json_lines import NOT_JSON, read_lines
from humor_env.shared.spreadsheet import no_formula
from humor_env.sources.prompt_files import is_table
from humor_env.types import Joke, Judgement

Asked = Mapping[str, Any]

_LOGIN = re.compile(r"(?<=://)[^/@\s]*@")


def asked_of(name: str, options: Mapping[str, Any]) -> Asked:
    """The record of a critic and its options that each row keeps, with a digest per option. An option at its default is
    left out, and a file counts by its content."""
    defaults = {key: parameter.default for key, parameter in parameters(critics, name).items()}
    non_defaults = {k: v for k, v in what_is_asked(options).items() if not (k in defaults and _same(defaults[k], v))}
    return {"critic": name, "options": {key: _digest(value) for key, value in sorted(non_defaults.items())}}


def _same(default: Any, value: Any) -> bool:
    return type(default) is type(value) and default == value


def _digest(value: Any) -> str:
    text = json.dumps(_essence(value), sort_keys=True, default=str)
    return hashlib.blake2b(text.encode(), digest_size=6).hexdigest()


def _essence(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _essence(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_essence(inner) for inner in value]
    if not isinstance(value, str):
        return value
    try:
        return {"file": hashlib.blake2b(Path(value).read_bytes()).hexdigest()}
    except (OSError, ValueError):  # nearly always: it is no file's name
        return _LOGIN.sub("", value)


def changed_options(before: Asked, now: Asked) -> list[str]:
    """The names of the options that differ."""
    old, new = before.get("options"), now["options"]
    # An earlier version kept a table with nothing but such options, as an empty one.
    old = {key: digest for key, digest in old.items() if digest != _digest({})} if isinstance(old, Mapping) else {}
    return sorted(key for key in {*old, *new} if old.get(key) != new.get(key))


def kept_rows(output: Path) -> Path:
    """The file to which judgements are appended; a table cannot be extended and resumed as safely."""
    return output.with_name(output.name + ".jsonl") if is_table(output) else output


def judged_row(line: Line, judgement: Judgement, name: str, asked: Asked | None) -> str:
    record = dict(line.record)
    record.pop("asked", None)
    if "judgement" in record:
        record["before"] = record.pop("judgement")
    if record.get("line") == line.joke.text:
        record["text"] = line.joke.text  # it stood where the number goes
    record["line"], record["critic"] = line.number, name
    if asked is not None:
        record["asked"] = asked
    record["judgement"] = dataclasses.asdict(judgement)
    return json.dumps(record)


def resume(lines: Sequence[Line], output: Path, name: str, asked: Asked | None) -> tuple[dict[int, float | None], int]:
    """The scores by line number that the output already has, and how many of its lines now have another prompt. Those,
    failed lines and a torn last line are removed from it; a file that holds anything else is refused."""
    if not output.is_file():
        return {}, 0
    by_number = {line.number: line for line in lines}
    scores: dict[int, float | None] = {}
    changed: set[int] = set()
    rows: list[str] = []
    stored_rows = read_lines(output, errors="replace")
    for place, row in enumerate(stored_rows, start=1):
        try:
            record = json.loads(row)
        except NOT_JSON:
            if place == len(stored_rows) and row.startswith("{"):
                continue  # the line that was being written when the process was killed
            record = None
        if not _is_judged(record):
            raise InvalidOption(
                f"'{output}' is there already and holds no judgements (line {place}). Give another --output, or remove "
                "it."
            )
        line = by_number.get(record["line"])
        text = next((record[f] for f in TEXT_FIELDS if isinstance(record.get(f), str)), None)
        problem = _not_the_same(record, text, line, name, asked)
        if problem or line is None:
            raise InvalidOption(f"'{output}' holds judgements {problem}. Give another --output, or remove it.")
        score = score_of(record["judgement"]["score"])
        if _joke_in(record) != _plain(line.joke):
            changed.add(line.number)
        elif score is not None and line.number not in scores:
            scores[line.number] = score
            rows.append(row)
    _replace(output, rows)
    return scores, len(changed - scores.keys())


def _not_the_same(record: Any, text: str | None, line: Line | None, name: str, asked: Asked | None) -> str:
    """How a row differs from what is asked now; empty if it can be kept."""
    if line is None:
        return f"of another file: it has a line {record['line']}"
    if text != line.joke.text:
        return f"of another file: line {line.number} was {str(text)[:40]!r} there and is {line.joke.text[:40]!r} here"
    before = record.get("asked") if isinstance(record.get("asked"), Mapping) else None
    its_name, now = record.get("critic"), name
    if its_name == name and before and asked:
        its_name, now = before.get("critic"), asked["critic"]
    if its_name != now:
        return f"of another critic ({its_name!r}, not {now!r})"
    if before and asked and (options := changed_options(before, asked)):
        return f"asked with other options ({', '.join(options)})"
    return ""


def _joke_in(record: Any) -> str | None:
    try:
        return _plain(joke_of("", 0, record).joke)
    except PromptError:
        return None


def _plain(joke: Joke) -> str:
    """What a critic is shown, as a text, in which NaN equals itself."""
    return json.dumps(dataclasses.asdict(joke), sort_keys=True)


def _is_judged(record: Any) -> bool:
    """Whether this command could have written this record: a score out of range or of another type is refused."""
    judgement = record.get("judgement") if isinstance(record, dict) else None
    if not isinstance(judgement, dict) or "score" not in judgement or type(record.get("line")) is not int:
        return False
    score = judgement["score"]
    return score is None or (type(score) in (int, float) and 0 <= score <= 1)


def sort_rows(output: Path) -> None:
    """Restore the order of the source: lines that failed at first were added later."""
    _replace(output, sorted(read_lines(output), key=lambda row: int(json.loads(row)["line"])))


def _replace(path: Path, rows: Sequence[str]) -> None:
    beside = path.with_name(path.name + ".new")
    beside.write_text("".join(row + "\n" for row in rows), encoding="utf-8")
    beside.replace(path)


def write_table(rows_file: Path, output: Path) -> None:
    """The judgements as CSV, for spreadsheets: the columns of the source, then critic, score, reason and error, without
    formulas."""
    records = [json.loads(row) for row in read_lines(rows_file)]
    ours = ("critic", "score", "reason", "error")
    hidden = (*ours, "line", "asked", "judgement", "before")
    columns = dict.fromkeys(name for record in records for name in record if name not in hidden)
    beside = output.with_name(output.name + ".new")
    # With the mark by which spreadsheets know UTF-8.
    with beside.open("w", encoding="utf-8-sig", newline="") as file:
        table = csv.writer(file)
        table.writerow([_cell(name) for name in (*columns, *ours)])
        for record in records:
            verdict = {"critic": record["critic"], **{name: record["judgement"].get(name) for name in ours[1:]}}
            table.writerow([_cell(record.get(name)) for name in columns] + [_cell(verdict[name]) for name in ours])
    beside.replace(output)


def _cell(value: Any) -> Any:
    return no_formula(json.dumps(value) if isinstance(value, dict | list) else value)
