"""Where cells run: in processes on this machine, or on a Ray cluster.

    launch("local", ready, settle, workers=2, threads=1)

A launcher takes a cell from `ready()` whenever it has a free worker (None: nothing can start now), runs it with
`jobs.execute`, and passes the outcome to `settle()`. Ray runs on this machine unless a cluster is named
(`RAY_ADDRESS`); on a cluster, the folder must be visible to all its machines.
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
_PATIENCE = 60.0  # seconds that a learner gets to finish its step and save after being asked to stop


def launch(name: str, ready: Ready, settle: Settle, *, workers: int, threads: int) -> None:
    """Run cells until none is left."""
    if name == "local":
        _local(ready, settle, workers, threads)
    elif name == "ray":
        _ray(ready, settle, workers, threads)
    else:
        raise InvalidOption(f"launcher is one of {', '.join(LAUNCHERS)}; found '{name}'.")


def _local(ready: Ready, settle: Settle, workers: int, threads: int) -> None:
    # Forked from a server that has done the imports and has no threads yet: a quick start in a clean process.
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
        # Ctrl-C reached them too: they finish their step and save. A second signal would end them at once.
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
    """The job's module, unless it is the running program, which multiprocessing imports by itself."""
    module = cell.job.partition(":")[0]
    running = getattr(sys.modules["__main__"], "__spec__", None)
    return [] if running is not None and running.name == module else [module]


def _in_child(cell: Cell, threads: int, environment: dict[str, str]) -> None:
    from tqdm import tqdm

    os.environ.update(environment)  # the fork server still has the environment, keys included, from its start
    threading.Thread(target=_end_with_parent, daemon=True).start()
    # Otherwise tqdm's lock is a system semaphore, which `os._exit` would leak, with a warning from Python.
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
    os._exit(0 if outcome.error is None else 1)  # nothing that a library left behind may delay the result


def _end_with_parent() -> None:
    """Exit with the parent: a killed measurement must not leave processes that write while another one continues it."""
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
        # A cluster named by RAY_ADDRESS has its own size; here we set it.
        here: dict[str, Any] = {} if os.environ.get("RAY_ADDRESS") else {"num_cpus": workers * threads}
        ray.init(include_dashboard=False, log_to_driver=False, configure_logging=False, **here)
    # One process per cell, so that no state is left for the next; crashes are reported by us, not retried by Ray.
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
    "its machine wrote the result where this one cannot read it: use a folder that all machines of the cluster share"
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
