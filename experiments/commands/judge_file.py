"""Score a file of jokes with any critic; continue after a stop; compare critics on a finished run.

    humor-env judge jokes.jsonl --critic scorer --option client=openai:m@http://127.0.0.1:8000/v1
    humor-env judge jokes.jsonl --critic scorer --dry-run          # what it would take
    humor-env rescore runs/ppo --critic rules                      # and how far the two agree

A line of the file is an object with `prompt` (a text, or an object with id and text) and `text`; a CSV file has columns
of these names, and its judgements are a CSV file too. Judged lines are appended to the output as they come; if run
again, the command reads that file and judges what is missing, failed, or now has another prompt. Limits (--max-calls,
--max-tokens, --max-cost) apply to the output file as a whole, restarts included.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Any

import typer

from humor_env.episodes.episode import checked_reply
from humor_env.errors import InvalidOption, UnknownName
from humor_env.experiments.commands.judged_rows import (
    Asked,
    asked_of,
    judged_row,
    kept_rows,
    resume,
    sort_rows,
    write_table,
)
from humor_env.experiments.options import FAILED, fill, ledger_if_used, nothing_written, printable, say
from humor_env.experiments.runs.joke_file import Line, read_jokes
from humor_env.llm.ledgered_client import Progress
from humor_env.registry import critics, judges
from humor_env.shared.line_file import only_writer
from humor_env.sources.prompt_files import is_table
from humor_env.types import NO_USAGE, Critic, Usage, critic_name


@dataclass(frozen=True, slots=True)
class Summary:
    """The result for a file. `resumed` lines were judged by an earlier call, `changed` ones too, but with another
    prompt: they were judged again. `cause` is the commonest error of the failed ones. `scores` has all by line
    number."""

    jokes: int
    resumed: int
    changed: int
    failed: int
    cause: str
    mean: float | None
    usage: Usage
    output: Path
    scores: Mapping[int, float | None]


@dataclass(frozen=True, slots=True)
class Agreement:
    """How far two critics agree on the jokes that both scored. `pairs` counts the pairs of siblings that neither scores
    equally."""

    jokes: int
    spearman: float | None
    pairs: int
    same_order: float | None
    mean_before: float | None
    mean_after: float | None

    def __str__(self) -> str:
        def shown(value: float | None) -> str:
            return "none" if value is None else f"{value:.3f}"

        return (
            f"{self.jokes} jokes with both scores: rank correlation {shown(self.spearman)}, means "
            f"{shown(self.mean_before)} and {shown(self.mean_after)}; of {self.pairs} pairs of lines for one prompt, "
            f"both order a share of {shown(self.same_order)} the same way"
        )


def judge_file(
    lines: Sequence[Line],
    output: Path,
    critic: Critic,
    *,
    asked: Asked | None = None,
    chunk: int = 256,
    on_chunk: Callable[[int, int, Usage], None] | None = None,
) -> Summary:
    """Judge the lines that the output does not have yet. Each chunk is on disk before the next one is judged. Raises
    InvalidOption if another process is writing the same output, or if it holds judgements that were `asked` for in
    another way. A .csv output is written at the end, from a JSONL file next to it."""
    output.parent.mkdir(parents=True, exist_ok=True)
    actual = output.resolve()  # two names of one file have one lock
    rows_file = kept_rows(actual)
    refusal = f"'{output}' is being written by another humor-env: wait for it, or give another --output."
    with only_writer(rows_file.with_name(rows_file.name + ".lock"), refusal):
        if rows_file != actual and actual.is_file() and not rows_file.is_file():
            raise InvalidOption(f"'{output}' already exists. Give another --output, or remove it.")
        try:
            summary = _judge_missing(lines, rows_file, critic, asked, chunk, on_chunk)
        except BaseException:
            if rows_file.is_file() and not rows_file.stat().st_size:
                rows_file.unlink()  # stopped before the first judgement
            raise
        if rows_file != actual:
            write_table(rows_file, actual)
        return replace(summary, output=output)


def _judge_missing(
    lines: Sequence[Line],
    output: Path,
    critic: Critic,
    asked: Asked | None,
    chunk: int,
    on_chunk: Callable[[int, int, Usage], None] | None,
) -> Summary:
    name = critic_name(critic)
    by_number, changed = resume(lines, output, name, asked)
    resumed = len(by_number)
    todo = [line for line in lines if line.number not in by_number]
    usage = NO_USAGE
    errors: Counter[str] = Counter()
    with output.open("a", encoding="utf-8") as file:
        for start in range(0, len(todo), chunk):
            part = todo[start : start + chunk]
            judgements = checked_reply(critic, name, [line.joke for line in part])
            for line, judgement in zip(part, judgements, strict=True):
                by_number[line.number] = judgement.score
                usage += judgement.usage
                if judgement.score is None:
                    errors[judgement.error or "no cause is given"] += 1
                file.write(judged_row(line, judgement, name, asked) + "\n")
            file.flush()
            os.fsync(file.fileno())
            if on_chunk is not None:
                on_chunk(len(by_number), len(lines), usage)
    sort_rows(output)
    scores = [score for score in by_number.values() if score is not None]
    mean = sum(scores) / len(scores) if scores else None
    cause = errors.most_common(1)[0][0] if errors else ""
    return Summary(len(lines), resumed, changed, len(by_number) - len(scores), cause, mean, usage, output, by_number)


def agreement(lines: Sequence[Line], scores: Mapping[int, float | None]) -> Agreement:
    """The agreement between the scores that the lines have and new ones by line number."""
    both = [(line, line.score, scores.get(line.number)) for line in lines]
    comparable = [(line, old, new) for line, old, new in both if old is not None and new is not None]
    old_scores, new_scores = [old for _, old, _ in comparable], [new for _, _, new in comparable]
    groups: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for line, old, new in comparable:
        groups[line.joke.prompt.id].append((old, new))
    signs = [
        (a[0] - b[0]) * (a[1] - b[1]) > 0
        for group in groups.values()
        for a, b in combinations(group, 2)
        if a[0] != b[0] and a[1] != b[1]
    ]
    return Agreement(
        len(comparable),
        _spearman(old_scores, new_scores),
        len(signs),
        sum(signs) / len(signs) if signs else None,
        sum(old_scores) / len(comparable) if comparable else None,
        sum(new_scores) / len(comparable) if comparable else None,
    )


def _spearman(first: Sequence[float], second: Sequence[float]) -> float | None:
    if len(first) < 3 or len(set(first)) < 2 or len(set(second)) < 2:
        return None
    from scipy.stats import spearmanr

    return float(spearmanr(first, second).statistic)


def best_and_worst(lines: Sequence[Line], scores: Mapping[int, float | None], most: int = 3) -> str:
    """The lines with the highest and the lowest scores, to be read: equal scores in the order of the file. Empty if
    there are too few lines for two ends, or if all score alike."""
    scored = [(line.joke.text, score) for line in lines if (score := scores.get(line.number)) is not None]
    if len(scored) < 2 * most or len({score for _, score in scored}) == 1:
        return ""
    ordered = sorted(scored, key=lambda each: -each[1])

    def shown(title: str, ends: Sequence[tuple[str, float]]) -> str:
        return "\n".join([f"{title}:", *(f"  {score:.2f}  {printable(text, 100)}" for text, score in ends)])

    return shown("Best", ordered[:most]) + "\n" + shown("Worst", ordered[-most:])


@contextlib.contextmanager
def progress_bar(critic: Critic, total: int) -> Iterator[Callable[[int, int, Usage], None]]:
    """A bar on a terminal, a line per chunk elsewhere; both show the cost so far."""
    if not sys.stderr.isatty():
        yield lambda done, all_, usage: print(f"{done} of {all_} judged, {_money(usage)}", file=sys.stderr)
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    columns = (BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), TextColumn("{task.description}"))
    with Bar(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("", total=total)
        finished = 0

        def inside(progress: Progress) -> None:
            # Within a chunk, questions are counted; a joke may take several.
            note = f"{_money(progress.usage)} in this chunk, {progress.failed} failed"
            bar.update(task, completed=finished + min(progress.done, total - finished), description=note)

        def chunk_done(done: int, _: int, usage: Usage) -> None:
            nonlocal finished
            finished = done
            bar.update(task, completed=done, description=_money(usage))

        ledgered = getattr(critic, "ledgered", None)
        if ledgered is not None:
            ledgered.on_progress = inside
        yield chunk_done


def _money(usage: Usage) -> str:
    cost = "cost unknown" if usage.cost is None else f"${usage.cost:.4f}"
    return f"{usage.calls} calls, {cost}"


def score_file(
    file: Path,
    name: str,
    *,
    options: Mapping[str, Any],
    output: Path | None = None,
    ledger: Path | None = None,
    limits: Mapping[str, Any] | None = None,
    chunk: int = 256,
    dry_run: bool = False,
    compare: bool = False,
) -> None:
    """The command: judge a file with the critic of that name and print a summary; with `compare`, also how far the new
    scores agree with those in the file."""
    kind_of_critic(name)
    lines = read_jokes(file)
    source = file / "jokes.jsonl" if file.is_dir() else file
    plain = "".join(c if c.isalnum() or c in "-_" else "-" for c in name)
    output = output or source.with_name(f"{source.stem}.{plain}{'.csv' if is_table(source) else '.jsonl'}")
    ledger = ledger or output.with_name(output.name + ".ledger.sqlite")
    if dry_run:
        say(_estimate(name, options, lines, ledger))
        return
    filled = fill(critics, name, options, ledger=ledger, limits=limits or {}, scope=f"judge {output.name}")
    with ledger_if_used(ledger):
        critic: Critic = critics.make(name, **filled)
        with progress_bar(critic, len(lines)) as on_chunk:
            asked = asked_of(name, options)
            summary = judge_file(lines, output, critic, asked=asked, chunk=chunk, on_chunk=on_chunk)
    mean = "none" if summary.mean is None else f"{summary.mean:.3f}"
    anew = f", {summary.changed} judged again after a change" if summary.changed else ""
    failed = f"{summary.failed} failed"
    if summary.failed:
        failed += f" (most often: {printable(summary.cause, 200)})"
    say(
        f"{summary.jokes} jokes ({summary.resumed} from before{anew}), {failed}, mean score {mean}, "
        f"{_money(summary.usage)} now; written to {summary.output}"
    )
    if compare:
        print(agreement(lines, summary.scores))
    elif examples := best_and_worst(lines, summary.scores):
        say(examples)
    if summary.mean is None:
        raise typer.Exit(FAILED)


def kind_of_critic(name: str) -> None:
    """If a judge is named as the critic, raise an error that says how to use it, not which critic's name is nearest."""
    if name in judges.entries() and name not in critics.entries():
        raise UnknownName(
            f"'{name}' is a judge: it says which of two lines is better, and gives no scores. Score with it through "
            f"--critic win-tie --option judge={name} --option teacher=FILE, or measure it: humor-env audit --critic "
            f"{name}."
        )


def _estimate(name: str, options: Mapping[str, Any], lines: Sequence[Line], ledger: Path) -> str:
    with nothing_written(critics, name, options, ledger) as settings:
        critic = critics.make(name, **settings)
        estimate = getattr(critic, "estimate", None)
        if estimate is None:
            summary = f"{len(lines)} jokes; the critic '{name}' asks no language model and costs nothing."
            lines_for = getattr(getattr(critic, "teacher", None), "lines_for", None)
            unknown = sum(not lines_for(line.joke.prompt.id) for line in lines) if callable(lines_for) else 0
            return (
                f"{summary} {unknown} of them will fail: the teacher has no line for their prompts."
                if unknown
                else summary
            )
        return str(estimate([line.joke for line in lines]))
