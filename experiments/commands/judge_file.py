"""Score a file of jokes with any critic; continue after a stop; compare critics on a finished run.

    humor-env judge jokes.jsonl --critic scorer --option client=openai:m@http://127.0.0.1:8000/v1
    humor-env judge jokes.jsonl --critic scorer --dry-run          # what it would take
    humor-env rescore runs/ppo --critic rules                      # and how far the two agree

A line of the file is an object with `prompt` (a text, or an object with id and text) and `text`; a CSV file has columns
of these names, and its judgements are a CSV file too. Judged lines are appended to the output as they come; if run
again, the command reads that file and judges what is missing or failed. Limits (--max-calls, --max-tokens, --max-cost)
apply to the output file as a whole, restarts included.
"""

from __future__ import annotations

import contextlib
import csv
import json
import math
import os
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Any

from humor_env.episodes.episode import checked_reply
from humor_env.errors import InvalidOption, PromptError, UnknownName
from humor_env.experiments.options import fill, ledger_if_used, nothing_written
from humor_env.llm.ledgered_client import Progress
from humor_env.registry import critics, judges
from humor_env.shared.line_file import only_writer
from humor_env.sources.prompt_files import rows as table_rows
from humor_env.types import NO_USAGE, Critic, Joke, Judgement, Prompt, Usage, critic_name

TEXT_FIELDS = ("text", "joke", "line", "completion")


@dataclass(frozen=True, slots=True)
class Line:
    """One line of a file of jokes: its number from 1, the record as it was read, the joke, and an older score."""

    number: int
    record: Mapping[str, Any]
    joke: Joke
    score: float | None


@dataclass(frozen=True, slots=True)
class Summary:
    """The result for a file. `resumed` lines were judged by an earlier call."""

    jokes: int
    resumed: int
    failed: int
    mean: float | None
    usage: Usage
    output: Path


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


def read_jokes(path: Path) -> list[Line]:
    """The jokes of a JSONL or CSV file, or of the `jokes.jsonl` in a run's folder."""
    if path.is_dir():
        path = path / "jokes.jsonl"
    if not path.is_file():
        raise PromptError(f"There is no file '{path}'. Give a JSONL file, or a run's folder with a jokes.jsonl in it.")
    lines = []
    try:
        if path.suffix == ".csv":
            lines = [_joke(f"{path}, {place}", n, row) for n, (place, _, row) in enumerate(table_rows(str(path)), 1)]
        else:
            with path.open(encoding="utf-8") as file:
                for number, row in enumerate(file, start=1):
                    if row.strip():
                        lines.append(_line(path, number, row))
    except UnicodeDecodeError as problem:
        byte = problem.object[problem.start]
        raise PromptError(f"'{path}' is not UTF-8 (byte 0x{byte:02x}). Save it as UTF-8.") from None
    if not lines:
        raise PromptError(f"'{path}' holds no jokes.")
    return lines


def _line(path: Path, number: int, row: str) -> Line:
    try:
        record = json.loads(row)
    except (ValueError, RecursionError) as problem:
        raise PromptError(f"{path}, line {number}: not JSON ({problem}).") from None
    return _joke(f"{path}, line {number}", number, record)


def _joke(place: str, number: int, record: Any) -> Line:
    field = next((f for f in TEXT_FIELDS if isinstance(record, dict) and isinstance(record.get(f), str)), None)
    prompt_fields = record.get("prompt") if isinstance(record, dict) else None
    if field is None or not isinstance(prompt_fields, str | dict):
        raise PromptError(
            f"{place}: expected an object with 'prompt' (a text, or an object with 'id' and 'text') and 'text', or a "
            f"table with columns of these names; found {str(record)[:80]!r}."
        )
    shape: dict[str, Any] = {"text": prompt_fields} if isinstance(prompt_fields, str) else prompt_fields
    text = shape.get("text")
    if not isinstance(text, str):
        raise PromptError(f"{place}: the prompt has no 'text'; found {prompt_fields!r}.")
    extra = shape.get("extra") or {}
    if not isinstance(extra, dict):
        raise PromptError(f"{place}: the prompt's 'extra' is an object; found {extra!r}.")
    prompt = Prompt(
        str(shape.get("id") or record.get("prompt_id") or text),
        text,
        str(shape.get("task") or record.get("task") or "paraphrase"),
        str(shape.get("split") or record.get("split") or "train"),
        extra,
    )
    joke = Joke(prompt, record[field], str(record.get("author") or "student"), record.get("stop_reason"))
    older = record.get("judgement", {}) if isinstance(record.get("judgement"), dict) else {}
    return Line(number, record, joke, _score(record.get("score", older.get("score"))))


def _score(value: Any) -> float | None:
    """The score as a number; in a table it is a string."""
    try:
        score = float(value) if isinstance(value, int | float | str) else math.nan
    except (ValueError, OverflowError):
        return None
    return score if math.isfinite(score) else None


def judge_file(
    lines: Sequence[Line],
    output: Path,
    critic: Critic,
    *,
    chunk: int = 256,
    on_chunk: Callable[[int, int, Usage], None] | None = None,
) -> Summary:
    """Judge the lines that the output does not have yet. Each chunk is on disk before the next one is judged. Raises
    InvalidOption if another process is writing the same output. A .csv output is written at the end, from a JSONL file
    next to it."""
    output.parent.mkdir(parents=True, exist_ok=True)
    kept = _kept(output)
    refusal = f"'{output}' is being written by another humor-env: wait for it, or give another --output."
    with only_writer(kept.with_name(kept.name + ".lock"), refusal):
        if kept != output and output.is_file() and not kept.is_file():
            raise InvalidOption(f"'{output}' already exists. Give another --output, or remove it.")
        summary = _judge_missing(lines, kept, critic, chunk, on_chunk)
        if kept != output:
            _write_table(kept, output)
        return replace(summary, output=output)


def _kept(output: Path) -> Path:
    """The file to which judgements are appended; a table cannot be extended and resumed as safely."""
    return output.with_suffix(".jsonl") if output.suffix == ".csv" else output


def _judge_missing(
    lines: Sequence[Line],
    output: Path,
    critic: Critic,
    chunk: int,
    on_chunk: Callable[[int, int, Usage], None] | None,
) -> Summary:
    name = critic_name(critic)
    done = _resume(lines, output, name)
    resumed = len(done)
    todo = [line for line in lines if line.number not in done]
    usage = NO_USAGE
    with output.open("a", encoding="utf-8") as file:
        for start in range(0, len(todo), chunk):
            part = todo[start : start + chunk]
            judgements = checked_reply(critic, name, [line.joke for line in part])
            for line, judgement in zip(part, judgements, strict=True):
                done[line.number] = judgement.score
                usage += judgement.usage
                file.write(_judged(line, judgement, name) + "\n")
            file.flush()
            os.fsync(file.fileno())
            if on_chunk is not None:
                on_chunk(len(done), len(lines), usage)
    _sort(output)
    scores = [score for score in done.values() if score is not None]
    mean = sum(scores) / len(scores) if scores else None
    return Summary(len(lines), resumed, len(done) - len(scores), mean, usage, output)


def _judged(line: Line, judgement: Judgement, name: str) -> str:
    record = dict(line.record)
    if "judgement" in record:
        record["before"] = record.pop("judgement")
    if record.get("line") == line.joke.text:
        record["text"] = line.joke.text  # its field now holds the number
    record["line"], record["critic"], record["judgement"] = line.number, name, asdict(judgement)
    return json.dumps(record)


def _resume(lines: Sequence[Line], output: Path, name: str) -> dict[int, float | None]:
    """The scores by line number that the output already has. Failed lines and a torn last line are removed from it; a
    file that holds anything else is refused."""
    if not output.is_file():
        return {}
    by_number = {line.number: line for line in lines}
    kept: dict[int, float | None] = {}
    rows: list[str] = []
    written = output.read_text(encoding="utf-8", errors="replace").splitlines()
    for place, row in enumerate(written, start=1):
        try:
            record = json.loads(row)
        except (ValueError, RecursionError):
            if place == len(written) and row.startswith("{"):
                continue  # the line that was being written when the process was killed
            record = None
        if not _is_judged(record):
            raise InvalidOption(
                f"'{output}' exists and holds no judgements (line {place}). Give another --output, or remove it."
            )
        line = by_number.get(record.get("line", 0))
        text = next((record[f] for f in TEXT_FIELDS if isinstance(record.get(f), str)), None)
        if line is None or text != line.joke.text or record.get("critic") != name:
            raise InvalidOption(
                f"'{output}' holds judgements of another file or another critic ({record.get('critic')!r}, not "
                f"{name!r}). Give another --output, or remove it."
            )
        score = _score(record["judgement"]["score"])
        if score is not None and line.number not in kept:
            kept[line.number] = score
            rows.append(row)
    _replace(output, rows)
    return kept


def _is_judged(record: Any) -> bool:
    """Whether this command could have written this record: a score out of range or of another type is refused."""
    judgement = record.get("judgement") if isinstance(record, dict) else None
    if not isinstance(judgement, dict) or "score" not in judgement or type(record.get("line")) is not int:
        return False
    score = judgement["score"]
    return score is None or (type(score) in (int, float) and 0 <= score <= 1)


def _sort(output: Path) -> None:
    """Restore the order of the source: lines that failed at first were added later."""
    rows = output.read_text(encoding="utf-8").splitlines()
    _replace(output, sorted(rows, key=lambda row: int(json.loads(row)["line"])))


def _replace(path: Path, rows: Sequence[str]) -> None:
    temporary = path.with_name(path.name + ".new")
    temporary.write_text("".join(row + "\n" for row in rows), encoding="utf-8")
    temporary.replace(path)


def _write_table(kept: Path, output: Path) -> None:
    """The judgements as CSV, for spreadsheets: the columns of the source, then critic, score, reason and error."""
    records = [json.loads(row) for row in kept.read_text(encoding="utf-8").splitlines()]
    ours = ("critic", "score", "reason", "error")
    columns = dict.fromkeys(n for record in records for n in record if n not in (*ours, "line", "judgement", "before"))
    temporary = output.with_name(output.name + ".new")
    # With a byte order mark, by which spreadsheets recognise UTF-8.
    with temporary.open("w", encoding="utf-8-sig", newline="") as file:
        table = csv.writer(file)
        table.writerow([*columns, *ours])
        for record in records:
            verdict = {"critic": record["critic"], **{name: record["judgement"].get(name) for name in ours[1:]}}
            table.writerow([_cell(record.get(name)) for name in columns] + [_cell(verdict[name]) for name in ours])
    temporary.replace(output)


def _cell(value: Any) -> Any:
    return json.dumps(value) if isinstance(value, dict | list) else value


def agreement(lines: Sequence[Line], scores: Mapping[int, float | None]) -> Agreement:
    """The agreement between the scores that the lines have and new ones by line number."""
    both = [(line, line.score, scores.get(line.number)) for line in lines]
    known = [(line, old, new) for line, old, new in both if old is not None and new is not None]
    old_scores, new_scores = [old for _, old, _ in known], [new for _, _, new in known]
    groups: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for line, old, new in known:
        groups[line.joke.prompt.id].append((old, new))
    signs = [
        (a[0] - b[0]) * (a[1] - b[1]) > 0
        for group in groups.values()
        for a, b in combinations(group, 2)
        if a[0] != b[0] and a[1] != b[1]
    ]
    return Agreement(
        len(known),
        _spearman(old_scores, new_scores),
        len(signs),
        sum(signs) / len(signs) if signs else None,
        sum(old_scores) / len(known) if known else None,
        sum(new_scores) / len(known) if known else None,
    )


def _spearman(first: Sequence[float], second: Sequence[float]) -> float | None:
    if len(first) < 3 or len(set(first)) < 2 or len(set(second)) < 2:
        return None
    from scipy.stats import spearmanr

    return float(spearmanr(first, second).statistic)


def scores_of(output: Path) -> dict[int, float | None]:
    records = (json.loads(row) for row in _kept(output).read_text(encoding="utf-8").splitlines())
    return {int(record["line"]): record["judgement"]["score"] for record in records}


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
    output = output or source.with_name(f"{source.stem}.{plain}{'.csv' if source.suffix == '.csv' else '.jsonl'}")
    ledger = ledger or output.with_name(output.name + ".ledger.sqlite")
    if dry_run:
        print(_estimate(name, options, lines, ledger))
        return
    filled = fill(critics, name, options, ledger=ledger, limits=limits or {}, scope=f"judge {output.name}")
    with ledger_if_used(ledger):
        critic: Critic = critics.make(name, **filled)
    with progress_bar(critic, len(lines)) as on_chunk:
        summary = judge_file(lines, output, critic, chunk=chunk, on_chunk=on_chunk)
    mean = "none" if summary.mean is None else f"{summary.mean:.3f}"
    print(
        f"{summary.jokes} jokes ({summary.resumed} from before), {summary.failed} failed, mean score {mean}, "
        f"{_money(summary.usage)} now; written to {summary.output}"
    )
    if compare:
        print(agreement(lines, scores_of(output)))


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
