"""What a run reports to trackers: trackio, TensorBoard, Weights & Biases.

    trackers = Trackers.of(spec, folder, seed=0, say=print)
    log = trackers.log(RunLog(folder), "ppo")     # learners write to it as to any log
    trackers.results("ppo", {"score": 0.61})
    trackers.close()

A tracker is a guest. Each has a thread of its own, so that the run never waits for one; one that fails three times and
takes nothing in between, or is still busy when the run ends, is left out with a sentence. Nothing leaves the machine
unless the spec says `online = true`.

`tracking.json` in the seed's folder remembers which steps a tracker has, so that a resumed run, which repeats some
steps to the bit, does not tell them twice. How each tracker's package is called is in `tracker_packages.py`.
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
FAILURES = 3  # with no metrics taken in between, after which a tracker is left out
PATIENCE = 60.0  # seconds that a tracker has to begin, and to finish what waits when the run ends
LINE_COLUMNS = ("step", "prompt", "text", "score", "reason", "error", "author")
Say = Callable[[str], None]


def check_installed(spec: TrackingSpec) -> None:
    """That the trackers a spec names are there: a mistake that is told before anything is computed."""
    for name in spec.trackers:
        if importlib.util.find_spec(name) is None:
            raise MissingExtra(
                f"[tracking] names {name}, which is not installed. Install it with: "
                f"pip install 'humor-env[{EXTRAS[name]}]', or leave it out."
            )


class Trackers:
    """All trackers of one seed. Without any, nothing is done and no thread begun."""

    def __init__(self, names: RunNames, spec: TrackingSpec, ledger: Path | None, say: Say) -> None:
        self.spec, self.ledger, self.folder = spec, ledger, names.folder
        self.since = time.time()  # calls before it were told, or are of another run
        self.begun = {name: _Begun.read(names.folder, name) for name in spec.trackers}
        self.threads = [_Guest(name, TRACKERS[name](), names, self.begun[name], say) for name in spec.trackers]

    @classmethod
    def of(cls, spec: Spec, folder: Path, *, seed: int, say: Say) -> Trackers:
        """Those that the spec names, for the run in `folder`; none in any process but the first."""
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
        """`inner`, whose entries the trackers get too. `stage` is part of a metric's name, but for the learner's."""
        return _Tracked(inner, self, stage) if self.threads else inner

    def metrics(self, stage: str, step: int, numbers: Numbers) -> None:
        for thread in self.threads:
            if step > thread.told.get(stage, -1):
                named = {f"{stage}/{name}" if stage else name: value for name, value in numbers.items()}
                thread.put(lambda t, named=named: t.metrics(stage, step, named), (stage, step))  # type: ignore[misc]

    def lines(self, stage: str, step: int, jokes: Sequence[Joke], judgements: Sequence[Judgement]) -> None:
        """A sample of the step's lines, the best and the worst among them; and of the calls since the last time."""
        wanted = [t for t in self.threads if step > t.told.get(stage, -1)]
        if not wanted or (step % self.spec.every and step != 1):
            return
        rows = [joke_record(step, j, v) for j, v in zip(jokes, judgements, strict=True)]
        rows = _spread(sorted(rows, key=lambda row: -1.0 if row["score"] is None else row["score"]), self.spec.lines)
        calls = self._new_calls()
        name = f"{stage}/lines" if stage else "lines"
        for thread in wanted:
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
        except Exception:  # what the learner's own ledger has to say about the file is said by it
            return []

    def results(self, stage: str, numbers: Mapping[str, float | None]) -> None:
        """What a stage reached on held-out prompts."""
        kept = {f"held_out/{stage}/{name}": float(v) for name, v in numbers.items() if isinstance(v, (int, float))}
        for thread in self.threads:
            if stage not in thread.begun.results:
                thread.put(lambda t: t.results(kept), stage)

    def close(self) -> None:
        """Wait for what is under way, but not for ever."""
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
class _Begun:
    """What a tracker has of a seed already: its run's id, the last step of each stage, the stages with results."""

    folder: Path
    tracker: str
    id: str | None
    last: dict[str, int]
    results: list[str]

    @classmethod
    def read(cls, folder: Path, tracker: str) -> _Begun:
        try:
            record = json.loads((folder / RECORD).read_text(encoding="utf-8"))[tracker]
            return cls(folder, tracker, str(record["id"]), dict(record["last"]), list(record["results"]))
        except (OSError, ValueError, KeyError, TypeError):  # a damaged one only costs a second run in the tracker
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
            beside = path.with_suffix(".writing")
            beside.write_text(json.dumps(others), encoding="utf-8")
            os.replace(beside, path)


_RECORDS = threading.Lock()
Work = Callable[[Tracker], None]
Mark = tuple[str, int] | str | None


class _Guest:
    """One tracker on a thread of its own."""

    def __init__(self, name: str, tracker: Tracker, names: RunNames, begun: _Begun, say: Say) -> None:
        self.name, self.tracker, self.names, self.begun, self.say = name, tracker, names, begun, say
        self.told = dict(begun.last)  # before this process; what it tells itself is in the order of the run
        self.work: queue.Queue[tuple[Work, Mark] | None] = queue.Queue(maxsize=10_000)
        self.failures = 0
        self.given_up = False
        self.started = threading.Event()
        self.thread = threading.Thread(target=self._run, name=f"tracker {name}", daemon=True)
        with contextlib.redirect_stdout(sys.stderr):  # they greet on standard output, where results go
            self.thread.start()
            if not self.started.wait(PATIENCE):
                self._give_up(f"did not begin within {PATIENCE:g} s")

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
            self.begun.id = self.tracker.begin(self.names, self.begun.id)
        except (Exception, SystemExit) as problem:
            self._give_up(f"cannot begin ({_told(problem)})")
            return
        finally:
            self.started.set()
        while (item := self.work.get()) is not None and not self.given_up:
            self._do(*item)
        try:
            self.tracker.end()
        except (Exception, SystemExit) as problem:
            self._give_up(f"did not end well ({_told(problem)})")

    def _do(self, work: Work, mark: Mark) -> None:
        try:
            work(self.tracker)
        except (Exception, SystemExit) as problem:
            self.failures += 1
            if self.failures >= FAILURES:
                self._give_up(f"failed {FAILURES} times ({_told(problem)})")
            return
        if isinstance(mark, tuple):
            self.failures = 0  # a table that came through says nothing of the metrics
            self.begun.last[mark[0]] = mark[1]
        elif mark is not None:
            self.begun.results.append(mark)
        if mark is not None:
            with contextlib.suppress(OSError):
                self.begun.write()


def _told(problem: BaseException) -> str:
    return f"{type(problem).__name__}: {problem}".strip().split("\n")[0][:200]


def _spread(rows: list[Any], count: int) -> list[Any]:
    """`count` of them at even distances, the first and the last among them."""
    if len(rows) <= count:
        return rows
    return [rows[round(i * (len(rows) - 1) / max(1, count - 1))] for i in range(count)]
