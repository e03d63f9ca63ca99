"""Export a run's lines as JSONL, a Hugging Face dataset or a Minari dataset.

    export(Path("runs/first"), Path("lines.jsonl"), form="jsonl")

A row is a line of the student with its judgement: the lines it learned from, or with `stage` those of an evaluation.
Lines that were not judged have no score; they are left out of Minari, whose episodes need a reward.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from humor_env.errors import InvalidOption
from humor_env.exports import to_minari
from humor_env.shared.json_lines import read_lines
from humor_env.types import Demonstration, Prompt

FORMS = ("jsonl", "dataset", "minari")
COLUMNS = ("seed", "step", "prompt_id", "prompt", "text", "author", "stop_reason", "critic", "score", "reason", "error")


def rows_of(run: Path, stage: str | None = None) -> list[dict[str, Any]]:
    """The lines of all seeds of a run (or of one seed's folder), in the order they were written."""
    name = "jokes.jsonl" if stage is None else f"evaluation-{stage}.jsonl"
    seeds = sorted(run.glob("seed-*"), key=_number) or [run]
    rows = []
    for folder in seeds:
        path = folder / name
        if not path.is_file():
            continue
        for line in read_lines(path):
            try:
                record = json.loads(line)
            except ValueError:  # torn by a kill
                continue
            rows.append({"seed": _number(folder), **record})
    if not rows:
        stages = sorted({p.stem.removeprefix("evaluation-") for s in seeds for p in s.glob("evaluation-*.jsonl")})
        hint = f" It was measured at the stages {', '.join(stages)}: give --stage." if stages else ""
        raise InvalidOption(f"'{run}' has no {name} with lines: expected the folder of a run or of a seed.{hint}")
    return rows


def _number(folder: Path) -> int:
    number = folder.name.removeprefix("seed-")
    return int(number) if number.isdecimal() else 0


def export(run: Path, out: Path, *, form: str, stage: str | None = None) -> int:
    """Write the lines to `out` (for Minari its last two parts are the name: `humor/lines-v0`); return their number."""
    if form not in FORMS:
        raise InvalidOption(f"There is no format '{form}'. Known: {', '.join(FORMS)}.")
    if form != "minari" and out.exists():
        raise InvalidOption(f"'{out}' already exists: give another path, or remove it.")
    rows = rows_of(run, stage)
    if form == "jsonl":
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    elif form == "dataset":
        from datasets import Dataset, Features, Value

        kinds = {"seed": "int64", "step": "int64", "score": "float64"}
        columns = {name: [_storable(row.get(name)) for row in rows] for name in COLUMNS}
        features = Features({name: Value(kinds.get(name, "string")) for name in COLUMNS})
        Dataset.from_dict(columns, features=features).save_to_disk(str(out))
    else:
        rows = [row for row in rows if row["score"] is not None]
        lines = [
            Demonstration(Prompt(row["prompt_id"], row["prompt"]), row["text"], row["author"], score=row["score"])
            for row in rows
        ]
        to_minari(lines, str(out))
    return len(rows)


def _storable(value: Any) -> Any:
    """Replace lone surrogates, which a student may write but UTF-8 cannot hold."""
    return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace") if isinstance(value, str) else value
