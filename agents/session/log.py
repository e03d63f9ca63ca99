"""A run's logs: metrics and the jokes themselves; and a way to stop a run cleanly.

log = RunLog("runs/first")                       # writes metrics.jsonl and jokes.jsonl, flushed line by line
log.metrics(step, {"reward": 0.61, "kl": 0.02})
log.jokes(step, jokes, judgements)               # any number can be traced to a text
with StopRequest() as stop: ...; if stop: save and leave   # Ctrl-C finishes the step first
"""

from __future__ import annotations

import json
import logging
import os
import signal
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, Protocol

from humor_env.agents.session.processes import is_main_process
from humor_env.shared.precision import peak_memory
from humor_env.types import Joke, Judgement

if TYPE_CHECKING:
    import torch


class Log(Protocol):
    """What learners log to. `RunLog` writes files; `Silent` writes nothing. A log may also have `flush()`, called
    before each checkpoint."""

    def metrics(self, step: int, numbers: Mapping[str, float]) -> None: ...

    def jokes(self, step: int, jokes: Sequence[Joke], judgements: Sequence[Judgement]) -> None: ...

    def rewind(self, step: int) -> None: ...


PEAK = "memory/peak_gib"
FILES = ("metrics.jsonl", "timings.jsonl", "jokes.jsonl")
_warn = logging.getLogger(__name__).warning
Echo = Callable[[int, Mapping[str, float]], None]


class Silent:
    """A log that writes nothing; `echo` may still print the metrics."""

    def __init__(self, echo: Echo | None = None) -> None:
        self.echo = echo

    def metrics(self, step: int, numbers: Mapping[str, float]) -> None:
        if self.echo is not None:
            self.echo(step, numbers)

    def jokes(self, step: int, jokes: Sequence[Joke], judgements: Sequence[Judgement]) -> None:
        pass

    def rewind(self, step: int) -> None:
        pass


class RunLog:
    """JSON lines in a folder, and optionally a callback for the screen.

    Seconds and memory go to `timings.jsonl`, apart from the metrics, so that a repeated run gives the same metrics
    file. Memory is this process's peak so far, of the student's `device` if that is a GPU.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        echo: Echo | None = None,
        keep_jokes: bool = True,
        device: torch.device | None = None,
    ) -> None:
        self.folder = Path(folder)
        self.echo = echo
        self.keep_jokes = keep_jokes
        self.device = device
        self.writes = is_main_process()
        if self.writes:
            self.folder.mkdir(parents=True, exist_ok=True)

    def metrics(self, step: int, numbers: Mapping[str, float]) -> None:
        if not self.writes:
            return
        timed = {n: v for n, v in numbers.items() if is_timing(n)}
        self._append("metrics.jsonl", [{"step": step} | {n: v for n, v in numbers.items() if n not in timed}])
        if timed:
            peak = peak_memory(self.device)
            memory = {} if peak is None else {PEAK: round(peak / 2**30, 3)}
            self._append("timings.jsonl", [{"step": step} | timed | memory])
        if self.echo is not None:
            self.echo(step, numbers)

    def jokes(self, step: int, jokes: Sequence[Joke], judgements: Sequence[Judgement]) -> None:
        if self.writes and self.keep_jokes:
            self._append("jokes.jsonl", [joke_record(step, j, v) for j, v in zip(jokes, judgements, strict=True)])

    def rewind(self, step: int) -> None:
        """Drop everything logged after `step`, where the run resumes. A torn last line is dropped too."""
        if not self.writes:
            return
        for name in FILES:
            path = self.folder / name
            if not path.exists():
                continue
            lines = path.read_bytes().splitlines(keepends=True)
            steps = [_step_of(line) for line in lines]
            broken = [
                n for n, (line, at) in enumerate(zip(lines, steps, strict=True), 1) if at is None and line.strip()
            ]
            if broken and broken != [len(lines)]:  # a kill leaves a torn last line
                _warn(f"{path}: dropped {len(broken)} damaged lines, the first is line {broken[0]}.")
            kept_lines = [line for line, at in zip(lines, steps, strict=True) if at is not None and at <= step]
            temporary = path.with_suffix(".rewinding")
            temporary.write_bytes(b"".join(kept_lines))
            os.replace(temporary, path)

    def flush(self) -> None:
        """Flush to disk, not only to the system's buffers."""
        for name in FILES if self.writes else ():
            if (self.folder / name).exists():
                handle = os.open(self.folder / name, os.O_RDONLY)
                try:
                    os.fsync(handle)
                finally:
                    os.close(handle)

    def _append(self, name: str, records: Sequence[Mapping[str, Any]]) -> None:
        with (self.folder / name).open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(r, ensure_ascii=True) + "\n" for r in records)


def flush_log(log: Log) -> None:
    """Flush the log to disk, if it has a `flush`."""
    flush = getattr(log, "flush", None)
    if flush is not None:
        flush()


def is_timing(name: str) -> bool:
    """Whether a metric depends on the clock and so differs between runs."""
    return name.startswith("seconds/") or name.endswith("_per_second")


def _step_of(line: bytes) -> int | None:
    """The step of a line; None if the line is torn or damaged."""
    if not line.endswith(b"\n"):
        return None
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
        return None


def joke_record(step: int, joke: Joke, judgement: Judgement) -> dict[str, Any]:
    return {
        "step": step,
        "prompt_id": joke.prompt.id,
        "prompt": joke.prompt.text,
        "text": joke.text,
        "author": joke.author,
        "stop_reason": joke.stop_reason,
        "critic": judgement.critic,
        "score": judgement.score,
        "parts": dict(judgement.parts),
        "reason": judgement.reason,
        "error": judgement.error,
    }


class StopRequest:
    """True once the user has pressed Ctrl-C (or the process was asked to end); a second Ctrl-C ends it at once."""

    def __init__(self) -> None:
        self.requested = False
        self._before: dict[int, Any] = {}

    def __bool__(self) -> bool:
        return self.requested

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._ask)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if self.requested:
            raise KeyboardInterrupt
        self.requested = True
