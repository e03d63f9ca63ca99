"""Reads the files of a run's folder as plain data for a report; irregularities become notes or errors.

    run = load_run(Path("runs/pocket-quickstart"))
    run.seeds[0].metrics[-1]["reward/mean"], run.seeds[0].stages["ppo"][0].text

A last line that a killed run left incomplete is skipped and noted; any other damaged line is an error that names file
and line. Nothing is computed here: see `report_numbers.py`. The folder may be that of a run, of one seed, or a bare log
of a learner (metrics.jsonl alone).
"""

from __future__ import annotations

import json
import math
import tomllib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

from humor_env.errors import CheckpointError, InvalidOption

REFERENCES = ("base", "imitation", "teacher")  # stages that are not the learner's outcome
Row = Mapping[str, float]


@dataclass(frozen=True)
class Judged:
    """One line with its judgement; `others` are scores that further critics gave it later."""

    prompt_id: str
    prompt: str
    text: str
    critic: str
    score: float | None
    parts: Mapping[str, float]
    reason: str
    step: int = 0
    stop_reason: str | None = None
    error: str = ""
    others: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class SeedData:
    """One seed: its log step by step, and its held-out lines by stage."""

    name: str
    folder: Path
    metrics: Sequence[Row]
    timings: Sequence[Row]
    imitation: Sequence[Row]
    stages: Mapping[str, Sequence[Judged]]
    training: Sequence[Judged]
    numbers: Mapping[str, Mapping[str, float | None]]
    seconds: Mapping[str, float]
    drift: Sequence[Mapping[str, Any]] = ()
    stopped: bool = False
    why: str = ""

    @property
    def trained(self) -> str | None:
        """The learner's stage, if it was measured."""
        return next((n for n in [*self.stages, *self.numbers] if n not in REFERENCES), None)


def lines_by_prompt(lines: Sequence[Judged]) -> dict[str, list[Judged]]:
    """A stage's lines by prompt: `eval.lines` for each, or as many as the teacher has."""
    by_prompt: dict[str, list[Judged]] = {}
    for line in lines:
        by_prompt.setdefault(line.prompt_id, []).append(line)
    return by_prompt


def first_lines(lines: Sequence[Judged]) -> dict[str, Judged]:
    """The line that represents each prompt: its first, so that none is picked."""
    return {prompt: prompt_lines[0] for prompt, prompt_lines in lines_by_prompt(lines).items()}


def begun_from(stage: str, stages: Collection[str]) -> str:
    """The stage that a learner's result is compared with: imitation, if there is one."""
    return "imitation" if stage != "imitation" and "imitation" in stages else "base"


@dataclass(frozen=True)
class RunData:
    name: str
    folder: Path
    spec: Mapping[str, Any]
    record: Mapping[str, Any]
    seeds: Sequence[SeedData]
    notes: Sequence[str]
    spec_text: str = ""

    @property
    def learner(self) -> str:
        name = self.spec.get("learner", {}).get("name")
        return str(name or next((s.trained for s in self.seeds if s.trained), "student"))


def load_run(folder: Path) -> RunData:
    """The run in `folder`; an error says why it cannot be reported on."""
    folder = Path(folder)
    if not folder.exists():
        raise InvalidOption(
            f"There is no folder '{folder}'. Give a run's folder: `humor-env train` prints it at its end."
        )
    if not folder.is_dir():
        raise InvalidOption(f"'{folder}' is a file. Give the folder of a run, the one that holds its spec.toml.")
    whole = folder
    seed_folders = sorted((p for p in folder.glob("seed-*") if p.is_dir()), key=_seed_number)
    if not seed_folders:
        seed_folders = [folder]
        if folder.name.startswith("seed-") and (folder.parent / "spec.toml").is_file():
            whole = folder.parent
    notes: list[str] = []
    seeds = [_load_seed(path, notes) for path in seed_folders]
    seeds = [s for s in seeds if s.metrics or s.imitation or s.stages]
    if not seeds:
        raise InvalidOption(
            f"'{folder}' holds no metrics.jsonl and no evaluation-*.jsonl, neither itself nor in a seed-… folder, so "
            "there is nothing to report. Give a run's folder; a run that has only begun has nothing to show yet."
        )
    spec_text = _text(whole / "spec.toml")
    name = folder.name if whole == folder else f"{whole.name}/{folder.name}"
    return RunData(
        name=name or str(folder.resolve().name),
        folder=folder,
        spec=_toml(spec_text, whole / "spec.toml"),
        record=_record(whole / "run.json"),
        seeds=seeds,
        notes=notes,
        spec_text=spec_text,
    )


def _seed_number(path: Path) -> tuple[int, str]:
    number = path.name.removeprefix("seed-")
    return (int(number) if number.isdigit() else 10**9, path.name)


def _load_seed(folder: Path, notes: list[str]) -> SeedData:
    results = _record(folder / "results.json")
    metrics = [_finite(r) for r in _lines(folder / "metrics.jsonl", notes)]
    learning = [r for r in metrics if not _of_imitation(r)]
    notes += _missing_steps(learning, f"metrics.jsonl ({folder.name})")
    # A log shared by both phases (the demo's) has the warm start's rows first; a run keeps them in a folder.
    imitation = [r for r in metrics if _of_imitation(r)]
    imitation += [_finite(r) for r in _lines(folder / "imitation" / "metrics.jsonl", notes)]
    stages = {}
    for path in sorted(folder.glob("evaluation-*.jsonl")):
        if "." not in path.stem:
            rows = _judged(path, notes)
            if rows:
                stages[path.stem.removeprefix("evaluation-")] = rows
    numbers = {k: v for k, v in results.get("stages", {}).items() if isinstance(v, Mapping)}
    return SeedData(
        name=folder.name,
        folder=folder,
        metrics=learning,
        timings=[r for r in map(_finite, _lines(folder / "timings.jsonl", notes)) if "seconds/step" in r],
        imitation=imitation,
        stages=_in_order(stages),
        training=_judged(folder / "jokes.jsonl", notes),
        numbers=_in_order(numbers),
        seconds={k: float(v) for k, v in results.get("seconds", {}).items() if isinstance(v, int | float)},
        drift=_lines(folder / "drift.jsonl", notes),
        stopped=bool(results.get("stopped", False)),
        why=str(results.get("why") or ""),
    )


def _missing_steps(rows: Sequence[Row], name: str) -> list[str]:
    """A note on gaps in a log. Most learners log each step, TRL's every few: the smallest distance is the usual one."""
    steps = sorted({int(row["step"]) for row in rows if "step" in row})
    gaps = list(pairwise(steps))
    usual = min((after - before for before, after in gaps), default=0)
    holes = [(before + 1, after - 1) for before, after in gaps if after - before > usual]
    missing = [f"{first}" if first == last else f"{first} to {last}" for first, last in holes]
    if not missing:
        return []
    others = f" and {len(missing) - 3} other ranges" if len(missing) > 3 else ""
    return [f"{name} lacks steps: {', '.join(missing[:3])}{others}. Curves and totals are without them."]


def _of_imitation(row: Row) -> bool:
    return any(name.startswith("sft/") for name in row)


def _in_order(stages: Mapping[str, Any]) -> dict[str, Any]:
    """The stages in order: base, imitation, the learner's, and the teacher."""
    order = {"base": 0, "imitation": 1, "teacher": 3}
    return {name: stages[name] for name in sorted(stages, key=lambda n: (order.get(n, 2), n))}


def _judged(path: Path, notes: list[str]) -> list[Judged]:
    rows = _lines(path, notes)
    others: dict[tuple[str, str, int], dict[str, float]] = {}
    # Files that `humor-env rescore` writes next to this one: further critics' scores of the same lines.
    for rescored in sorted(path.parent.glob(f"{path.stem}.*.jsonl")):
        for row in _lines(rescored, notes):
            verdict = row.get("judgement")
            score = verdict.get("score") if isinstance(verdict, Mapping) else None
            if isinstance(score, int | float):
                key = (str(row.get("prompt_id")), str(row.get("text")), int(row.get("step") or 0))
                others.setdefault(key, {})[str(row.get("critic", rescored.stem))] = float(score)
    lines = []
    for number, row in enumerate(rows, 1):
        try:
            line_judged = Judged(
                prompt_id=str(row.get("prompt_id", row["prompt"])),
                prompt=str(row["prompt"]),
                text=str(row["text"]),
                critic=str(row.get("critic", "")),
                score=None if row.get("score") is None else float(row["score"]),
                parts={str(k): float(v) for k, v in (row.get("parts") or {}).items()},
                reason=str(row.get("reason") or row.get("error") or ""),
                step=int(row.get("step") or 0),
                stop_reason=row.get("stop_reason"),
                error=str(row.get("error") or ""),
            )
        except (KeyError, TypeError, ValueError, AttributeError) as problem:
            raise CheckpointError(
                f"Record {number} of '{path}' is not a judged line ({problem!r}): 'prompt', 'text' and 'score' were "
                "expected. Remove that line, or repeat the run."
            ) from None
        more = others.get((line_judged.prompt_id, line_judged.text, line_judged.step))
        lines.append(line_judged if not more else Judged(**{**_fields(line_judged), "others": more}))
    return lines


def _fields(judged: Judged) -> dict[str, Any]:
    return {name: getattr(judged, name) for name in Judged.__dataclass_fields__}


def _lines(path: Path, notes: list[str]) -> list[dict[str, Any]]:
    """The objects of a JSON-lines file; none if there is no file."""
    try:
        content = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return []
    rows = []
    lines = content.split(b"\n")
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            if not isinstance(row, dict):
                raise ValueError("it is not an object")
        except ValueError as problem:
            if number == len(lines):
                notes.append(f"The last line of {path.name} ({path.parent.name}) is incomplete and is left out.")
                continue
            raise CheckpointError(
                f"Line {number} of '{path}' is damaged ({problem}). Remove that line, or continue the run with "
                "--resume, which rewrites the file up to its last checkpoint."
            ) from None
        rows.append(row)
    return rows


def _finite(row: Mapping[str, Any]) -> dict[str, float]:
    return {
        str(k): float(v)
        for k, v in row.items()
        if isinstance(v, int | float) and not isinstance(v, bool) and math.isfinite(v)
    }


def _record(path: Path) -> dict[str, Any]:
    text = _text(path)
    if not text:
        return {}
    try:
        record = json.loads(text)
    except ValueError as problem:
        raise CheckpointError(f"'{path}' is damaged ({problem}). Resume or repeat the run to rewrite it.") from None
    return record if isinstance(record, dict) else {}


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (FileNotFoundError, NotADirectoryError):
        return ""
    except UnicodeDecodeError as problem:
        raise CheckpointError(f"'{path}' is not UTF-8 text ({problem}).") from None


def _toml(text: str, path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as problem:
        raise CheckpointError(f"'{path}' is not TOML ({problem}). Restore the run's own spec.") from None
