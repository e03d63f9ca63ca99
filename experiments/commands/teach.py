"""`humor-env teach`: fill a teacher buffer from the pocket teacher, a language model, or a teacher of your own.

told = teach(Path("lines.jsonl"), "anthropic:claude-haiku-4-5", prompts="everyday", limits={"max_cost": 2.0})
print(told.sentence)
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from humor_env.errors import InvalidOption
from humor_env.llm.factory import SERVICES
from humor_env.llm.ledger import Ledger
from humor_env.prompts import load_prompts
from humor_env.registry import teachers
from humor_env.teacher import TeacherBuffer, fill
from humor_env.teacher_llm import LanguageModelTeacher
from humor_env.types import SPLITS


@dataclass(frozen=True)
class Told:
    """What was done, as a sentence and as data."""

    sentence: str
    data: Mapping[str, Any]


def teach(
    path: Path,
    teacher: str,
    *,
    prompts: str = "pocket",
    splits: Sequence[str] = (),
    n: int = 3,
    limit: int | None = None,
    options: Mapping[str, Any] | None = None,
    licence: str | None = None,
    ledger: Path | None = None,
    limits: Mapping[str, Any] | None = None,
    dry_run: bool = False,
) -> Told:
    """Ask for what the buffer lacks of `n` lines for each prompt. A dry run asks and writes nothing."""
    known = load_prompts(prompts)
    present = dict.fromkeys(p.split for p in known)
    asked = [p for split in splits or [s for s in SPLITS if s in present] for p in known.split(split)][:limit]
    buffer = TeacherBuffer(path)
    lacking = [p for p in asked if len(buffer.lines_for(p.id)) < n]
    is_model = teacher.partition(":")[0].partition("@")[0] in SERVICES
    if not is_model and limits:
        raise InvalidOption(f"The teacher '{teacher}' spends nothing: it takes no limits ({', '.join(limits)}).")
    if dry_run:
        return _foretold(path, teacher, is_model, lacking, len(asked), n, options, ledger)
    path.parent.mkdir(parents=True, exist_ok=True)
    given = dict(options or {})
    made: Any
    if is_model:
        given.setdefault("ledger", str(ledger or _ledger_beside(path)))
        if limits:
            given.setdefault("budget", {**limits, "scope": f"teach {path.name}"})
        made = LanguageModelTeacher(teacher, n=n, **given)
    else:
        made = teachers.make(teacher, **given)
    try:
        with _bar() as progress:
            report = fill(buffer, made, asked, n, licence, progress=progress)
    finally:
        if is_model:
            made.close()
    sentence = (
        f"{report.added} lines added for {report.asked} prompts; {path} now has {len(buffer)}."
        + (f" {len(report.short)} prompts still have fewer than {n} lines." if report.short else "")
        + (f" {_counts(made)}" if is_model else "")
    )
    data: dict[str, Any] = {"asked": report.asked, "added": report.added, "short": len(report.short)}
    data |= {"lines": len(buffer), "buffer": str(path)}
    if is_model:
        usage = made.desk.usage
        data |= {"counts": dict(made.counts), "calls": usage.calls, "cost": usage.cost}
    return Told(sentence, data)


def _ledger_beside(path: Path) -> Path:
    return path.with_name(path.name + ".ledger.sqlite")


def _foretold(
    path: Path,
    teacher: str,
    is_model: bool,
    lacking: Sequence[Any],
    asked: int,
    n: int,
    options: Mapping[str, Any] | None,
    ledger: Path | None,
) -> Told:
    data: dict[str, Any] = {"prompts": asked, "lacking": len(lacking), "buffer": str(path)}
    sentence = f"{len(lacking)} of {asked} prompts lack some of their {n} lines in {path}"
    if not is_model:
        teachers.resolve(teacher)  # a name that nobody has is told now, not by the real thing
        return Told(f"{sentence}; the teacher '{teacher}' costs nothing.", data)
    place = ledger or _ledger_beside(path)
    given = dict(options or {})
    given["options"] = {**given.get("options", {}), "must_have_key": False}
    with Ledger(place if place.is_file() else ":memory:") as open_ledger:
        estimate = LanguageModelTeacher(teacher, n=n, **{**given, "ledger": open_ledger}).estimate(lacking)
    return Told(f"{sentence}. {estimate}.", data | {"calls": estimate.calls, "cost": estimate.cost})


def _counts(teacher: LanguageModelTeacher) -> str:
    told = ", ".join(f"{count} {name}" for name, count in teacher.counts.items() if count)
    cost = teacher.desk.usage.cost
    return f"({told or 'nothing asked'}; {'cost unknown' if cost is None else f'${cost:.4f}'})"


@contextmanager
def _bar() -> Iterator[Callable[[int, int], None] | None]:
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

    with Progress(BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), console=Console(stderr=True)) as bar:
        task = bar.add_task("")
        yield lambda done, total: bar.update(task, completed=done, total=total)
