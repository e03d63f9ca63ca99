"""Score a file of jokes with any critic; go on where it stopped; compare critics on a finished run.

    humor-env judge jokes.jsonl --critic scorer --option client=openai:m@http://127.0.0.1:8000/v1
    humor-env judge jokes.jsonl --critic scorer --dry-run          # what it would take
    humor-env rescore runs/ppo --critic rules                # and how far the two agree

A line of the file is an object with `prompt` (a text, or an object with id and text) and `text`. Judged lines are added
to the output as they come; started again, the command reads that file and judges what is missing or has failed.
Limits (--max-calls, --max-tokens, --max-cost) hold for the output file as a whole, restarts included.
"""

from __future__ import annotations

import argparse
import contextlib
import inspect
import json
import os
import sys
import tomllib
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

from humor_env.episode import checked_reply
from humor_env.errors import BudgetExceeded, CriticContractError, HumorEnvError, InvalidOption, PromptError
from humor_env.llm.desk import Progress
from humor_env.llm.ledger import Ledger
from humor_env.registry import critics
from humor_env.types import NO_USAGE, Critic, Joke, Judgement, Prompt, Usage, critic_name

TEXT_FIELDS = ("text", "joke", "line", "completion")


@dataclass(frozen=True, slots=True)
class Line:
    """One line of a file of jokes: its number from 1, the record as it stands there, the joke, and an older score."""

    number: int
    record: Mapping[str, Any]
    joke: Joke
    score: float | None


@dataclass(frozen=True, slots=True)
class Summary:
    """What came of a file. `resumed` lines were judged by an earlier call."""

    jokes: int
    resumed: int
    failed: int
    mean: float | None
    usage: Usage
    output: Path


@dataclass(frozen=True, slots=True)
class Agreement:
    """How far two critics agree on the jokes that both have scored. `pairs` are siblings that neither scores alike."""

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
            f"{shown(self.mean_before)} and {shown(self.mean_after)}; of {self.pairs} pairs of siblings, a share of "
            f"{shown(self.same_order)} is put in the same order"
        )


def read_jokes(path: Path) -> list[Line]:
    """The jokes of a JSONL file, or of the `jokes.jsonl` in a run's folder."""
    if path.is_dir():
        path = path / "jokes.jsonl"
    if not path.is_file():
        raise PromptError(f"There is no file '{path}'. Give a JSONL file, or a run's folder with a jokes.jsonl in it.")
    lines = []
    try:
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
    except ValueError as problem:
        raise PromptError(f"{path}, line {number}: not JSON ({problem}).") from None
    field = next((f for f in TEXT_FIELDS if isinstance(record, dict) and isinstance(record.get(f), str)), None)
    given = record.get("prompt") if isinstance(record, dict) else None
    if field is None or not isinstance(given, str | dict):
        raise PromptError(
            f"{path}, line {number}: expected an object with 'prompt' (a text, or an object with 'id' and 'text') and "
            f"'text'; found {row.strip()[:80]!r}."
        )
    shape: dict[str, Any] = {"text": given} if isinstance(given, str) else given
    text = shape.get("text")
    if not isinstance(text, str):
        raise PromptError(f"{path}, line {number}: the prompt has no 'text'; found {given!r}.")
    extra = shape.get("extra") or {}
    if not isinstance(extra, dict):
        raise PromptError(f"{path}, line {number}: the prompt's 'extra' is an object; found {extra!r}.")
    prompt = Prompt(
        str(shape.get("id") or record.get("prompt_id") or text),
        text,
        str(shape.get("task") or record.get("task") or "paraphrase"),
        str(shape.get("split") or record.get("split") or "train"),
        extra,
    )
    joke = Joke(prompt, record[field], str(record.get("author") or "student"), record.get("stop_reason"))
    older = record.get("judgement", {}) if isinstance(record.get("judgement"), dict) else {}
    score = record.get("score", older.get("score"))
    return Line(number, record, joke, float(score) if isinstance(score, int | float) else None)


def judge_file(
    lines: Sequence[Line],
    output: Path,
    critic: Critic,
    *,
    chunk: int = 256,
    on_chunk: Callable[[int, int, Usage], None] | None = None,
) -> Summary:
    """Judge what the output does not have yet. Each chunk is on disk before the next one is asked."""
    name = critic_name(critic)
    done = _resume(lines, output, name)
    resumed = len(done)
    todo = [line for line in lines if line.number not in done]
    usage = NO_USAGE
    output.parent.mkdir(parents=True, exist_ok=True)
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
        record["text"] = line.joke.text  # it stood where the number goes
    record["line"], record["critic"], record["judgement"] = line.number, name, asdict(judgement)
    return json.dumps(record)


def _resume(lines: Sequence[Line], output: Path, name: str) -> dict[int, float | None]:
    """Scores by line number that the output has already. Failed lines and a torn last line are taken out of it; a file
    that holds anything else is refused."""
    if not output.is_file():
        return {}
    by_number = {line.number: line for line in lines}
    kept: dict[int, float | None] = {}
    rows: list[str] = []
    found = output.read_text(encoding="utf-8", errors="replace").splitlines()
    for place, row in enumerate(found, start=1):
        try:
            record = json.loads(row)
        except ValueError:
            if place == len(found) and row.startswith("{"):
                continue  # the line that was being written when the process was killed
            record = None
        if not isinstance(record, dict) or not isinstance(record.get("judgement"), dict):
            raise InvalidOption(
                f"'{output}' is there already and holds no judgements (line {place}). Give another --output, or remove "
                "it."
            )
        line = by_number.get(record.get("line", 0))
        text = next((record[f] for f in TEXT_FIELDS if isinstance(record.get(f), str)), None)
        if line is None or text != line.joke.text or record.get("critic") != name:
            raise InvalidOption(
                f"'{output}' holds judgements of another file or another critic ({record.get('critic')!r}, not "
                f"{name!r}). Give another --output, or remove it."
            )
        score = record["judgement"]["score"]
        if score is not None and line.number not in kept:
            kept[line.number] = score
            rows.append(row)
    _replace(output, rows)
    return kept


def _sort(output: Path) -> None:
    """Back into the order of the source: lines that failed first were added later."""
    rows = output.read_text(encoding="utf-8").splitlines()
    _replace(output, sorted(rows, key=lambda row: int(json.loads(row)["line"])))


def _replace(path: Path, rows: Sequence[str]) -> None:
    beside = path.with_name(path.name + ".new")
    beside.write_text("".join(row + "\n" for row in rows), encoding="utf-8")
    beside.replace(path)


def agreement(lines: Sequence[Line], scores: Mapping[int, float | None]) -> Agreement:
    """Between the scores that the lines carry and new ones, by line number."""
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
    rows = (json.loads(row) for row in output.read_text(encoding="utf-8").splitlines())
    return {int(row["line"]): row["judgement"]["score"] for row in rows}


def make_critic(name: str, options: Mapping[str, Any], ledger: Path, scope: str, limits: Mapping[str, Any]) -> Critic:
    """The critic, with the ledger and the limits where it takes them."""
    known = _parameters(name)
    given = dict(options)
    limits = {limit: value for limit, value in limits.items() if value is not None}
    if "ledger" in known and "ledger" not in given:
        given["ledger"] = str(ledger)
    if limits:
        if "budget" not in known:
            raise InvalidOption(f"The critic '{name}' spends nothing: it takes no limits ({', '.join(limits)}).")
        given["budget"] = {**limits, "scope": scope}
    made: Critic = critics.make(name, **given)
    return made


def _parameters(name: str) -> Mapping[str, Any]:
    found = critics.resolve(name)
    if not callable(found):
        raise CriticContractError(f"The critic '{name}' is a {type(found).__name__}, which nobody can call.")
    return inspect.signature(found).parameters


@contextlib.contextmanager
def progress_bar(critic: Critic, total: int) -> Iterator[Callable[[int, int, Usage], None]]:
    """A bar on a terminal, a line per chunk elsewhere; with what was spent so far."""
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
            # Within a chunk: questions, of which a joke may take several.
            note = f"{_money(progress.usage)} in this chunk, {progress.failed} failed"
            bar.update(task, completed=finished + min(progress.done, total - finished), description=note)

        def chunk_done(done: int, _: int, usage: Usage) -> None:
            nonlocal finished
            finished = done
            bar.update(task, completed=done, description=_money(usage))

        desk = getattr(critic, "desk", None)
        if desk is not None:
            desk.on_progress = inside
        yield chunk_done


def _money(usage: Usage) -> str:
    cost = "cost unknown" if usage.cost is None else f"${usage.cost:.4f}"
    return f"{usage.calls} calls, {cost}"


def _options(pairs: Sequence[str]) -> dict[str, Any]:
    """`key=value`, the value in TOML (5, true, ["a"], {x = 1}) or, where that does not parse, a plain text."""
    found: dict[str, Any] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or not key:
            raise InvalidOption(f"An option is written key=value; found '{pair}'.")
        try:
            found[key] = tomllib.loads(f"value = {value}")["value"]
        except tomllib.TOMLDecodeError:
            found[key] = value
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line. Returns 0; 1 where the critic broke its contract, 2 for a mistake of the user's, 3 where a
    limit was reached."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    again = given[:1] == ["rescore"]
    parser = argparse.ArgumentParser(prog="judge", description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("file", type=Path, help="a JSONL file of jokes, or a run's folder")
    parser.add_argument("--critic", required=True, help="a registered name or package.module:name")
    parser.add_argument("--option", action="append", default=[], metavar="KEY=VALUE", help="an option of the critic")
    parser.add_argument("--output", type=Path, help="default: FILE.CRITIC.jsonl beside the file")
    parser.add_argument("--ledger", type=Path, help="default: the output with .ledger.sqlite")
    parser.add_argument("--max-calls", type=int)
    parser.add_argument("--max-tokens", type=int)
    parser.add_argument("--max-cost", type=float, help="US dollars")
    parser.add_argument("--chunk", type=int, default=256, help="jokes per call of the critic")
    parser.add_argument("--dry-run", action="store_true", help="estimate, and ask nothing")
    options = parser.parse_args(given[1:] if again else given)
    try:
        return _run(options, again)
    except BudgetExceeded as problem:
        print(f"{problem}\nWhat was judged is kept; the same command with a higher limit goes on.", file=sys.stderr)
        return 3
    except HumorEnvError as problem:
        print(str(problem), file=sys.stderr)
        return 1 if isinstance(problem, CriticContractError) else 2
    except KeyboardInterrupt:
        print("Stopped. What was judged is kept; the same command goes on.", file=sys.stderr)
        return 130


def _run(options: argparse.Namespace, again: bool) -> int:
    lines = read_jokes(options.file)
    source = options.file / "jokes.jsonl" if options.file.is_dir() else options.file
    plain = "".join(c if c.isalnum() or c in "-_" else "-" for c in options.critic)
    output = options.output or source.with_name(f"{source.stem}.{plain}.jsonl")
    ledger = options.ledger or output.with_name(output.name + ".ledger.sqlite")
    limits = {"max_calls": options.max_calls, "max_tokens": options.max_tokens, "max_cost": options.max_cost}
    if options.dry_run:
        print(_estimate(options, lines, ledger))
        return 0
    critic = make_critic(options.critic, _options(options.option), ledger, f"judge {output.name}", limits)
    with progress_bar(critic, len(lines)) as on_chunk:
        summary = judge_file(lines, output, critic, chunk=options.chunk, on_chunk=on_chunk)
    mean = "none" if summary.mean is None else f"{summary.mean:.3f}"
    print(
        f"{summary.jokes} jokes ({summary.resumed} from before), {summary.failed} failed, mean score {mean}, "
        f"{_money(summary.usage)} now; written to {summary.output}"
    )
    if again:
        print(agreement(lines, scores_of(output)))
    return 0


def _estimate(options: argparse.Namespace, lines: Sequence[Line], ledger: Path) -> str:
    given = _options(options.option)
    with contextlib.ExitStack() as stack:
        if "ledger" in _parameters(options.critic) and "ledger" not in given:
            # Nothing is written by an estimate: without a ledger from before, none is begun.
            given["ledger"] = stack.enter_context(Ledger(ledger if ledger.is_file() else ":memory:"))
            given["options"] = {**given.get("options", {}), "must_have_key": False}
        critic = critics.make(options.critic, **given)
        estimate = getattr(critic, "estimate", None)
        if estimate is None:
            return f"{len(lines)} jokes; the critic '{options.critic}' asks no language model and costs nothing."
        return str(estimate([line.joke for line in lines]))


if __name__ == "__main__":
    sys.exit(main())
