"""The page of a benchmark, like that of a run: tables and charts of all systems, then every line they wrote.

    write_report([Path("runs/pocket-learners")], Path("bench.html"))     # recognises a benchmark's folder by its files

Tables and charts are those of RESULTS.md; the lines come from the cells, if they are still in the folder.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

from humor_env.experiments.compare.benchmark_spec import AGAIN
from humor_env.experiments.drawing.charts import NOTHING
from humor_env.experiments.reports.pictures import Picture
from humor_env.experiments.reports.report_data import RunData, SeedData, load_run

if TYPE_CHECKING:
    from humor_env.experiments.compare.benchmark import Benchmark

MOST_LINES = 6000  # of all systems together; beyond that, only the first seed's are listed


def is_benchmark(folder: Path) -> bool:
    return (folder / "results.jsonl").is_file() and (folder / "curves.csv").is_file()


def benchmark_view(folder: Path) -> tuple[dict[str, Any], list[RunData]]:
    """What the template needs from a benchmark, and its systems as runs whose lines can be browsed."""
    from humor_env.experiments.compare.benchmark import load_benchmark
    from humor_env.experiments.compare.benchmark_charts import CHARTS, without_gaps
    from humor_env.experiments.compare.benchmark_tables import TABLES, tables_of

    bench = load_benchmark(folder)
    runs, notes = _systems(bench)
    notes += [f"{name} has no result: {why}" for name, why in bench.failures.items()]
    if missing := without_gaps(bench):
        notes.append(
            "The chart of the training judge's win rate minus the held-out judge's leaves out "
            f"{', '.join(missing)}: during training only the score of their critic was measured, which is no win rate. "
            "The table of overoptimisation has both win rates at the end."
        )
    tables = [(TABLES[name][0], markdown_rows(TABLES[name][1](bench))) for name in tables_of(bench)]
    svgs = [(what, draw(bench)) for what, draw in CHARTS.values()] if bench.rows else []
    charts = [Picture("result", Markup(svg), what) for what, svg in svgs if NOTHING not in svg]
    return {
        "title": bench.spec.title or bench.spec.name,
        "runs": [_about(bench)],
        "tables": [(title, rows) for title, rows in tables if len(rows) > 1],
        "pictures": charts,
        "notes": notes,
    }, runs


def markdown_rows(table: str) -> list[list[str]]:
    """The cells of a table in Markdown, head first, without the line below it."""
    lines = [line for line in table.splitlines() if line.startswith("|")]
    rows = [[cell.strip().strip("*`") for cell in line.strip().strip("|").split("|")] for line in lines]
    return [row for row in rows if not all(set(cell) <= {"-", ":"} and cell for cell in row)]


def _about(bench: Benchmark) -> dict[str, Any]:
    spec, record = bench.spec, bench.record
    budget = {k: v for k, v in spec.budget.model_dump().items() if v is not None and k != "evaluations"}
    facts: Mapping[str, Any] = {
        "learners": ", ".join(learner.name for learner in spec.learners),
        "feedback": ", ".join(feedback.name for feedback in spec.feedback),
        "held-out judge": spec.held_out.critic,
        "budget of each": ", ".join(f"{value:,g} {name}" for name, value in budget.items()),
        "seeds": ", ".join(map(str, spec.seeds)),
        "held-out prompts": len(record.get("prompts", [])),
        "commit": record.get("commit"),
        "machine": record.get("platform"),
        "begun": record.get("started"),
    }
    versions = record.get("versions", {})
    return {
        "name": spec.name,
        "folder": str(bench.folder),
        "facts": [{"name": name, "value": str(value)} for name, value in facts.items() if value],
        "versions": ", ".join(f"{name} {version}" for name, version in versions.items()),
        "repeat": f"humor-env benchmark {bench.folder / 'spec.toml'}",
        "spec": spec.to_toml(),
        "spent": "",
        "same_judge": False,
        "stopped": [],
    }


def _systems(bench: Benchmark) -> tuple[list[RunData], list[str]]:
    """Each learner with each feedback as a run, together with the stages that all learners of a seed started from."""
    cells = bench.folder / "cells"
    if not cells.is_dir():
        return [], ["The cells of this benchmark are not in its folder, so its lines cannot be shown."]
    notes: list[str] = []
    starts = {seed: _stages(cells / "imitation" / f"seed-{seed}") for seed in bench.spec.seeds}
    runs: list[RunData] = []
    for learner, feedback in bench.spec.pairs():
        label = learner.name if len(bench.spec.feedback) == 1 else f"{learner.name}, {feedback.name}"
        seeds = []
        for seed in bench.spec.seeds:
            folder = cells / learner.name / feedback.name / f"seed-{seed}"
            if (folder / "result.json").is_file():
                run = load_run(folder)
                data = run.seeds[0]
                seeds.append(replace(data, name=f"seed-{seed}", stages={**starts[seed], **data.stages}, training=()))
        if seeds:
            runs.append(RunData(label, bench.folder, {}, {}, seeds, ()))
    if sum(_lines(seed) for run in runs for seed in run.seeds) > MOST_LINES:
        runs = [replace(run, seeds=run.seeds[:1]) for run in runs]
        notes.append("Very many lines: the list shows those of the first seed, the tables cover all seeds.")
    return runs, notes


def _lines(seed: SeedData) -> int:
    return len(seed.stages.get(seed.trained or "", ()))


def _stages(folder: Path) -> dict[str, Any]:
    """What the warm start's cell measured: base, imitation (as the run of the learner "sft") and teacher."""
    if not folder.is_dir():
        return {}
    stages = load_run(folder).seeds[0].stages
    # The second pass would appear among the learners; it is in the table of noise.
    without_again = {name: lines for name, lines in stages.items() if name != "sft" + AGAIN}
    return {"imitation" if name == "sft" else name: lines for name, lines in without_again.items()}
