"""`humor-env teach`: fill a teacher buffer from the pocket teacher, a language model, or a teacher of your own.

    outcome = fill_buffer(Path("lines.jsonl"), "anthropic:claude-haiku-4-5", limits={"max_cost": 2.0})
    print(outcome.sentence)

Services are used through LanguageModelTeacher; any other name is looked up in `humor_env.registry.teachers`.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from humor_env.errors import InvalidOption
from humor_env.experiments.options import fill, ledger_if_used, nothing_written
from humor_env.llm.factory import SERVICES
from humor_env.prompts import load_prompts
from humor_env.registry import teachers
from humor_env.teacher import TeacherBuffer
from humor_env.teacher import fill as ask_teacher
from humor_env.teacher_llm import LanguageModelTeacher
from humor_env.types import SPLITS

LANGUAGE_MODEL = "humor_env.teacher_llm:LanguageModelTeacher"


@dataclass(frozen=True)
class Outcome:
    """What was done, as a sentence and as data."""

    sentence: str
    data: Mapping[str, Any]


def fill_buffer(
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
) -> Outcome:
    """Ask for the lines that the buffer lacks to have `n` for each prompt. A dry run asks and writes nothing."""
    prompt_set = load_prompts(prompts)
    present = {p.split for p in prompt_set}
    to_teach = [p for split in splits or [s for s in SPLITS if s in present] for p in prompt_set.split(split)][:limit]
    buffer = TeacherBuffer(path)
    is_model = teacher.partition(":")[0].partition("@")[0] in SERVICES
    name, arguments = teacher, dict(options or {})
    if is_model:
        for option, instead in (("client", "--teacher"), ("n", "--lines")):
            if option in arguments:
                raise InvalidOption(
                    f"--option {option}={arguments[option]}: {instead} already sets this. Leave the option out."
                )
        name, arguments = LANGUAGE_MODEL, {"client": teacher, "n": n, **arguments}
    ledger = ledger or path.with_name(path.name + ".ledger.sqlite")
    filled = fill(teachers, name, arguments, ledger=ledger, limits=limits or {}, scope=f"teach {path.name}")
    if dry_run:
        lacking = [p for p in to_teach if len(buffer.lines_for(p.id)) < n]
        sentence = f"{len(lacking)} of {len(to_teach)} prompts have fewer than {n} lines in {path}"
        data: dict[str, Any] = {"prompts": len(to_teach), "lacking": len(lacking), "buffer": str(path)}
        if not is_model:
            return Outcome(f"{sentence}; the teacher '{teacher}' costs nothing.", data)
        with nothing_written(teachers, name, arguments, ledger) as settings:
            estimate = teachers.make(name, **settings).estimate(lacking)
        return Outcome(f"{sentence}. {estimate}.", data | {"calls": estimate.calls, "cost": estimate.cost})
    path.parent.mkdir(parents=True, exist_ok=True)
    with ledger_if_used(ledger):
        live_teacher: Any = teachers.make(name, **filled)
    try:
        with _bar() as progress:
            report = ask_teacher(buffer, live_teacher, to_teach, n, licence, progress=progress)
    finally:
        if is_model:
            live_teacher.close()
    sentence = (
        f"{report.added} lines added for {report.asked} prompts; {path} now has {len(buffer)}."
        + (f" {len(report.short)} prompts still have fewer than {n} lines." if report.short else "")
        + (f" {_counts(live_teacher)}" if is_model else "")
    )
    data = {"asked": report.asked, "added": report.added, "short": len(report.short)}
    data |= {"lines": len(buffer), "buffer": str(path)}
    if is_model:
        usage = live_teacher.ledgered.usage
        data |= {"counts": dict(live_teacher.counts), "calls": usage.calls, "cost": usage.cost}
    return Outcome(sentence, data)


def _counts(teacher: LanguageModelTeacher) -> str:
    counts = ", ".join(f"{count} {name}" for name, count in teacher.counts.items() if count)
    cost = teacher.ledgered.usage.cost
    return f"({counts or 'nothing asked'}; {'cost unknown' if cost is None else f'${cost:.4f}'})"


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
