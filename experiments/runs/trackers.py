"""Reports a run to trackers: trackio, TensorBoard, Weights & Biases.

    trackers = Trackers.of(spec, folder, seed=0, say=print)
    log = trackers.log(RunLog(folder), "ppo")     # learners write to it as to any log
    trackers.results("ppo", {"score": 0.61})
    trackers.close()

Each tracker has its own thread, so that the run never waits for it. A tracker that fails three times without accepting
any metrics in between, or is still busy when the run ends, is dropped with a warning. Nothing leaves the machine unless
the spec says `online = true`.

`tracking.json` in the seed's folder records which steps a tracker has, so that a resumed run, which repeats some steps
exactly, does not report them twice. The calls to each tracker's package are in `tracker_packages.py`.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import queue
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from humor_env.agents.session.log import Log, flush_log, joke_record
from humor_env.agents.session.processes import is_main_process
from humor_env.errors import MissingExtra
from humor_env.experiments.runs.tracker_packages import EXTRAS, TRACKERS, Numbers, RunNames, Tracker
from humor_env.experiments.specs.spec import Spec
from humor_env.experiments.specs.tracking import TrackingSpec
from humor_env.llm.ledger import Call, Ledger
from humor_env.shared.user_path import user_path
from humor_env.types import Joke, Judgement

RECORD = "tracking.json"
FAILURES = 3  # without metrics accepted in between, after which a tracker is dropped
PATIENCE = 60.0  # seconds that a tracker has to start, and to finish its queue when the run ends
LINE_COLUMNS = ("step", "prompt", "text", "score", "reason", "error", "author")
Say = Callable[[str], None]


def check_installed(spec: TrackingSpec) -> None:
    """Raise MissingExtra if a tracker of the spec is not installed, before anything is computed."""
    for name in spec.trackers:
        if importlib.util.find_spec(name) is None:
            raise MissingExtra(
                f"[tracking] names {name}, which is not installed. Install it with: "
                f"pip install 'humor-env[{EXTRAS[name]}]', or leave it out."
            )


class Trackers:
    """All trackers of one seed. Without any, it does nothing and starts no thread."""

    def __init__(self, names: RunNames, spec: TrackingSpec, ledger: Path | None, say: Say) -> None:
        self.spec, self.ledger, self.folder = spec, ledger, names.folder
        self.since = time.time()  # earlier calls were reported, or belong to another run
        records = {name: _Record.read(names.folder, name) for name in spec.trackers}
        self.threads = [_TrackerThread(name, TRACKERS[name](), names, records[name], say) for name in spec.trackers]

    @classmethod
    def of(cls, spec: Spec, folder: Path, *, seed: int, say: Say) -> Trackers:
        """The trackers that the spec names, for the run in `folder`; none outside the main process."""
        tracking = spec.tracking if is_main_process() else TrackingSpec()
        names = RunNames(
            tracking.project,
            tracking.group or spec.name,
            f"{tracking.name or folder.name}-seed-{seed}",
            folder / f"seed-{seed}",
            spec.model_dump(mode="json", exclude_none=True),
            tracking.online,
        )
        return cls(names, tracking, user_path(spec.budget.ledger or folder / "ledger.sqlite"), say)

    def log(self, inner: Log, stage: str) -> Log:
        """A log that writes to `inner` and the trackers. `stage` is a prefix of metric names, except the learner's."""
        return _Tracked(inner, self, stage) if self.threads else inner

    def metrics(self, stage: str, step: int, numbers: Numbers) -> None:
        for thread in self.threads:
            if step > thread.reported.get(stage, -1):
                named = {f"{stage}/{name}" if stage else name: value for name, value in numbers.items()}
                thread.put(lambda t, named=named: t.metrics(stage, step, named), (stage, step))  # type: ignore[misc]

    def lines(self, stage: str, step: int, jokes: Sequence[Joke], judgements: Sequence[Judgement]) -> None:
        """Report a sample of the step's lines, including the best and the worst, and of the calls since last time."""
        threads = [t for t in self.threads if step > t.reported.get(stage, -1)]
        if not threads or (step % self.spec.every and step != 1):
            return
        rows = [joke_record(step, j, v) for j, v in zip(jokes, judgements, strict=True)]
        rows = _spread(sorted(rows, key=lambda row: -1.0 if row["score"] is None else row["score"]), self.spec.lines)
        calls = self._new_calls()
        name = f"{stage}/lines" if stage else "lines"
        for thread in threads:
            if rows:
                thread.put(lambda t: t.table(name, step, LINE_COLUMNS, rows))
            if calls:
                thread.put(lambda t: t.calls(step, calls))

    def _new_calls(self) -> list[Call]:
        if self.ledger is None or not self.spec.calls or not self.ledger.is_file():
            return []
        since, self.since = self.since, time.time()
        try:
            with Ledger(self.ledger) as ledger:
                return ledger.calls_since(since, self.spec.calls)
        except Exception:  # the learner's own ledger reports problems with the file
            return []

    def results(self, stage: str, numbers: Mapping[str, float | None]) -> None:
        """Report a stage's results on held-out prompts."""
        held_out = {f"held_out/{stage}/{name}": float(v) for name, v in numbers.items() if isinstance(v, (int, float))}
        for thread in self.threads:
            if stage not in thread.record.results:
                thread.put(lambda t: t.results(held_out), stage)

    def close(self) -> None:
        """Wait for pending reports, but not forever."""
        for thread in self.threads:
            thread.close()


class _Tracked:
    def __init__(self, inner: Log, trackers: Trackers, stage: str) -> None:
        self.inner, self.trackers, self.stage = inner, trackers, stage

    def metrics(self, step: int, numbers: Numbers) -> None:
        self.inner.metrics(step, numbers)
        self.trackers.metrics(self.stage, step, dict(numbers))

    def jokes(self, step: int, jokes: Sequence[Joke], judgements: Sequence[Judgement]) -> None:
        self.inner.jokes(step, jokes, judgements)
        self.trackers.lines(self.stage, step, list(jokes), list(judgements))

    def rewind(self, step: int) -> None:
        self.inner.rewind(step)

    def flush(self) -> None:
        flush_log(self.inner)


@dataclass
class _Record:
    """What a tracker already has of a seed: its run's id, the last step of each stage, the stages with results."""

    folder: Path
    tracker: str
    id: str | None
    last: dict[str, int]
    results: list[str]

    @classmethod
    def read(cls, folder: Path, tracker: str) -> _Record:
        try:
            record = json.loads((folder / RECORD).read_text(encoding="utf-8"))[tracker]
            return cls(folder, tracker, str(record["id"]), dict(record["last"]), list(record["results"]))
        except (OSError, ValueError, KeyError, TypeError):  # a damaged file only leads to a second run in the tracker
            return cls(folder, tracker, None, {}, [])

    def write(self) -> None:
        path = self.folder / RECORD
        with _RECORDS:
            try:
                others = json.loads(path.read_text(encoding="utf-8"))
            except (OSError, ValueError):
                others = {}
            others[self.tracker] = {"id": self.id, "last": self.last, "results": self.results}
            self.folder.mkdir(parents=True, exist_ok=True)
            temporary = path.with_suffix(".writing")
            temporary.write_text(json.dumps(others), encoding="utf-8")
            os.replace(temporary, path)


_RECORDS = threading.Lock()
Work = Callable[[Tracker], None]
Mark = tuple[str, int] | str | None


class _TrackerThread:
    """One tracker on its own thread."""

    def __init__(self, name: str, tracker: Tracker, names: RunNames, record: _Record, say: Say) -> None:
        self.name, self.tracker, self.names, self.record, self.say = name, tracker, names, record, say
        self.reported = dict(record.last)  # by earlier processes; this one reports in order
        self.work: queue.Queue[tuple[Work, Mark] | None] = queue.Queue(maxsize=10_000)
        self.failures = 0
        self.given_up = False
        self.started = threading.Event()
        self.thread = threading.Thread(target=self._run, name=f"tracker {name}", daemon=True)
        with contextlib.redirect_stdout(sys.stderr):  # trackers print greetings to standard output, where results go
            self.thread.start()
            if not self.started.wait(PATIENCE):
                self._give_up(f"did not start within {PATIENCE:g} s")

    def put(self, work: Work, mark: Mark = None) -> None:
        if self.given_up:
            return
        try:
            self.work.put_nowait((work, mark))
        except queue.Full:
            self._give_up("is too slow")

    def close(self) -> None:
        if self.given_up:
            return
        with contextlib.suppress(queue.Full):
            self.work.put_nowait(None)
        with contextlib.redirect_stdout(sys.stderr):
            self.thread.join(PATIENCE)
        if self.thread.is_alive():
            self._give_up(f"was still busy {PATIENCE:g} s after the run ended")

    def _give_up(self, why: str) -> None:
        if not self.given_up:
            self.given_up = True
            self.say(f"warning: the tracker {self.name} {why} and is no longer used; the run continues.")

    def _run(self) -> None:
        try:
            self.record.id = self.tracker.begin(self.names, self.record.id)
        except (Exception, SystemExit) as problem:
            self._give_up(f"cannot start ({_one_line(problem)})")
            return
        finally:
            self.started.set()
        while (item := self.work.get()) is not None and not self.given_up:
            self._do(*item)
        try:
            self.tracker.end()
        except (Exception, SystemExit) as problem:
            self._give_up(f"failed to finish ({_one_line(problem)})")

    def _do(self, work: Work, mark: Mark) -> None:
        try:
            work(self.tracker)
        except (Exception, SystemExit) as problem:
            self.failures += 1
            if self.failures >= FAILURES:
                self._give_up(f"failed {FAILURES} times ({_one_line(problem)})")
            return
        if isinstance(mark, tuple):
            self.failures = 0  # only after metrics: a table that was accepted does not count
            self.record.last[mark[0]] = mark[1]
        elif mark is not None:
            self.record.results.append(mark)
        if mark is not None:
            with contextlib.suppress(OSError):
                self.record.write()


def _one_line(problem: BaseException) -> str:
    return f"{type(problem).__name__}: {problem}".strip().split("\n")[0][:200]


def _spread(rows: list[Any], count: int) -> list[Any]:
    """`count` evenly spaced rows, including the first and the last."""
    if len(rows) <= count:
        return rows
    return [rows[round(i * (len(rows) - 1) / max(1, count - 1))] for i in range(count)]
