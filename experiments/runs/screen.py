"""A run's progress on a terminal: a bar with rate, time left, reward and cost, and sample lines.

screen = make_screen()                      # plain lines if standard error is not a terminal
with screen.stage("ppo", total=150) as bar:
    train(config, env, student, bar.log(RunLog(folder)))
screen.say("imitation: 0.46")
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Protocol

from humor_env.experiments.options import printable
from humor_env.types import Joke, Judgement

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress, TaskID

    from humor_env.agents.session.log import Log

SAMPLE_EVERY = 15.0  # seconds between sample lines
LINE_EVERY = 1.0  # seconds between the lines of a log file
LONGEST = 200  # characters of one
MOST_FLIPS = 0.5  # above this share, a judge's verdicts depend more on a line's position than on its text


def flips(numbers: Mapping[str, float | None]) -> float | None:
    """The share of a judge's verdicts that change when the two lines are shown in the other order, from a step's
    metrics or a stage's numbers; None if no judge was asked in both orders."""
    both, flipped = in_both_orders(numbers), numbers.get("feedback/flipped")
    if both and flipped is not None:
        return flipped / both
    parts = [v for n, v in numbers.items() if v is not None and "part/" in n and n.endswith(("/flips", ".flips"))]
    return max(parts, default=None)


def in_both_orders(numbers: Mapping[str, float | None]) -> float:
    """How many pairs got an answer in both orders; in a log that did not count them, how many got a verdict."""
    counted = numbers.get("feedback/both_orders")
    if counted is not None:
        return counted
    return (numbers.get("feedback/judged") or 0.0) - (numbers.get("feedback/failed") or 0.0)


class Bar(Protocol):
    def log(self, inner: Log) -> Log: ...


class Screen(Protocol):
    def say(self, text: str) -> None: ...

    def stage(self, name: str, total: int | None) -> contextlib.AbstractContextManager[Bar]: ...


class Quiet:
    """Prints nothing and returns the log unchanged."""

    def say(self, text: str) -> None:
        pass

    @contextlib.contextmanager
    def stage(self, name: str, total: int | None) -> Iterator[Bar]:
        yield self

    def log(self, inner: Log) -> Log:
        return inner


class Terminal:
    """Progress on standard error, so that results on standard output can be piped."""

    def __init__(self, console: Console) -> None:
        self.console = console

    def say(self, text: str) -> None:
        self.console.print(printable(text), markup=False, highlight=False)

    @contextlib.contextmanager
    def stage(self, name: str, total: int | None) -> Iterator[Bar]:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}", markup=False),
        )
        with Progress(*columns, console=self.console) as progress:
            yield _Bar(progress, progress.add_task(name, total=total, note=""))


class LogFile:
    """Progress as plain lines, for a log file or a batch queue: one for each step, but at most one a second."""

    def say(self, text: str) -> None:
        print(printable(text), file=sys.stderr, flush=True)

    @contextlib.contextmanager
    def stage(self, name: str, total: int | None) -> Iterator[Bar]:
        yield _Lines(name, total, self.say)


class _Lines:
    def __init__(self, name: str, total: int | None, say: Callable[[str], None]) -> None:
        self.name, self.total, self.say = name, total, say
        self.last: float | None = None

    def log(self, inner: Log) -> Log:
        return _Watched(inner, self)

    def show(self, step: int, note: str) -> None:
        now = time.monotonic()
        if self.last is None or now - self.last >= LINE_EVERY or step == self.total:
            self.last = now
            self.say(f"{self.name} {step}" + (f"/{self.total}" if self.total else "") + (f"  {note}" if note else ""))

    def sample(self, line: str) -> None:
        self.say(line)

    def at(self, step: int) -> None:
        """Nothing: a resumed run prints its position with its next step."""


class _Bar:
    def __init__(self, progress: Progress, task: TaskID) -> None:
        self.progress, self.task = progress, task

    def log(self, inner: Log) -> Log:
        return _Watched(inner, self)

    def show(self, step: int, note: str) -> None:
        self.at(step)
        if note:
            self.progress.update(self.task, note=note)

    def sample(self, line: str) -> None:
        self.progress.console.print(printable(line), markup=False, highlight=False, style="dim")

    def at(self, step: int) -> None:
        self.progress.update(self.task, completed=step)


class _Watched:
    """A log that also updates the bar or prints a line."""

    def __init__(self, inner: Log, bar: _Bar | _Lines) -> None:
        self.inner, self.bar = inner, bar
        self.cost = 0.0
        self.first: tuple[int, float] | None = None
        self.sampled = time.monotonic()

    def metrics(self, step: int, numbers: Mapping[str, float]) -> None:
        self.inner.metrics(step, numbers)
        now = time.monotonic()
        self.first = self.first or (step, now)
        self.cost += numbers.get("critic/cost", 0.0)
        notes = [f"{name} {numbers[key]:.3f}" for name, key in _SHOWN if key in numbers]
        share = flips(numbers)
        if share is not None and share > MOST_FLIPS:
            notes.append(f"the judge flips on {100 * share:.0f} % of pairs")
        if self.cost:
            notes.append(f"${self.cost:.2f}")
        if step > self.first[0] and now > self.first[1]:
            notes.append(f"{(step - self.first[0]) / (now - self.first[1]):.2g} steps/s")
        self.bar.show(step, "  ".join(notes))

    def jokes(self, step: int, jokes: Sequence[Joke], judgements: Sequence[Judgement]) -> None:
        self.inner.jokes(step, jokes, judgements)
        scored = [(v.score, j.text) for j, v in zip(jokes, judgements, strict=True) if v.score is not None]
        if scored and time.monotonic() - self.sampled > SAMPLE_EVERY:
            self.sampled = time.monotonic()
            score, text = scored[len(scored) // 2]
            self.bar.sample(f"step {step}, {score:.2f}: {printable(text, LONGEST)}")

    def rewind(self, step: int) -> None:
        self.inner.rewind(step)
        self.bar.at(step)


_SHOWN = (("reward", "reward/mean"), ("KL", "kl/per_line"), ("loss", "sft/loss"), ("held out", "eval/score"))


def make_screen() -> Screen:
    from rich.console import Console

    console = Console(stderr=True)
    return Terminal(console) if console.is_terminal else LogFile()
