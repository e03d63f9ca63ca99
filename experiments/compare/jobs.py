"""Cells: pieces of a long measurement, each run once, in its own process, and never again.

    cells = [Cell("ppo/seed-0", folder / "ppo" / "seed-0", "package.module:job", {"steps": 100}, seed=0)]
    outcomes = run_cells(cells, workers=2, threads=1)       # or launcher="ray"
    outcomes["ppo/seed-0"].result                           # what the job returned: plain data
    outcomes["ppo/seed-0"].error                            # or why there is none

A job is a function `job(spec, seed, folder) -> plain data`, named by its import path so that another process or machine
can find it. Its result is written in full or not at all (`result.json`, together with its spec), so a killed
measurement continues with the cells that are missing. A cell that fails leaves `failure.json` with its traceback and
`log.txt` with its output; the others continue, except those that need it, which do not start.
"""

from __future__ import annotations

import json
import os
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from humor_env import registry
from humor_env.errors import CheckpointError, HumorEnvError, InvalidOption
from humor_env.experiments.runs.run_folder import read_json, write_json

RESULT, FAILURE, LOG = "result.json", "failure.json", "log.txt"
Say = Callable[[str], None]


@dataclass(frozen=True)
class Cell:
    """One piece of work. `spec` is plain data (JSON); `needs` are the names of cells that must come first."""

    name: str
    folder: Path
    job: str
    spec: Mapping[str, Any] = field(default_factory=dict)
    seed: int = 0
    needs: tuple[str, ...] = ()

    @property
    def asked(self) -> dict[str, Any]:
        """Everything that determines the result. The folder does not: a measurement may be moved."""
        return json.loads(json.dumps({"name": self.name, "job": self.job, "seed": self.seed, "spec": self.spec}))


@dataclass(frozen=True)
class Outcome:
    """The outcome of a cell. `again`: it was done earlier and has only been read now."""

    name: str
    result: Any = None
    error: str | None = None
    seconds: Mapping[str, float] = field(default_factory=dict)
    again: bool = False


def run_cells(
    cells: Sequence[Cell],
    *,
    workers: int = 2,
    threads: int = 1,
    launcher: str = "local",
    say: Say = lambda _: None,
) -> dict[str, Outcome]:
    """Run the cells not done yet, `workers` at a time with `threads` threads each; outcomes by name, in given order."""
    from humor_env.experiments.compare.launchers import launch

    _check(cells, workers, threads)
    outcomes: dict[str, Outcome] = {}
    waiting: list[Cell] = []
    for cell in cells:
        result = finished(cell)
        if result is None:
            waiting.append(cell)
        else:
            outcomes[cell.name] = result
    if outcomes:
        say(f"{len(outcomes)} of {len(cells)} cells were done before")

    def ready() -> Cell | None:
        """The next cell whose needs are met; cells whose needs have failed are settled as not started."""
        for cell in list(waiting):
            failed = [n for n in cell.needs if n in outcomes and outcomes[n].error is not None]
            if failed:
                waiting.remove(cell)
                settle(Outcome(cell.name, error=f"not started: it needs '{failed[0]}', which failed"))
            elif all(n in outcomes for n in cell.needs):
                waiting.remove(cell)
                (cell.folder / FAILURE).unlink(missing_ok=True)  # the last attempt's, not that of a process that dies
                return cell
        return None

    def settle(outcome: Outcome) -> None:
        outcomes[outcome.name] = outcome
        duration = f" in {outcome.seconds['wall']:.0f} s" if outcome.seconds else ""
        outcome_text = f"failed: {outcome.error}" if outcome.error else f"done{duration}"
        say(f"{len(outcomes)}/{len(cells)} {outcome.name}: {outcome_text}")

    launch(launcher, ready, settle, workers=workers, threads=threads)
    return {cell.name: outcomes[cell.name] for cell in cells}


def finished(cell: Cell) -> Outcome | None:
    """The outcome of a cell that was done earlier, or None."""
    path = cell.folder / RESULT
    if not path.is_file():
        return None
    result = read_json(path)
    if result["cell"] != cell.asked:
        changed = [key for key, value in cell.asked.items() if result["cell"].get(key) != value]
        raise CheckpointError(
            f"'{cell.folder}' holds a result with other settings ({', '.join(changed)} changed). Give another folder, "
            "or delete this one to run the cell again."
        )
    return Outcome(cell.name, result["result"], None, result["seconds"], again=True)


def execute(cell: Cell, threads: int) -> Outcome:
    """Run a cell in this process; called by launchers. Never raises, except for Ctrl-C."""
    cell.folder.mkdir(parents=True, exist_ok=True)
    (cell.folder / FAILURE).unlink(missing_ok=True)
    wall, cpu = time.perf_counter(), time.process_time()
    try:
        _use_threads(threads)
        job = registry.Registry("job", "humor_env.jobs", {}).resolve(cell.job)
        result = job(cell.spec, cell.seed, cell.folder)
        seconds = {"wall": round(time.perf_counter() - wall, 2), "cpu": round(time.process_time() - cpu, 2)}
        write_json(cell.folder / RESULT, {"cell": cell.asked, "seconds": seconds, "result": result})
    except Exception as problem:
        traceback.print_exc()
        error = str(problem) if isinstance(problem, HumorEnvError) else f"{type(problem).__name__}: {problem}"
        write_json(cell.folder / FAILURE, {"error": error, "traceback": traceback.format_exc()})
        return Outcome(cell.name, error=error)
    return Outcome(cell.name, result, None, seconds)


def outcome_of(cell: Cell, exit_code: int | None) -> Outcome:
    """The outcome of a cell whose process has ended, from the files it left."""
    result = finished(cell)
    if result is not None:
        return Outcome(cell.name, result.result, None, result.seconds)
    if (cell.folder / FAILURE).is_file():
        return Outcome(cell.name, error=read_json(cell.folder / FAILURE)["error"])
    if exit_code is not None and exit_code < 0:
        why = f"its process was killed by signal {-exit_code}" + (" (out of memory?)" if exit_code == -9 else "")
    else:
        why = f"its process ended with exit code {exit_code} and no result"
    return Outcome(cell.name, error=f"{why}; see {cell.folder / LOG}")


def _use_threads(threads: int) -> None:
    os.environ["OMP_NUM_THREADS"] = str(threads)
    torch = sys.modules.get("torch")
    if torch is not None:
        torch.set_num_threads(threads)


def _check(cells: Sequence[Cell], workers: int, threads: int) -> None:
    if workers < 1 or threads < 1:
        raise InvalidOption(f"workers and threads must be at least 1, found {workers} and {threads}.")
    places: dict[str, int] = {}
    folders: set[Path] = set()
    for place, cell in enumerate(cells):
        if cell.name in places or cell.folder in folders:
            raise InvalidOption(f"Two cells are called '{cell.name}' or share the folder '{cell.folder}'.")
        missing = [name for name in cell.needs if name not in places]
        if missing:
            raise InvalidOption(f"The cell '{cell.name}' needs '{missing[0]}', which does not come before it.")
        places[cell.name] = place
        folders.add(cell.folder)
