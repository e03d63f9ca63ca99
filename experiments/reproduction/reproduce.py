"""Reproduce a paper: its whole protocol at a scale that fits the machine, each table compared with the published one.

    humor-env reproduce small-but-funny --scale pocket --seeds 3 --out runs/reproduction
    made = reproduce(load_scale("pocket"), Path("runs/reproduction"), seeds=[0, 1, 2])
    made["2"]["verdict"]                                  # "agrees", "disagrees" or "undecided"

    python -m humor_env.experiments.reproduction.reproduce runs/reproduction docs/reproduction.md    # the page's

The systems are the paper's (reproduction/systems.py), and the verdicts follow rules written before any result
(reproduction/claims.py); a scale only sets models, data and settings. Everything is done cell by cell and nothing
twice. OUT then holds:

    spec.json  results.jsonl     the scale; every value of every cell, with versions, commit and seeds
    tables.json  TABLES.md       made from results.jsonl alone
    people.jsonl                 pairs for people to rate, blind (unless they are already rated)
    cells/                       students, lines and logs
"""

from __future__ import annotations

import json
import platform
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from humor_env.errors import InvalidOption, did_you_mean
from humor_env.experiments.compare.jobs import Outcome, finished, run_cells
from humor_env.experiments.reproduction.cells import make_cells, open_material, people_pairs, write_allowance
from humor_env.experiments.reproduction.numbers import RESULTS, Results
from humor_env.experiments.reproduction.spec import ScaleSpec, load_scale
from humor_env.experiments.reproduction.tables import as_text, make_tables
from humor_env.experiments.runs.run_folder import commit, versions, write_json, write_text

PAPERS = ("small-but-funny",)
SPEC, TABLES, TEXT, PEOPLE = "spec.json", "tables.json", "TABLES.md", "people.jsonl"
BEGIN, END = "<!-- tables: begin -->", "<!-- tables: end -->"


@dataclass(frozen=True)
class Reproduction:
    """The tables as data and as text, and the cells that failed, each with its reason."""

    tables: Mapping[str, Any]
    text: str
    failed: Mapping[str, str]


def check_paper(name: str) -> None:
    if name not in PAPERS:
        raise InvalidOption(f"No paper is called '{name}'.{did_you_mean(name, PAPERS)} Known: {', '.join(PAPERS)}.")


def reproduce(
    spec: ScaleSpec,
    out: Path,
    *,
    seeds: Sequence[int],
    launcher: str = "local",
    say: Callable[[str], None] = lambda _: None,
) -> Reproduction:
    """Run the cells not done yet, and make the tables of all results."""
    cells = make_cells(spec, out, seeds)
    for cell in cells:
        finished(cell)  # refuses those of other settings, before anything is written
    write_allowance(spec, out)
    write_json(out / SPEC, spec.record())
    started = datetime.now(UTC)
    outcomes = run_cells(cells, workers=spec.workers, threads=spec.threads, launcher=launcher, say=say)
    about = {
        "scale": spec.record(),
        "seeds": list(seeds),
        "repeat": f"humor-env reproduce small-but-funny --scale {spec.name} --seeds {len(seeds)}",
        "versions": versions(),
        "commit": commit(),
        "python": platform.python_version(),
        "started": started.isoformat(timespec="seconds"),
        "minutes": round((datetime.now(UTC) - started).total_seconds() / 60, 1),
        "cells done before": sum(outcome.again for outcome in outcomes.values()),
        "cpu minutes": round(sum(o.seconds.get("cpu", 0.0) for o in outcomes.values()) / 60, 1),
    }
    _write_results(out, about, outcomes)
    if spec.people.who is None:
        _write_pairs(spec, out, seeds, outcomes)
    tables, text = write_tables(out)
    return Reproduction(tables, text, {name: o.error for name, o in outcomes.items() if o.error is not None})


def write_tables(out: Path) -> tuple[dict[str, Any], str]:
    """Write tables.json and TABLES.md, from results.jsonl alone."""
    results = Results.read(out)
    tables = make_tables(results)
    text = as_text(tables, results.about)
    write_json(out / TABLES, tables)
    write_text(out / TEXT, text)
    return tables, text


def write_page(out: Path, page: Path) -> None:
    """Put the tables of `out` between the two marks of a page."""
    write_text(page, with_tables(page.read_text(encoding="utf-8"), as_text_of(out)))


def as_text_of(out: Path) -> str:
    results = Results.read(out)
    return as_text(make_tables(results), results.about)


def with_tables(page: str, text: str) -> str:
    head, begin, rest = page.partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not begin or not end:
        raise InvalidOption(f"The page has no place for tables: it needs a line {BEGIN} and a line {END} after it.")
    return f"{head}{BEGIN}\n\n{text}\n{END}{tail}"


def _write_results(out: Path, about: Mapping[str, Any], outcomes: Mapping[str, Outcome]) -> None:
    rows: list[dict[str, Any]] = [{"cell": "about", "seed": None, "result": about}]
    for name, outcome in outcomes.items():
        if outcome.error is None:
            home, _, cell = name.rpartition("/")
            seed = int(home.removeprefix("seed-")) if home else None
            rows.append({"cell": cell, "seed": seed, "seconds": outcome.seconds, "result": outcome.result})
    write_text(out / RESULTS, "".join(json.dumps(row, separators=(",", ":")) + "\n" for row in rows))


def _write_pairs(spec: ScaleSpec, out: Path, seeds: Sequence[int], outcomes: Mapping[str, Outcome]) -> None:
    """Write the pairs of all seeds for people to rate, in an order that reveals nothing."""
    rows: dict[str, dict[str, str]] = {}
    for seed in seeds:
        names = [name for name in outcomes if name.startswith(f"seed-{seed}/")]
        if any(outcomes[name].error for name in names):
            continue
        by_system = people_pairs(spec, open_material(spec, seed, out), out / "cells" / f"seed-{seed}")
        for first, second in (pair for pairs in by_system.values() for pair in pairs):
            answers = {"humor": "", "consistency": "", "overall": ""}
            row = {"prompt": first.prompt.id, "input": first.prompt.text, "first": first.text, "second": second.text}
            rows[json.dumps(row, sort_keys=True)] = row | answers
    # Sorted by a hash-like key (the prompt's id is a digest of its text), so that systems and seeds are mixed.
    ordered = sorted(rows.values(), key=lambda row: (row["prompt"], row["first"]))
    write_text(out / PEOPLE, "".join(json.dumps(row) + "\n" for row in ordered))


def main(arguments: Sequence[str] | None = None) -> int:
    """OUT [PAGE]: remake the tables of a folder, and write them into a page."""
    paths = list(sys.argv[1:] if arguments is None else arguments)
    if len(paths) not in (1, 2):
        print("Usage: python -m humor_env.experiments.reproduction.reproduce OUT [PAGE.md]", file=sys.stderr)
        return 2
    if len(paths) == 1:
        print(write_tables(Path(paths[0]))[1], end="")
    else:
        write_page(Path(paths[0]), Path(paths[1]))
    return 0


__all__ = ["PAPERS", "Reproduction", "check_paper", "load_scale", "reproduce", "write_page", "write_tables"]

if __name__ == "__main__":
    sys.exit(main())
