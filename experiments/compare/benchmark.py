"""Learners compared on equal terms: run the cells of a benchmark, write its plain files and read them.

    bench = run_benchmark(load_benchmark_spec("pocket-learners"), Path("runs/bench"), workers=2)
    bench = load_benchmark(Path("runs/bench"))         # or docs/results/pocket-learners: the small files are enough
    bench.rows[0]["score"], bench.curves[0]["samples"]

The folder contains:

    spec.toml  run.json            the spec; versions, commit, seeds, failures
    results.jsonl  results.csv     a row for each system, feedback and seed (the first also line by line)
    curves.csv                     measured during training, on dev prompts
    RESULTS.md                     generated from these
    cells/                         each run's own files: metrics, the lines written for the held-out prompts, log
"""

from __future__ import annotations

import csv
import io
import json
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from humor_env.errors import CheckpointError, InvalidOption
from humor_env.experiments.compare.benchmark_spec import WRITTEN_AGAIN, BenchmarkSpec, load_benchmark_spec
from humor_env.experiments.compare.jobs import Outcome, Say, finished, run_cells
from humor_env.experiments.compare.trained_critics import FOLDER
from humor_env.experiments.runs.run_folder import RECORD, SPEC, commit, read_json, versions, write_json, write_text
from humor_env.shared.json_lines import read_lines
from humor_env.shared.line_file import only_writer

ROWS, TABLE, CURVES, PAGE, CELLS = "results.jsonl", "results.csv", "curves.csv", "RESULTS.md", "cells"
# Line by line, in the order of the prompts in run.json: all lines of the first prompt, then those of the second.
_ITSELF = ("wins_itself", "ties_itself", "wins_itself_held_out", "ties_itself_held_out")
BY_LINE = ("scores", "wins", "ties", "wins_held_out", "ties_held_out", "longer", *_ITSELF)
Row = dict[str, Any]


@dataclass(frozen=True)
class Benchmark:
    """The outcome: a row for each system, feedback and seed; what was measured during training; and what failed."""

    folder: Path
    spec: BenchmarkSpec
    record: Mapping[str, Any]
    rows: Sequence[Row]
    curves: Sequence[Row]

    @property
    def failures(self) -> Mapping[str, str]:
        """Why a cell has no result, by cell."""
        return dict(self.record["failures"])


def run_benchmark(
    spec: BenchmarkSpec,
    folder: Path,
    *,
    workers: int = 2,
    threads: int = 1,
    launcher: str = "local",
    say: Say = lambda _: None,
) -> Benchmark:
    """Run the cells that are missing, and write the files. The same call continues after a kill; seeds and learners may
    be added to a folder, and cells that failed are tried again."""
    if (folder / SPEC).is_file() and load_benchmark_spec(folder).name != spec.name:
        raise InvalidOption(f"'{folder}' holds another benchmark ('{load_benchmark_spec(folder).name}'): give --out.")
    cells = spec.cells(folder)
    results = [finished(cell) for cell in cells]  # refuses those of other settings, before anything is written
    if not any(results) and _rows_in(folder):
        raise InvalidOption(
            f"'{folder}' holds results without the cells that they come from, and a run would write over them: give "
            f"another --out, or delete its {ROWS}."
        )
    folder.mkdir(parents=True, exist_ok=True)
    refusal = f"A benchmark is already at work in '{folder}': wait for it, or give another --out."
    with only_writer(folder / ".lock", refusal):  # two processes in one folder would overwrite each other's files
        write_text(folder / SPEC, spec.to_toml())
        started = datetime.now(UTC).isoformat(timespec="seconds")
        outcomes = run_cells(cells, workers=workers, threads=threads, launcher=launcher, say=say)
        machine = {"workers": workers, "threads": threads, "launcher": launcher, "platform": platform.platform()}
        return _write(spec, folder, outcomes, {"started": started, **machine})


def collect(folder: Path) -> Benchmark:
    """Write the files from the cells done so far, such as those of a benchmark that is still running or was moved.
    Results that were published without their cells are only read."""
    if _rows_in(folder) and not (folder / CELLS).is_dir():
        return load_benchmark(folder)
    spec = load_benchmark_spec(folder)
    by_name = {cell.name: finished(cell) for cell in spec.cells(folder)}
    outcomes = {name: outcome or Outcome(name, error="not done yet") for name, outcome in by_name.items()}
    if _rows_in(folder) and not rows_of(outcomes)[0]:
        return load_benchmark(folder)  # there are cells, but none has a result yet
    before = read_json(folder / RECORD) if (folder / RECORD).is_file() else {}
    return _write(spec, folder, outcomes, before)


def _rows_in(folder: Path) -> bool:
    """Whether it has results."""
    return (folder / ROWS).is_file() and bool((folder / ROWS).read_text(encoding="utf-8").strip())


def _write(spec: BenchmarkSpec, folder: Path, outcomes: Mapping[str, Outcome], machine: Mapping[str, Any]) -> Benchmark:
    from humor_env.experiments.compare.benchmark_tables import results_page

    rows, curves, prompts = rows_of(outcomes)
    record = dict(machine) | {
        "benchmark": spec.name,
        "seeds": list(spec.seeds),
        "cells": len(outcomes),
        "failures": {name: o.error for name, o in outcomes.items() if o.error is not None},
        "versions": versions(),
        "commit": commit(),
        "python": platform.python_version(),
        "prompts": prompts,
        **({"trained": trained_of(outcomes)} if spec.trained else {}),
        "cpu_seconds": round(sum(o.seconds.get("cpu", 0.0) for o in outcomes.values()), 1),
    }
    write_json(folder / RECORD, record)
    write_text(folder / ROWS, "".join(json.dumps(row) + "\n" for row in rows))
    write_text(folder / TABLE, _table(rows))
    write_text(folder / CURVES, _csv(curves))
    bench = Benchmark(folder, spec, record, rows, curves)
    write_text(folder / PAGE, results_page(bench))
    return bench


def load_benchmark(folder: Path) -> Benchmark:
    """Load a benchmark from its small files alone."""
    missing = [name for name in (SPEC, RECORD, ROWS, CURVES) if not (folder / name).is_file()]
    if missing:
        raise InvalidOption(
            f"'{folder}' holds no finished benchmark (no {missing[0]} there). Run `humor-env benchmark` to its end, or "
            "`humor-env benchmark FOLDER --collect` for what is done so far."
        )
    rows = [json.loads(line) for line in read_lines(folder / ROWS)]
    with (folder / CURVES).open(encoding="utf-8", newline="") as file:
        curves = [{k: _value(k, v) for k, v in point.items() if v != ""} for point in csv.DictReader(file)]
    return Benchmark(folder, load_benchmark_spec(folder), read_json(folder / RECORD), rows, curves)


def publish(bench: Benchmark, folder: Path) -> None:
    """Copy the small files: enough for every table and chart, without the lines themselves. Paths of the user's own
    files are left out."""
    if folder.resolve() == bench.folder.resolve():
        raise InvalidOption(f"'{folder}' is the benchmark's own folder: publish to another one.")
    if not bench.rows:
        raise InvalidOption(f"The benchmark in '{bench.folder}' has no results yet, so there is nothing to publish.")
    folder.mkdir(parents=True, exist_ok=True)
    for name in (RECORD, ROWS, CURVES):
        write_text(folder / name, (bench.folder / name).read_text(encoding="utf-8"))
    write_text(folder / TABLE, _table(bench.rows))
    elsewhere = [table.model_copy(update={"file": ""}) for table in bench.spec.data]
    write_text(folder / SPEC, bench.spec.model_copy(update={"data": elsewhere}).to_toml())


def trained_of(outcomes: Mapping[str, Outcome]) -> dict[str, dict[str, Any]]:
    """The results of the critics trained for the benchmark, on their held-out prompts."""
    results = {name.partition("/")[2]: o.result for name, o in outcomes.items() if name.startswith(f"{FOLDER}/")}
    return {name: {"sets": result["sets"], **result["dev"]} for name, result in results.items() if result is not None}


def rows_of(outcomes: Mapping[str, Outcome]) -> tuple[list[Row], list[Row], list[str]]:
    """Results as flat rows, measurements during training as flat points, and the prompts that all were measured on."""
    rows: list[Row] = []
    curves: list[Row] = []
    prompts: list[str] = []
    for name, outcome in outcomes.items():
        if outcome.error is not None:
            continue
        result = outcome.result
        if "systems" not in result:
            continue  # a critic trained for the benchmark
        seed = int(name.rpartition("-")[2])
        for system, numbers in result["systems"].items():
            prompts = prompts or numbers["prompts"]
            if numbers["prompts"] != prompts:
                raise CheckpointError(f"The cell '{name}' was measured on other prompts than the ones before it.")
            if system == "teacher" and any(r["system"] == "teacher" and r["seed"] != seed for r in rows):
                continue  # the same for all seeds
            for source, votes in numbers["feedback"].items():
                learned = system not in ("base", "teacher", WRITTEN_AGAIN)
                rows.append(_row(system, source, seed, numbers, votes) | (_spent(result) if learned else {}))
                if learned:
                    head = {"system": system, "feedback": source, "seed": seed}
                    curves += [head | point for point in result["curve"]]
    return rows, curves, prompts


def _row(system: str, source: str, seed: int, numbers: Mapping[str, Any], votes: Mapping[str, Any]) -> Row:
    exact = numbers["exact"]
    prompts = len(numbers["prompts"])
    row: Row = {
        "system": system,
        "feedback": source,
        "seed": seed,
        "score": _mean(numbers["scores"], prompts),
        **{f"part/{name}": round(value, 4) for name, value in numbers["parts"].items()},
        "feedback_score": None if votes["score"] is None else round(votes["score"], 4),
        "win_tie": _mean(win_or_tie(exact["wins"], exact["ties"]), prompts),
        "win_tie_by_feedback": _mean(win_or_tie(votes["wins"], votes["ties"]), prompts),
    }
    texts = (
        "distinct_2",
        "different_lines",
        "commonest_line",
        "self_overlap",
        "teacher_copies",
        "length_ratio",
        "lift",
    )
    row |= {name: round(numbers[name], 4) for name in texts if numbers.get(name) is not None}
    row |= {"kl": round(numbers["kl"], 4)} if "kl" in numbers else {}
    row |= {"failures": numbers["failures"]}
    if system == WRITTEN_AGAIN:
        row |= {name: votes[name] for name in ("wins_itself", "ties_itself")}
        row |= {f"{name}_held_out": exact[name] for name in ("wins_itself", "ties_itself")}
    return row | {
        "scores": numbers["scores"],
        "wins": votes["wins"],
        "ties": votes["ties"],
        "wins_held_out": exact["wins"],
        "ties_held_out": exact["ties"],
        "longer": votes["longer"],
    }


def _spent(result: Mapping[str, Any]) -> Row:
    return {f"spent/{name}": value for name, value in result["spent"].items()} | {"ended": result["ended"]}


def win_or_tie(wins: Sequence[float | None], ties: Sequence[float]) -> list[float | None]:
    """The paper's metric, line by line: P(win) + P(tie). A verdict holds P(win) + P(tie) / 2."""
    return [None if p is None else min(1.0, p + t / 2) for p, t in zip(wins, ties, strict=True)]


def _mean(values: Sequence[float | None], prompts: int) -> float | None:
    """The mean over prompts of the means of their lines."""
    lines = len(values) // max(1, prompts)
    by_prompt = [[v for v in values[at : at + lines] if v is not None] for at in range(0, len(values), max(1, lines))]
    means = [np.mean(prompt_values) for prompt_values in by_prompt if prompt_values]
    return round(float(np.mean(means)), 4) if means else None


def _table(rows: Sequence[Row]) -> str:
    return _csv([{k: v for k, v in row.items() if k not in BY_LINE} for row in rows])


def _csv(rows: Sequence[Mapping[str, Any]]) -> str:
    columns = list(dict.fromkeys(name for row in rows for name in row))
    out = io.StringIO()
    writer = csv.DictWriter(out, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()


def _value(column: str, text: str) -> Any:
    """A cell of curves.csv. A name stays a text, be it "7" or "inf"."""
    return text if column in ("system", "feedback") else float(text)
