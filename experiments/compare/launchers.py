"""Where cells are computed: processes of this machine, or a Ray cluster.

    launch("local", ready, settle, workers=2, threads=1)

A launcher takes from `ready()` whenever it has a free place (None: nothing can begin now), does the cell somewhere by
`jobs.execute`, and hands what became of it to `settle()`. Ray runs on this machine where no cluster is named
(`RAY_ADDRESS`); on a cluster the folder must be one that all its machines see.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from typing import Any

from humor_env.errors import InvalidOption, MissingExtra
from humor_env.experiments.compare.jobs import LOG, Cell, Outcome, execute, outcome_of

Ready = Callable[[], Cell | None]
Settle = Callable[[Outcome], None]
LAUNCHERS = ("local", "ray")
STOPPED = 130
_PATIENCE = 60.0  # seconds that a learner gets to finish its step and save, once it was asked to stop


def launch(name: str, ready: Ready, settle: Settle, *, workers: int, threads: int) -> None:
    """Do cells until none is left."""
    if name == "local":
        _local(ready, settle, workers, threads)
    elif name == "ray":
        _ray(ready, settle, workers, threads)
    else:
        raise InvalidOption(f"launcher is one of {', '.join(LAUNCHERS)}; found '{name}'.")


def _local(ready: Ready, settle: Settle, workers: int, threads: int) -> None:
    # Forked from a server that has the imports behind it and no threads yet: quick and clean, and each has its own.
    context: Any = multiprocessing.get_context("forkserver" if sys.platform == "linux" else "spawn")
    running: dict[BaseProcess, Cell] = {}
    try:
        while True:
            while len(running) < workers and (cell := ready()) is not None:
                if not running and sys.platform == "linux":
                    context.set_forkserver_preload(["torch", *_modules_of(cell)])
                process = context.Process(target=_in_child, args=(cell, threads, dict(os.environ)), name=cell.name)
                process.start()
                running[process] = cell
            if not running:
                return
            wait([process.sentinel for process in running])
            for process in [p for p in running if not p.is_alive()]:
                process.join()
                cell = running.pop(process)
                if process.exitcode == STOPPED:
                    raise KeyboardInterrupt
                settle(outcome_of(cell, process.exitcode))
    except KeyboardInterrupt:
        # Ctrl-C reached them too: they finish their step and save. Asking again would end them at once.
        until = time.monotonic() + _PATIENCE
        for process in running:
            process.join(max(0.0, until - time.monotonic()))
        raise
    finally:
        for process in running:
            process.terminate()
        for process in running:
            process.join(_PATIENCE)
            if process.is_alive():
                process.kill()


def _modules_of(cell: Cell) -> list[str]:
    """The job's, unless it is the program that runs here: multiprocessing imports that by itself."""
    module = cell.job.partition(":")[0]
    running = getattr(sys.modules["__main__"], "__spec__", None)
    return [] if running is not None and running.name == module else [module]


def _in_child(cell: Cell, threads: int, environment: dict[str, str]) -> None:
    from tqdm import tqdm

    os.environ.update(environment)  # the server that forks children has that of its own beginning, keys too
    threading.Thread(target=_end_with_parent, daemon=True).start()
    # Else the lock of progress bars is a semaphore of the system, and `os._exit` leaves it for Python to complain of.
    tqdm.set_lock(threading.RLock())
    cell.folder.mkdir(parents=True, exist_ok=True)
    log = os.open(cell.folder / LOG, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(log, 1)
    os.dup2(log, 2)
    try:
        outcome = execute(cell, threads)
    except KeyboardInterrupt:
        os._exit(STOPPED)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0 if outcome.error is None else 1)  # nothing a library left behind may hold the result up


def _end_with_parent() -> None:
    """A killed measurement must not leave processes that write into the folder of the one that goes on."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _ray(ready: Ready, settle: Settle, workers: int, threads: int) -> None:
    try:
        import ray
    except ImportError:
        raise MissingExtra("The launcher 'ray' needs Ray: pip install 'humor-env[ray]'.") from None
    started = not ray.is_initialized()
    if started:
        # A cluster that RAY_ADDRESS names has its own size; here it is ours to say.
        here: dict[str, Any] = {} if os.environ.get("RAY_ADDRESS") else {"num_cpus": workers * threads}
        ray.init(include_dashboard=False, log_to_driver=False, configure_logging=False, **here)
    # One process for each cell, so that nothing of one is left in the next; a crash is ours to report, not to retry.
    task = ray.remote(num_cpus=threads, max_calls=1, max_retries=0)(_on_ray)
    running: dict[Any, Cell] = {}
    try:
        while True:
            while len(running) < workers and (cell := ready()) is not None:
                cell = replace(cell, folder=cell.folder.resolve())
                running[task.remote(cell, threads)] = cell
            if not running:
                return
            [done], _ = ray.wait(list(running), num_returns=1)
            cell = running.pop(done)
            try:
                stopped = ray.get(done)
            except ray.exceptions.RayError as problem:
                settle(Outcome(cell.name, error=f"its Ray worker died: {str(problem).strip().splitlines()[0]}"))
                continue
            if stopped:
                raise KeyboardInterrupt
            outcome = outcome_of(cell, 0)
            settle(outcome if outcome.error is None or _seen(cell) else Outcome(cell.name, error=_NOT_SHARED))
    finally:
        for reference in running:
            with suppress(Exception):
                ray.cancel(reference)
        if started:
            ray.shutdown()


_NOT_SHARED = (
    "its machine wrote the result where this one cannot read it: give a folder that all machines of the cluster see"
)


def _seen(cell: Cell) -> bool:
    return any(cell.folder.glob("*"))


def _on_ray(cell: Cell, threads: int) -> bool:
    """Whether the cell was stopped by the user."""
    try:
        execute(cell, threads)
    except KeyboardInterrupt:
        return True
    return False
