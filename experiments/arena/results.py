"""The page of results as plain data: tables of text, charts, and notes.

view = results_view(store)          # for pages.render("results", **view)
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np
from markupsafe import Markup

from humor_env.experiments.arena import exports, figures
from humor_env.experiments.arena.sources import TEACHER
from humor_env.experiments.arena.store import Answered, Store
from humor_env.experiments.compare.stats import ELO, Interval
from humor_env.experiments.drawing.charts import Dot, Line, dot_chart, line_chart
from humor_env.rewards.audits.audit_stats import FEWEST
from humor_env.rewards.tournament import strengths

NAMES = {"humor": "funnier", "consistency": "keeps the meaning", "overall": "all in all"}


@dataclass(frozen=True)
class Table:
    title: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    caption: str = ""


def share(interval: Interval | None) -> str:
    """A share with its interval, in per cent."""
    if interval is None:
        return "–"
    bounds = "" if not math.isfinite(interval.low) else f" [{100 * interval.low:.0f}, {100 * interval.high:.0f}]"
    return f"{100 * interval.value:.0f} %{bounds}"


def with_bounds(interval: Interval | None, form: str = ".2f") -> str:
    """A number with its interval where there is one."""
    if interval is None:
        return "–"
    bounds = f" [{interval.low:{form}}, {interval.high:{form}}]" if math.isfinite(interval.low) else ""
    return f"{interval.value:{form}}{bounds}"


def results_view(store: Store) -> dict[str, Any]:
    answers = store.answers()
    questions = store.settings.questions
    votes = {q: figures.votes_of(store, q, answers) for q in questions}
    pairs = store.settings.mode == "pairs"
    first = votes[questions[0]]
    apart = figures.raters_drawn(first)
    return {
        "title": store.settings.title,
        "answers": len(answers),
        "facts": _facts(store, answers),
        "notes": _notes(store, first) if pairs else [],
        "owner": store.sign("owner"),
        "ratings_note": _ratings_note(apart) if pairs else "",
        "ratings": _ratings(store, votes) if pairs else _grades(store, answers),
        "raters": _raters(store, votes, answers),
        "critics": _critics(store, votes) if pairs else {"tables": [], "pictures": []},
        "critics_note": _critics_note(store) if pairs else "",
        "differ": _differ(store, first) if pairs else [],
        "course": _course(store, first) if pairs else {"tables": [], "pictures": []},
        "files": [(name, exports.ABOUT[name]) for name in exports.FILES],
        "reported": [
            [store.lines[place].text for place in (x.ask.a, x.ask.b) if place is not None]
            for x in answers
            if x.what == "offence"
        ],
    }


def _facts(store: Store, answers: Sequence[Answered]) -> str:
    raters = len({x.ask.rater for x in answers})
    answer_count = "1 answer" if len(answers) == 1 else f"{len(answers)} answers"
    sentence = f"{answer_count} from {raters} {'rater' if raters == 1 else 'raters'}"
    if answers:
        sentence += f", the last {datetime.fromtimestamp(answers[-1].at, UTC):%Y-%m-%d %H:%M} UTC"
    return sentence + (". The session is closed." if store.closed else ".")


def _notes(store: Store, votes: Sequence[figures.Vote]) -> list[str]:
    notes = []
    if not store.systems:
        notes.append("The pairs are blind: who wrote the lines is not known here, so no system is rated.")
    few = [name for name in store.systems if sum(name in (v.first, v.second) for v in votes) < 20]
    if votes and few:
        notes.append(f"Fewer than 20 answers are about {', '.join(few)}: their numbers are still very uncertain.")
    return notes


def _ratings_note(raters_too: bool) -> str:
    over = "sentences and raters" if raters_too else "sentences"
    more = (
        ""
        if raters_too
        else (f" With fewer than {figures.ENOUGH_RATERS} raters they do not say how other people would answer.")
    )
    return (
        "Bradley-Terry model, in points: 0 is the average system, and 400 points are ten times the odds. Intervals "
        f"are 95 %, over {over}.{more} A system judged on fewer than {FEWEST} sentences has none. "
        "A tier holds the systems whose intervals overlap that of its first; two of them may still differ."
    )


def _points(interval: Interval) -> str:
    return "–" if math.isinf(interval.low) else with_bounds(interval, "+.0f")


def _ratings(store: Store, votes: Mapping[str, Sequence[figures.Vote]]) -> dict[str, Any]:
    tables: list[Table] = []
    pictures: list[Markup] = []
    for question, question_votes in votes.items():
        rated = figures.ratings(question_votes, store.systems)
        name = NAMES[question].capitalize()
        rows = []
        for rating in rated:
            system = store.systems[rating.system]
            played = sum(system in (v.first, v.second) and v.first != v.second for v in question_votes)
            count, wins = figures.against_teacher(question_votes, system)
            rate = "–" if system == TEACHER else f"{share(wins)} of {count}"
            rows.append((system, str(rating.tier), _points(rating.points), rate, str(played)))
        head = ("system", "tier", "rating", "wins or ties against the teacher", "answers")
        tables.append(Table(name, head, rows))
        finite = [rating for rating in rated if not math.isinf(rating.points.low)]
        if finite:
            dots = [
                Dot(f"{store.systems[r.system]} (tier {r.tier})", r.points.value, r.points.low, r.points.high)
                for r in finite
            ]
            chart = dot_chart(dots, title=name, x_label="points", reference=0.0, digits=0)
            pictures.append(Markup(chart))
    return {"tables": tables, "pictures": pictures}


def _grades(store: Store, answers: Sequence[Answered]) -> dict[str, Any]:
    """Mean grades, if single lines were rated."""
    tables: list[Table] = []
    pictures: list[Markup] = []
    for question in store.settings.questions:
        rows, dots = [], []
        for system in store.systems or ("",):
            grades = [
                (float(x.replies[question]), store.lines[x.ask.a].prompt)
                for x in answers
                if question in x.replies and store.lines[x.ask.a].system == system and x.ask.again is None
            ]
            interval = figures.mean_interval(
                [grade for grade, _ in grades], [prompt for _, prompt in grades], highest=4
            )
            name = system or "all lines"
            if interval is None:
                rows.append((name, "–", "0"))
                continue
            rows.append((name, with_bounds(interval), str(len(grades))))
            dots.append(Dot(name, interval.value, interval.low, interval.high))
        title = f"Mean grade, 0 to 4: {NAMES[question]}"
        tables.append(Table(title, ("system", "grade", "answers"), rows))
        if dots:
            pictures.append(Markup(dot_chart(dots, title=title, x_label="grade", x_range=(0, 4))))
    return {"tables": tables, "pictures": pictures}


def _raters(store: Store, votes: Mapping[str, Sequence[figures.Vote]], answers: Sequence[Answered]) -> dict[str, Any]:
    tables: list[Table] = []
    if store.settings.mode == "pairs":
        shared: list[tuple[str, ...]] = []
        for question, question_votes in votes.items():
            agreed = figures.agreement(question_votes)
            shared.append(
                (
                    NAMES[question],
                    share(agreed.same),
                    str(agreed.decided),
                    share(agreed.equal),
                    str(agreed.pairs),
                    with_bounds(agreed.alpha),
                )
            )
        tables.append(
            Table(
                "Agreement between raters",
                ("question", "prefer the same line", "pairs", "same answer, ties too", "pairs", "alpha"),
                shared,
                "Two people on the same pair. The first share is of pairs on which both prefer a line.",
            )
        )
    question = store.settings.questions[0]
    rows = [
        (
            f"Rater {r.rater}",
            str(r.answers),
            str(r.skipped),
            str(r.reported),
            "–" if r.consistent is None else f"{100 * r.consistent:.0f} % of {r.repeated}",
            "–" if r.first is None else f"{100 * r.first:.0f} %",
            "–" if r.seconds is None else f"{r.seconds:.1f} s",
        )
        for r in figures.rater_figures(store, question, answers)
    ]
    head = ("rater", "answers", "skipped", "reported", "as before", "prefers line 1", "median time")
    note = "“As before”: repeated pairs, with sides swapped, that got the same answer to the first question."
    tables.append(Table("Each rater", head, rows, note))
    return {"tables": tables, "pictures": []}


def _critics_note(store: Store) -> str:
    if not figures.critics_of(store.lines):
        return (
            "There are no critics' scores. A run includes those of its own critics; add others with `humor-env "
            "rescore` before a session, or with --critic."
        )
    return (
        "How often a critic prefers the line that a single person prefers; equal scores count half. For comparison, on "
        "the pairs that several people judged: how often one person agrees with another, and the most that any critic "
        "could reach, given how much people differ."
    )


def _critics(store: Store, votes: Mapping[str, Sequence[figures.Vote]]) -> dict[str, Any]:
    tables: list[Table] = []
    pictures: list[Markup] = []
    for question, question_votes in votes.items():
        measured = figures.critic_figures(question_votes, store.lines)
        if not measured:
            continue
        people = figures.agreement(question_votes)
        rows = [(c.critic, share(c.agrees), str(c.pairs), share(c.agrees_shared), str(c.shared)) for c in measured]
        rows.append(("one person with another", "", "", share(people.same), str(people.decided)))
        rows.append(("ceiling: the best possible critic", "", "", share(people.ceiling), str(people.decided)))
        head = ("who", "agrees with a person", "pairs", "on pairs of several raters", "pairs")
        tables.append(Table(NAMES[question].capitalize(), head, rows))
        if question == store.settings.questions[0]:
            dots = [Dot(c.critic, c.agrees.value, c.agrees.low, c.agrees.high) for c in measured if c.agrees]
            for name, interval in (("one person", people.same), ("ceiling", people.ceiling)):
                if interval is not None:
                    dots.append(Dot(name, interval.value, interval.low, interval.high))
            if dots:
                title = "Agreement with a single person"
                pictures.append(Markup(dot_chart(dots, title=title, x_label="share of pairs", reference=0.5)))
    return {"tables": tables, "pictures": pictures}


def _differ(store: Store, votes: Sequence[figures.Vote]) -> list[dict[str, str]]:
    return [
        {
            "critic": difference.critic,
            "sentence": store.prompts[difference.prompt][1],
            "preferred": store.lines[difference.preferred].text,
            "named": store.lines[difference.named].text,
            "people": difference.people,
            "margin": f"by {difference.margin:.2f}",
        }
        for difference in figures.differences(votes, store.lines)
    ]


def _course(store: Store, votes: Sequence[figures.Vote]) -> dict[str, Any]:
    at = figures.places(len(votes))
    pictures = []
    if len(at) > 2 and len(store.systems) > 1:
        rows = np.stack([ELO * strengths(figures.games(votes[:count], store.systems)) for count in at])
        lines = [Line(name, at, rows[:, k].tolist()) for k, name in enumerate(store.systems)]
        pictures.append(Markup(line_chart(lines, title="Ratings", x_label="answers", y_label="points")))
    critics = figures.critics_of(store.lines)
    if len(at) > 2 and critics:
        after = [figures.agreement_of_critics(votes[:count], store.lines) for count in at]
        lines = [Line(name, at, [shares.get(name, math.nan) for shares in after]) for name in critics]
        pictures.append(
            Markup(line_chart(lines, title="Critics: agreement with people", x_label="answers", y_label="share"))
        )
    return {"tables": [], "pictures": pictures}
