"""The results of a session: files that `audit`, `train-critic` and `reproduce` read, a table, and a card.

    for name, make in FILES.items(): Path(folder, name).write_text(make(store))

Raters are numbered, and repeats are only in the table. Empty lines are left out of the sets of pairs and ratings, which
cannot hold them. Cells of the table that a spreadsheet would run as a formula start with '.
"""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import humor_env
from humor_env.experiments.arena import figures
from humor_env.experiments.arena.sources import TEACHER
from humor_env.experiments.arena.store import Answered, Store
from humor_env.experiments.compare.stats import Interval
from humor_env.shared.markdown import table_cell
from humor_env.shared.spreadsheet import no_formula


def pairs_file(question: str) -> Callable[[Store], str]:
    """The set `pairs` of `humor-env audit` and `train-critic`: a row for each answer to this question."""

    def made(store: Store) -> str:
        rows = []
        for vote in figures.votes_of(store, question):
            a, b = store.lines[vote.a].text, store.lines[vote.b].text
            if a.strip() and b.strip():
                label = {1.0: "a", 0.0: "b"}.get(vote.share, "tie")
                row = {"id": str(vote.answer.ask.id), "prompt": store.prompts[vote.prompt][1], "a": a, "b": b}
                rows.append(row | {"label": label})
        return _json_lines(rows)

    return made


def ratings_file(store: Store) -> str:
    """The set `ratings`: a row for each grade of a line's humor; empty where pairs were judged."""
    rows = []
    for answer in _first_answers(store):
        line = store.lines[answer.ask.a]
        if answer.ask.b is None and "humor" in answer.replies and line.text.strip():
            row = {"id": str(answer.ask.a), "prompt": store.prompts[line.prompt][1], "text": line.text}
            rows.append(row | {"score": int(answer.replies["humor"]), "rater": str(answer.ask.rater), "kind": ""})
    return _json_lines(rows)


def people_file(store: Store) -> str:
    """What `humor-env reproduce --set people.who=` reads: a row for each answer to a pair, as it was shown."""
    rows = []
    for answer in _first_answers(store):
        if answer.ask.b is None or answer.what != "answer":
            continue
        a, b = store.lines[answer.ask.a], store.lines[answer.ask.b]
        first, second = (b, a) if answer.ask.turned else (a, b)
        id, text = store.prompts[a.prompt]
        row = {"prompt": id, "input": text, "first": first.text, "second": second.text, "rater": answer.ask.rater}
        rows.append(row | dict(answer.replies))
    return _json_lines(rows)


def table(store: Store) -> str:
    """Everything, a row for each answer."""
    out = io.StringIO()
    head = ["rater", "sentence_id", "sentence", "system_1", "system_2", "line_1", "line_2", "repeats", "what"]
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["answer", *head, "humor", "consistency", "overall", "seconds", "at"])
    for answer in store.answers():
        ask = answer.ask
        places = [ask.a] if ask.b is None else [ask.b, ask.a] if ask.turned else [ask.a, ask.b]
        lines = [store.lines[place] for place in places]
        id, text = store.prompts[lines[0].prompt]
        second = lines[1] if len(lines) > 1 else None
        row: list[object] = [ask.id, ask.rater, id, text, lines[0].system, second.system if second else ""]
        row += [lines[0].text, second.text if second else "", ask.again or "", answer.what]
        row += [answer.replies.get(q, "") for q in ("humor", "consistency", "overall")]
        row += [f"{answer.at - ask.at:.1f}", datetime.fromtimestamp(answer.at, UTC).isoformat(timespec="seconds")]
        writer.writerow([no_formula(cell) for cell in row])
    return out.getvalue()


def _first_answers(store: Store) -> Iterator[Answered]:
    return (answer for answer in store.answers() if answer.ask.again is None)


def _json_lines(rows: list[dict[str, Any]]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


# The card


def card_data(store: Store) -> dict[str, Any]:
    """The session in numbers: no names, no lines, no links."""
    answers = store.answers()
    settings = store.settings
    data: dict[str, Any] = {
        "title": settings.title,
        "mode": settings.mode,
        "questions": list(settings.questions),
        "chosen": settings.choose,
        "begun": _day(store.begun),
        "first answer": _day(answers[0].at) if answers else None,
        "last answer": _day(answers[-1].at) if answers else None,
        "closed": store.closed,
        "systems": list(store.systems),
        "sentences": len(store.prompts),
        "raters": len({x.ask.rater for x in answers}),
        "answers": sum(x.what == "answer" for x in answers),
        "skipped": sum(x.what == "skip" for x in answers),
        "reported": sum(x.what == "offence" for x in answers),
        "version": humor_env.__version__,
    }
    raters = figures.rater_figures(store, settings.questions[0], answers)
    repeats = sum(r.repeated for r in raters)
    data["repeats"] = repeats
    data["as before"] = sum((r.consistent or 0) * r.repeated for r in raters) / repeats if repeats else None
    if settings.mode == "pairs":
        data["about"] = {q: _about(store, q, answers) for q in settings.questions}
    return data


def _about(store: Store, question: str, answers: list[Answered]) -> dict[str, Any]:
    votes = figures.votes_of(store, question, answers)
    people = figures.agreement(votes)
    return {
        "ratings": [
            {"system": store.systems[r.system], "tier": r.tier} | _numbers(r.points)
            for r in figures.ratings(votes, store.systems)
        ],
        "wins or ties against the teacher": {
            name: {"answers": count} | _numbers(rate)
            for name in store.systems
            if name != TEACHER
            for count, rate in [figures.against_teacher(votes, name)]
            if count
        },
        "two people agree": {"pairs": people.decided} | _numbers(people.same),
        "alpha": {"pairs": people.pairs} | _numbers(people.alpha),
        "ceiling": _numbers(people.ceiling),
        "critics": {
            c.critic: {"pairs": c.pairs} | _numbers(c.agrees) for c in figures.critic_figures(votes, store.lines)
        },
    }


def _numbers(interval: Interval | None) -> dict[str, float | None]:
    if interval is None:
        return {"value": None, "low": None, "high": None}
    return {
        name: round(value, 4) if math.isfinite(value) else None
        for name, value in (("value", interval.value), ("low", interval.low), ("high", interval.high))
    }


def _day(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).date().isoformat()


def card_json(store: Store) -> str:
    return json.dumps(card_data(store), indent=1, allow_nan=False) + "\n"


def card(store: Store) -> str:
    """The card as Markdown."""
    data = card_data(store)
    about: Mapping[str, Any] = data.pop("about", {})
    rows = [f"# {data['title']}", "", "A blind session of `humor-env arena`.", "", "| | |", "|---|---|"]
    for name, value in data.items():
        if name != "title":
            cell = (
                ", ".join(value) if isinstance(value, list) else f"{value:.2f}" if isinstance(value, float) else value
            )
            rows.append(f"| {name} | {'–' if cell in (None, '') else table_cell(str(cell))} |")
    for question, numbers in about.items():
        rows += [
            "",
            f"## {question}",
            "",
            "| system | tier | rating | wins or ties against the teacher |",
            "|---|---|---|---|",
        ]
        for rating in numbers["ratings"]:
            wins = numbers["wins or ties against the teacher"].get(rating["system"])
            bounded = f"{_with_bounds(rating, 0)} | {_with_bounds(wins, 2)}"
            rows.append(f"| {table_cell(rating['system'])} | {rating['tier']} | {bounded} |")
        rows += ["", "| agreement with a single person | | pairs |", "|---|---|---|"]
        rows += [
            f"| {table_cell(name)} | {_with_bounds(c, 2)} | {c['pairs']} |" for name, c in numbers["critics"].items()
        ]
        people = numbers["two people agree"]
        rows.append(f"| one person with another | {_with_bounds(people, 2)} | {people['pairs']} |")
        rows.append(f"| ceiling | {_with_bounds(numbers['ceiling'], 2)} | {people['pairs']} |")
        rows.append(f"| Krippendorff's alpha | {_with_bounds(numbers['alpha'], 2)} | {numbers['alpha']['pairs']} |")
    return "\n".join(rows) + "\n"


def _with_bounds(figure: Mapping[str, Any] | None, digits: int) -> str:
    if figure is None or figure["value"] is None:
        return "–"
    if figure["low"] is None:
        return f"{figure['value']:.{digits}f}"
    return f"{figure['value']:.{digits}f} [{figure['low']:.{digits}f}, {figure['high']:.{digits}f}]"


FILES: dict[str, Callable[[Store], str]] = {
    "pairs.jsonl": pairs_file("humor"),
    "pairs-consistency.jsonl": pairs_file("consistency"),
    "ratings.jsonl": ratings_file,
    "people.jsonl": people_file,
    "answers.csv": table,
    "card.md": card,
    "card.json": card_json,
}
ABOUT = {
    "pairs.jsonl": "which line is funnier, for humor-env audit and train-critic (--data pairs)",
    "pairs-consistency.jsonl": "which line keeps the meaning, in the same form",
    "ratings.jsonl": "grades of single lines, for audit and train-critic (--data ratings)",
    "people.jsonl": "for humor-env reproduce --set people.who=people.jsonl",
    "answers.csv": "every answer as a table",
    "card.md": "the session in numbers, without names or lines",
    "card.json": "the same as data",
}


def write(store: Store, folder: Path) -> list[Path]:
    """Write all files that are not empty."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for name, make in FILES.items():
        text = make(store)
        if text:
            (folder / name).write_text(text, encoding="utf-8")
            paths.append(folder / name)
    return paths
