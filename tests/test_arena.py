"""The arena: what raters are asked, what is kept, what cannot be answered, and what the figures say."""

import asyncio
import csv
import http.client
import io
import json
import math
import os
import resource
import socket
import stat
import threading
from collections import Counter
from itertools import combinations
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from arena_sessions import Server, Taste, Visitor, code, served, simulate, write_lines
from report_runs import HOSTILE, make_run
from typer.testing import CliRunner

from humor_env.errors import InvalidOption, PromptError
from humor_env.experiments.arena import choice, exports, figures, results
from humor_env.experiments.arena.results import results_view
from humor_env.experiments.arena.server import open_socket
from humor_env.experiments.arena.session import Arena, Limiter
from humor_env.experiments.arena.sources import gather
from humor_env.experiments.arena.store import Settings, Store
from humor_env.experiments.commands.cli import app
from humor_env.experiments.upkeep.arena_trials import judged as judged_by_chance
from humor_env.rewards.tournament import strengths

TASTE = {"good": 2.0, "fair": 0.5, "weak": -1.0, "teacher": 1.0}


def session(folder, systems=tuple(TASTE), prompts=40, raters=2, text=None, **settings):
    material = gather([], [str(write_lines(folder / "lines.jsonl", systems, prompts, text))])
    return Store.create(folder / "arena.sqlite", material, Settings(**settings), raters)


def links(arena, address):
    return [f"{address}/r/{arena.store.token(rater.id)}" for rater in arena.store.raters()]


def kept(store):
    """All that a rater could have changed."""
    return [(x.ask, x.what, dict(x.replies)) for x in store.answers()]


# What is shown


def test_a_run_gives_its_stages_with_the_scores_of_its_critics(tmp_path):
    run = make_run(tmp_path / "some", seeds=2, prompts=5)
    found = gather([run])
    assert found.systems == ("base", "imitation", "ppo")
    assert len(found.prompts) == 5
    assert {critic for line in found.lines for critic in line.scores} == {"pocket"}
    assert gather([run], teacher=True).systems == ("base", "imitation", "ppo", "teacher")
    assert gather([run], teacher=True, systems=["ppo", "teacher"]).systems == ("ppo", "teacher")
    other = make_run(tmp_path / "other", seeds=1, prompts=5)
    assert gather([run, other], teacher=True, systems=["some/ppo", "other/ppo", "teacher"]).systems[-1] == "teacher"
    with pytest.raises(InvalidOption, match="Did you mean 'ppo'"):
        gather([run], systems=["pp0"])


def test_files_of_lines_of_a_buffer_and_of_pairs(tmp_path):
    prompt = {"id": "p1", "text": "The  Bus was late.", "task": "paraphrase", "split": "test", "extra": {}}
    (tmp_path / "buffer.jsonl").write_text(json.dumps({"prompt": prompt, "text": "Snails passed it.", "source": "x"}))
    (tmp_path / "mine.jsonl").write_text(
        json.dumps({"prompt": "the bus was late.", "text": "It had retired.", "author": "me"})
    )
    found = gather([], [f"teacher={tmp_path / 'buffer.jsonl'}", str(tmp_path / "mine.jsonl")], teacher=True)
    assert [(line.system, line.text) for line in found.lines] == [
        ("teacher", "Snails passed it."),
        ("me", "It had retired."),
    ]
    assert list(found.prompts.values()) == [("p1", "The  Bus was late.")]  # the same sentence is one prompt
    pair = {"prompt": "p1", "input": "The bus was late.", "first": "It had retired.", "second": "Other.", "overall": ""}
    (tmp_path / "people.jsonl").write_text(json.dumps(pair) + "\n")
    blind = gather([], [str(tmp_path / "people.jsonl")])
    assert (blind.systems, blind.plan, blind.asks_overall) == ((), [(0, 1)], True)
    known = gather([], [str(tmp_path / "mine.jsonl")], plan=tmp_path / "people.jsonl")
    assert [known.lines[place].system for place in known.plan[0]] == ["me", ""]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{", "line 1: not JSON"),
        ("[1]", "expected an object, found list"),
        ('{"text": "x"}', "line 1: not a line to judge"),
        ('{"prompt": "x", "text": 3}', "'text' is not a string"),
        ('{"prompt": "caf\xe9", "text": "x"}', "lines.jsonl' is not UTF-8 text"),
        ("", "There is nothing to judge"),
        ('{"prompt": "a", "text": "b", "author": "x"}\n{"prompt": "c", "text": "d", "author": "y"}', "no prompt in"),
    ],
)
def test_a_file_that_cannot_be_judged_is_told(tmp_path, content, said):
    (tmp_path / "lines.jsonl").write_text(content, encoding="latin-1")
    with pytest.raises((PromptError, InvalidOption), match=said):
        gather([], [str(tmp_path / "lines.jsonl")])


def test_half_a_surrogate_pair_can_be_kept_and_shown(tmp_path):
    rows = [{"prompt": "a b", "text": "x \ud800", "author": name} for name in "ab"]
    rows[1]["text"] = "y"
    (tmp_path / "lines.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    store = Store.create(tmp_path / "s", gather([], [str(tmp_path / "lines.jsonl")]), Settings())
    assert store.lines[0].text == "x \ufffd"
    store.close()


# What is asked


def test_sides_are_balanced_systems_meet_and_pairs_come_again_turned(tmp_path):
    store = session(tmp_path, raters=8, per_rater=60)
    simulate(store, Taste(TASTE), 8 * 60)
    asks = store.asks()
    fresh = [ask for ask in asks if ask.again is None]
    turned = np.mean([ask.turned for ask in fresh])
    assert abs(turned - 0.5) < 3 * 0.5 / math.sqrt(len(fresh))
    by_id = {ask.id: ask for ask in asks}
    repeats = [ask for ask in asks if ask.again is not None]
    assert len(repeats) == 8 * 6  # each tenth
    for ask in repeats:
        old = by_id[ask.again]
        assert (old.a, old.b, old.rater, old.turned) == (ask.a, ask.b, ask.rater, not ask.turned)
    systems = Counter(frozenset((store.lines[a.a].system, store.lines[a.b].system)) for a in fresh)
    assert len(systems) == 6 and min(systems.values()) >= 5 and all(len(s) == 2 for s in systems)
    assert all(store.lines[a.a].prompt == store.lines[a.b].prompt for a in fresh)
    for rater in range(1, 9):
        own = [(a.a, a.b) for a in fresh if a.rater == rater]
        assert len(set(own)) == len(own) == 54  # nobody is asked the same twice, but for repeats
    shared = Counter((a.a, a.b) for a in fresh)
    assert sum(count > 1 for count in shared.values()) > 60  # so agreement can be known
    store.close()


def test_a_plan_is_followed_by_everybody_each_in_an_order_of_their_own(tmp_path):
    plan = [{"prompt": f"s{n}", "input": f"Sentence {n}.", "first": f"A {n}", "second": f"B {n}"} for n in range(12)]
    (tmp_path / "plan.jsonl").write_text("".join(json.dumps(row) + "\n" for row in plan))
    settings = Settings(choose="plan", repeats=0, questions=("humor",))
    store = Store.create(tmp_path / "s", gather([], [str(tmp_path / "plan.jsonl")]), settings, 2)
    simulate(store, lambda texts: "first" if texts[0][0] == "A" else "second", 24)
    orders = [[(a.a, a.b) for a in store.asks() if a.rater == rater] for rater in (1, 2)]
    assert orders[0] != orders[1] and set(orders[0]) == set(orders[1]) and len(orders[0]) == 12
    assert Arena(store).ask_of(1) is None
    assert {(r["first"][0], r["humor"]) for r in map(json.loads, exports.people_file(store).splitlines())} == {
        ("A", "first"),
        ("B", "second"),
    }
    store.close()


def test_the_same_line_of_two_systems_is_never_asked(tmp_path):
    store = session(tmp_path, ("a", "b"), 12, text=lambda name, n: f"Line {n if n % 2 else (name, n)}", repeats=0)
    arena = Arena(store)
    for _ in range(6):
        ask = arena.ask_of(1)
        assert store.lines[ask.a].text != store.lines[ask.b].text
        arena.answer(1, ask.nonce, {"humor": "tie", "consistency": "tie"})
    assert arena.ask_of(1) is None
    store.close()


def test_what_tells_most_is_asked_by_hand():
    """Two equal systems far above a third one, all met equally often: the gap to the third is known worst, so a game
    with it tells most, until so many of those are on their way that the other gap is the wider one."""
    wins = np.array([[0.0, 10, 20], [10, 0, 20], [0, 0, 0]])
    gains = choice.expected_gains(wins)
    assert min(gains[0, 2], gains[1, 2]) > gains[0, 1] > 0
    asked = np.zeros((3, 3))
    asked[0, 2] = asked[2, 0] = asked[1, 2] = asked[2, 1] = 1000
    gains = choice.expected_gains(wins, asked)
    assert gains[0, 1] > gains[0, 2]


def test_the_adaptive_choice_needs_at_most_sixty_of_a_hundred_answers():
    """With one system far below four others, as an untrained base is. docs/arena.md has ten seeds of five tastes, and
    says for which there is less to gain."""
    taste = {"base": 0.0, "imitation": 3.0, "dpo": 4.0, "ppo": 4.5, "teacher": 5.5}
    goal = np.mean([judged_by_chance(taste, "random", 300, seed=seed)[1] for seed in range(3)])
    took = [judged_by_chance(taste, "adaptive", 900, goal, seed)[0] for seed in range(3)]
    assert np.mean(took) <= 0.6 * 300


def test_the_order_of_five_systems_of_known_taste_is_recovered(tmp_path):
    taste = {"a": -1.6, "b": -0.8, "c": 0.0, "d": 0.8, "teacher": 1.6}
    store = session(tmp_path, tuple(taste), 100, raters=6, per_rater=150, repeats=0.1)
    simulate(store, Taste(taste, ties=0.1), 450)
    rated = figures.ratings(figures.votes_of(store, "humor"), store.systems)
    assert [store.systems[one.system] for one in rated] == ["teacher", "d", "c", "b", "a"]
    for one in rated:
        # A tenth of ties draws strengths together a little: by 1 / (1 + 0.1 / (0.9 · 2 p (1 - p) …)), under a fifth.
        truth = figures.ELO * taste[store.systems[one.system]]
        assert one.points.low - 80 < truth < one.points.high + 80
    assert rated[0].tier == 1 and rated[-1].tier >= 3
    store.close()


# What the figures say


def naive_ratings(votes, systems):
    """The posterior by coordinate ascent with bisection: slow, and nothing in common with Newton's method."""
    t = dict.fromkeys(systems, 0.0)

    def slope(name, at):
        found = 0.5 - 1 / (1 + math.exp(-at))
        for v in votes:
            if name in (v.first, v.second):
                other = t[v.second if v.first == name else v.first]
                found += (v.share if v.first == name else 1 - v.share) - 1 / (1 + math.exp(other - at))
        return found

    for _ in range(200):
        for name in systems:
            low, high = -20.0, 20.0
            for _ in range(60):
                middle = (low + high) / 2
                low, high = (middle, high) if slope(name, middle) > 0 else (low, middle)
            t[name] = low
    return t


def naive_alpha(items):
    """Krippendorff's alpha from the matrix of coincidences, as his paper has it, with squared differences."""
    values = sorted({v for item in items for v in item})
    matrix = {(c, k): 0.0 for c in values for k in values}
    for item in items:
        for i, j in ((i, j) for i in range(len(item)) for j in range(len(item)) if i != j):
            matrix[item[i], item[j]] += 1 / (len(item) - 1)
    totals = {c: sum(matrix[c, k] for k in values) for c in values}
    n = sum(totals.values())
    observed = sum(m * (c - k) ** 2 for (c, k), m in matrix.items())
    expected = sum(totals[c] * totals[k] * (c - k) ** 2 for c in values for k in values) / (n - 1)
    return 1 - observed / expected


@pytest.fixture
def judged(tmp_path):
    store = session(tmp_path, raters=4, per_rater=60, overlap=0.5)
    simulate(store, Taste(TASTE, ties=0.2), 200)
    yield store
    store.close()


def test_ratings_equal_an_independent_fit(judged):
    votes = figures.votes_of(judged, "humor")[:60]
    rated = figures.ratings(votes, judged.systems)
    truth = naive_ratings(votes, judged.systems)
    for one in rated:
        assert one.points.value == pytest.approx(figures.ELO * truth[judged.systems[one.system]], abs=1e-3)


def test_many_fits_at_once_equal_single_ones():
    random = np.random.default_rng(0)
    wins = random.poisson(3.0, size=(20, 4, 4)).astype(float)
    wins[0, 1:, 0] = 0.0  # one that always wins
    wins[:, np.arange(4), np.arange(4)] = 0.0
    found = figures.many_strengths(wins, np.zeros(4))
    for one, many in zip(wins, found, strict=True):
        np.testing.assert_allclose(many, strengths(one), atol=1e-8)


def test_agreement_equals_an_independent_computation(judged):
    said = {}
    for answer in judged.answers():
        ask = answer.ask
        if ask.again is None and answer.what == "answer":
            side = answer.replies["humor"]
            preferred = {"first": ask.b if ask.turned else ask.a, "second": ask.a if ask.turned else ask.b}.get(side)
            said.setdefault((ask.a, ask.b), []).append(preferred)
    several = {pair: own for pair, own in said.items() if len(own) > 1}
    equal, same = [], []
    for own in several.values():
        couples = list(combinations(own, 2))
        equal.append(sum(x == y for x, y in couples) / len(couples))
        firm = list(combinations([x for x in own if x is not None], 2))
        if firm:
            same.append(sum(x == y for x, y in firm) / len(firm))
    found = figures.agreement(figures.votes_of(judged, "humor"))
    assert found.pairs == len(several) > 20 and found.decided == len(same)
    assert found.equal.value == pytest.approx(np.mean(equal), abs=1e-12)
    assert found.same.value == pytest.approx(np.mean(same), abs=1e-12)
    assert found.same.low < found.same.value < found.same.high
    items = [[0.5 if x is None else float(x == pair[0]) for x in own] for pair, own in several.items()]
    assert found.alpha.value == pytest.approx(naive_alpha(items), abs=1e-12)
    assert found.alpha.low < found.alpha.value < found.alpha.high
    assert found.ceiling.value == pytest.approx(0.5 + math.sqrt((np.mean(same) - 0.5) / 2), abs=1e-12)


def vote(rater, prompt, share=1.0, first="x", second="y"):
    place = 2 * int(prompt)
    return figures.Vote(rater, place, place + 1, first, second, prompt, share, None)


def unknown(interval):
    return math.isfinite(interval.value) and math.isnan(interval.low) and math.isnan(interval.high)


def test_answers_about_few_sentences_give_no_intervals_and_one_tier():
    """Two answers about one sentence made two tiers and an alpha of [0, 0]."""
    for count in (1, 9):
        votes = [vote(rater, str(n), share) for n in range(count) for rater, share in ((1, 1.0), (2, 1.0 - n % 2))]
        rated = figures.ratings(votes, ["x", "y", "z"])
        assert [one.tier for one in rated] == [1, 1, 1] and rated[0].points.value > 0
        assert [unknown(one.points) for one in rated if one.system != 2] == [True, True]
        assert next(one.points for one in rated if one.system == 2) == figures.Interval(0.0, -math.inf, math.inf)
    assert unknown(figures.agreement(votes).alpha)
    more = [vote(rater, str(n), share) for n in range(12) for rater, share in ((1, 1.0), (2, 1.0 - n % 2))]
    assert figures.agreement(more).alpha.low < figures.agreement(more).alpha.high
    assert [one.tier for one in figures.ratings([vote(1, str(n)) for n in range(30)], ["x", "y"])] == [1, 2]


def test_raters_who_always_agree_may_not_by_the_rule_of_three():
    """By hand: 30 pairs, half for each line. The variance of the 60 answers is 15/59, so two of different pairs differ
    by 30/59 squared on average; if the two raters differ by 1 on 3 of 30 pairs, alpha is 1 - 0.1 / (30/59)."""
    votes = [vote(rater, str(n), float(n % 2)) for n in range(30) for rater in (1, 2)]
    alpha = figures.agreement(votes).alpha
    assert (alpha.value, alpha.high) == (1.0, 1.0) and alpha.low == pytest.approx(1 - 0.1 * 59 / 30)


def test_what_has_no_interval_is_shown_without_one():
    """Alpha was printed as "0.00 [nan, nan]"; a mean grade of 3 out of 4 had the interval [2.70, 1.00]."""
    nothing = figures.Interval(0.5, math.nan, math.nan)
    assert results.with_bounds(nothing) == "0.50" and results.with_bounds(None) == "–"
    assert results.with_bounds(figures.Interval(0.5, 0.25, 1.0)) == "0.50 [0.25, 1.00]"
    assert results._points(nothing) == "+0" and results._points(figures.Interval(0, -math.inf, math.inf)) == "–"
    grades = figures.mean_interval([3.0] * 30, [str(n) for n in range(30)], highest=4)
    assert (grades.low, grades.value, grades.high) == pytest.approx((2.6, 3.0, 3.4))


def test_a_score_that_is_no_number_is_none(tmp_path):
    """A NaN in a file counted as a preference for the second line of a pair."""
    rows = [
        {"prompt": f"Sentence {n}.", "text": f"{name} {n}", "author": name, "score": score, "critic": "c"}
        for n, pair in enumerate([(math.nan, 0.1), (math.inf, 0.1), (True, 0.1), (0.9, 0.1)])
        for name, score in zip("ab", pair, strict=True)
    ]
    (tmp_path / "lines.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    lines = gather([], [str(tmp_path / "lines.jsonl")]).lines
    assert [line.scores for line in lines if line.system == "a"] == [{}, {}, {}, {"c": 0.9}]
    [found] = figures.critic_figures([vote(1, str(n), 0.0) for n in range(4)], lines)
    assert (found.pairs, found.agrees.value) == (1, 0.0)
    # One that a session of an earlier version has kept.
    old = [figures.Line("p", "a", "x", {"c": math.nan}), figures.Line("p", "b", "y", {"c": 0.1})]
    assert figures.critic_figures([vote(1, "0", 0.0)], old)[0].agrees is None


def test_a_bar_in_a_name_does_not_break_the_card(tmp_path):
    store = session(tmp_path, ("a|b", "teacher"), 12, raters=2, repeats=0, questions=("humor",))
    simulate(store, lambda texts: "first", 24)
    rows = [line for line in exports.card(store).splitlines() if "a\\|b" in line]
    assert [row.replace("\\|", "").count("|") for row in rows] == [3, 5]  # the list of systems, and its rating
    store.close()


def test_the_ceiling_by_hand():
    """Where nine of ten prefer one line of each pair, two people agree on 0.81 + 0.01 of the pairs, and the best critic
    with 0.9; with coins, nobody beats a coin."""
    assert figures.ceiling(0.82) == pytest.approx(0.9)
    assert figures.ceiling(0.5) == figures.ceiling(0.4) == 0.5


def test_a_rater_who_changes_their_mind_and_likes_the_first_place_is_seen(tmp_path):
    store = session(tmp_path, raters=1, per_rater=40, repeats=0.2)
    simulate(store, lambda texts: "first", 40)
    [one] = figures.rater_figures(store, "humor", store.answers())
    assert (one.answers, one.first, one.consistent) == (40, 1.0, 0.0)  # the same side is the other line
    assert one.repeated == 7  # each fifth, but not so soon that it is remembered
    store.close()


def test_critics_beside_people_by_hand(tmp_path):
    """Two pairs: on one the critic is with two of three people (2/3), on the other it sees no difference (1/2)."""
    rows = []
    for n, scores in enumerate([(0.9, 0.1), (0.4, 0.4)]):
        for name, score in zip(("a", "b"), scores, strict=True):
            row = {"prompt": f"Sentence {n}.", "text": f"{name} {n}", "author": name, "score": score, "critic": "c"}
            rows.append(row)
    (tmp_path / "lines.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = Settings(repeats=0, questions=("humor",), overlap=0.0)
    store = Store.create(tmp_path / "s", gather([], [str(tmp_path / "lines.jsonl")]), settings, 3)
    arena = Arena(store)
    for rater in (1, 2, 3):
        for _ in range(2):
            ask = arena.ask_of(rater)
            likes = ask.b if rater == 3 else ask.a
            first = ask.b if ask.turned else ask.a
            arena.answer(rater, ask.nonce, {"humor": "first" if likes == first else "second"})
    votes = figures.votes_of(store, "humor")
    [found] = figures.critic_figures(votes, store.lines)
    assert (found.pairs, found.shared) == (2, 2)
    assert found.agrees.value == pytest.approx((2 / 3 + 1 / 2) / 2)
    assert figures.agreement_of_critics(votes, store.lines)["c"] == pytest.approx(found.agrees.value)
    [worst] = figures.differences(votes[-2:], store.lines)
    assert (worst.critic, store.lines[worst.named].text, store.lines[worst.preferred].text) == ("c", "a 0", "b 0")
    store.close()


def test_wins_against_the_teacher_by_hand(tmp_path):
    store = session(tmp_path, ("mine", "teacher"), 10, raters=1, repeats=0, questions=("humor",))
    arena = Arena(store)
    for n in range(10):
        ask = arena.ask_of(1)
        mine = 0 if store.lines[ask.b if ask.turned else ask.a].system == "mine" else 1
        said = "tie" if n < 2 else ("first", "second")[mine] if n < 5 else ("second", "first")[mine]
        arena.answer(1, ask.nonce, {"humor": said})
    count, rate = figures.against_teacher(figures.votes_of(store, "humor"), "mine")
    assert (count, rate.value) == (10, pytest.approx(0.5))  # three wins and two ties
    assert results_view(store)["ratings"]["tables"][0].rows[1][3].startswith("50 %")
    store.close()


# The server


@pytest.fixture
def there(tmp_path):
    store = session(tmp_path, raters=2, per_rater=20)
    with served(store) as (arena, address):
        yield arena, address
    store.close()


def test_judging_skipping_reporting_and_undoing(there):
    arena, address = there
    one = Visitor(links(arena, address)[0])
    assert one.page.title == "Pair 1 of 20" and len(one.page.texts) == 3
    before = one.page.texts
    one.answer(humor="first", consistency="tie")
    assert one.page.title == "Pair 2 of 20"
    one.page = one.post("/undo", one.page.fields)
    assert (one.page.title, one.page.texts) == ("Pair 1 of 20", before)
    assert arena.store.answers() == []
    one.answer(humor="second", consistency="first")
    one.answer(do="skip")
    one.answer(do="offence")
    said = [(x.what, dict(x.replies)) for x in arena.store.answers()]
    assert said == [("answer", {"humor": "second", "consistency": "first"}), ("skip", {}), ("offence", {})]
    again = Visitor(links(arena, address)[0])  # the same link, in another browser
    assert (again.page.title, again.page.texts) == (one.page.title, one.page.texts)


def test_without_a_script_each_question_comes_after_the_other(there):
    arena, address = there
    one = Visitor(links(arena, address)[0])
    fields = one.page.fields
    page = one.post("/answer", fields | {"humor": "first"})
    assert page.status == 200 and page.texts == one.page.texts and arena.store.answers() == []
    assert page.fields == fields | {"humor": "first"}
    assert page.body.count('aria-pressed="true"') == 1
    one.post("/answer", page.fields | {"consistency": "second"})
    assert [dict(x.replies) for x in arena.store.answers()] == [{"humor": "first", "consistency": "second"}]


def test_no_page_names_a_system_and_no_address_stays_with_its_token(there):
    arena, address = there
    one = Visitor(links(arena, address)[0])
    pages = [one.page.body]
    while one.page.asks:
        pages.append(one.answer(humor="tie", consistency="tie").body)
    assert one.page.title == "Thank you"
    for name in TASTE:
        assert not any(name in page for page in pages)
    assert not any(arena.store.token(1) in page or "some" in page for page in pages)
    assert one.cookie.startswith("arena=1.") and arena.store.token(1) not in one.cookie


def test_what_is_refused_changes_nothing(there):
    arena, address = there
    first, second = (Visitor(link) for link in links(arena, address))
    good = {"humor": "first", "consistency": "second"}
    replayed = first.page.fields | good
    first.answer(**good)
    undone = first.page.fields | good
    first.answer(**good)
    first.page = first.post("/undo", first.page.fields)
    before, fields = kept(arena.store), first.page.fields
    cases = [
        (first, replayed | {"humor": "second"}, 409, "You have answered this pair already"),
        (first, undone, 409, "This page is out of date"),
        (first, fields | good | {"ask": second.page.fields["ask"]}, 403, "This pair is somebody else's"),
        (second, fields | good, 403, "This form is not from here"),  # another rater's form
        (first, fields | good | {"csrf": ""}, 403, "This form is not from here"),
        (first, fields | good | {"csrf": "é"}, 403, "This form is not from here"),
        (first, fields | good | {"humor": "third"}, 400, "This answer is not complete"),
        (first, fields | {"do": "win"}, 400, "This answer is not complete"),
        (first, fields, 400, "This answer is not complete"),
        (first, fields | good | {"humor": "x" * 70_000}, 413, "This form is too large"),
    ]
    for who, form, status, title in cases:
        page = who.post("/answer", form)
        assert (page.status, page.title) == (status, title)
        assert "Nothing was changed" in page.body or "nothing was changed" in page.body
        assert kept(arena.store) == before
    from_elsewhere = first.request("POST", "/undo", f"csrf={fields['csrf']}", {"sec-fetch-site": "cross-site"})
    assert from_elsewhere.status == 403 and kept(arena.store) == before
    for cookie in ("", "arena=1", "arena=1.x", "arena=2." + first.cookie.partition(".")[2], "arena=é.é"):
        first.cookie = cookie.encode().decode("latin-1")
        page = first.get("/judge")
        assert (page.status, page.title) == (401, "Open your own link first")
    for path in ("/r/wrong", "/results/wrong", f"/results/{arena.store.token(1)}", "/static/../store.py", "/nothing"):
        assert first.get(path).status == 404
    assert first.get(f"/results/{arena.owner()}/arena.sqlite").status == 404
    assert first.request("DELETE", "/judge").status == 405
    arena.store.set_closed(True)
    page = second.post("/answer", second.page.fields | good)
    assert (page.status, page.title) == (403, "This session is closed")
    assert second.post("/undo", second.page.fields).title == "This session is closed"
    assert second.get("/judge").title == "This session is closed" and kept(arena.store) == before
    arena.store.set_closed(False)
    assert second.post("/answer", second.page.fields | good).title == "Pair 2 of 20"


def test_every_answer_carries_the_policy_and_no_cache_keeps_it(there):
    arena, address = there
    one = Visitor(links(arena, address)[0])
    for path in ("/judge", "/nothing", f"/results/{arena.owner()}", "/static/arena.js"):
        headers = one.get(path).headers
        policy = headers["content-security-policy"]
        assert "default-src 'none'" in policy and "unsafe" not in policy and "form-action 'self'" in policy
        assert headers["x-content-type-options"] == "nosniff" and "server" not in headers
        assert headers["cache-control"] == ("max-age=600" if "static" in path else "no-store")
    page = one.get(f"/results/{arena.owner()}").body + one.page.body
    assert "style=" not in page and "onclick" not in page and "<script>" not in page
    assert not [x for x in page.split('"') if x.startswith(("http:", "https:", "//"))]  # nothing from elsewhere


def test_a_private_session_answers_to_no_other_name(there):
    """Else any web page could reach it under a name of its own that leads to 127.0.0.1."""
    arena, address = there
    one = Visitor(links(arena, address)[0])
    for host, status in (("evil.example", 403), ("evil.example:80", 403), ("localhost:1", 200), ("[::1]:1", 200)):
        connection = http.client.HTTPConnection(one.host)
        connection.request("GET", "/judge", headers={"host": host, "cookie": one.cookie})
        assert connection.getresponse().status == status
        connection.close()


def test_a_shared_session_limits_each_rater_and_who_guesses(tmp_path):
    store = session(tmp_path, raters=2)
    with served(store, shared=True) as (arena, address):
        arena.raters = Limiter(0.001, 10)
        one, other = (Visitor(link) for link in links(arena, address))
        found = [one.get("/judge").status for _ in range(15)]
        assert found == [200] * found.index(429) + [429] * (15 - found.index(429)) and 5 <= found.index(429) <= 10
        assert "Wait a few seconds" in one.get("/judge").body
        assert other.get("/judge").status == 200
        guesses = [other.get(f"/r/{n}").status for n in range(25)]
        assert guesses.count(404) == 20 and guesses[-1] == 429
        assert other.get("/results/x").status == 429
        assert other.get("/judge").status == 200
    store.close()


def test_a_limit_fills_up_again_by_hand():
    now = [0.0]
    limiter = Limiter(2, 3, lambda: now[0])
    assert [limiter.allows("a") for _ in range(4)] == [True, True, True, False]
    now[0] = 0.5  # one more
    assert [limiter.allows("a"), limiter.allows("a"), limiter.allows("b")] == [True, False, True]
    now[0] = 100.0
    assert [limiter.allows("a") for _ in range(4)] == [True, True, True, False]


def test_pages_are_not_held_back_for_forty_milliseconds():
    """A socket made without its protocol kept Nagle's algorithm: asyncio looks at it before it sends at once."""
    found = open_socket("127.0.0.1", 0)
    assert found.proto == socket.IPPROTO_TCP
    found.close()


NASTY = {
    "markup": HOSTILE,
    "bidi": "\u202eThe line that goes the other way\u202c \u2067isolate",
    "long": "W" * 10_000,
    "emoji": "\U0001f602\U0001f469\u200d\U0001f469\u200d\U0001f467 \u0301\u0301",
    "control": "bell \x07 escape \x1b[31m nul \x00",
    "empty": "",
}


def test_hostile_lines_are_text(tmp_path):
    store = session(tmp_path, tuple(NASTY), 4, raters=1, text=lambda name, n: NASTY[name] or " ", repeats=0)
    with served(store) as (arena, address):
        one, seen = Visitor(links(arena, address)[0]), []
        while one.page.asks:
            assert "<script>" not in one.page.body and "<img" not in one.page.body and "<svg" not in one.page.body
            seen += one.page.texts[1:]
            one.answer(humor="first", consistency="tie")
        shown = {"bell · escape ·[31m nul ·", "(nothing was written)", *(NASTY[k] for k in ("markup", "bidi", "long"))}
        assert shown <= set(seen) and NASTY["emoji"] in seen
        page = Visitor(f"{address}/results/{arena.owner()}").page.body
        assert "<script>" not in page and "<img" not in page
        table = list(csv.DictReader(io.StringIO(exports.table(store))))
        assert {row["line_1"] for row in table} <= set(NASTY.values()) | {" "}
    store.close()


def test_a_spreadsheet_runs_no_formula(tmp_path):
    store = session(tmp_path, ("a", "b"), 3, raters=1, text=lambda name, n: f"=cmd|'{name}'", repeats=0)
    simulate(store, lambda texts: "tie", 3)
    for row in csv.DictReader(io.StringIO(exports.table(store))):
        assert row["line_1"].startswith("'=cmd") and row["line_2"].startswith("'=cmd")
    assert all(json.loads(row)["a"].startswith("=cmd") for row in exports.FILES["pairs.jsonl"](store).splitlines())
    store.close()


def test_grades_of_single_lines(tmp_path):
    store = session(tmp_path, ("a", "b"), 6, raters=2, mode="ratings", per_rater=12, questions=("humor",), rest=5)
    with served(store) as (arena, address):
        for rater, link in enumerate(links(arena, address)):
            one = Visitor(link)
            assert one.page.title == "Line 1 of 12" and "How funny is the line?" in one.page.body
            assert one.post("/answer", one.page.fields | {"humor": "5"}).status == 400
            for _ in range(5):
                one.page = one.post("/answer", one.page.fields | {"humor": str(3 - rater)})
            assert one.page.title == "Time for a rest" and not one.page.asks
            one.page = one.post("/rest", one.page.fields)
            while one.page.asks:
                one.answer(humor="4" if str(code("a")) in one.page.texts[1] else str(rater))
        page = Visitor(f"{address}/results/{arena.owner()}").page.body
        assert "Mean grade" in page
    from humor_env.rewards.rated.rated_sets import load_rated

    (tmp_path / "ratings.jsonl").write_text(exports.ratings_file(store))
    found = load_rated("ratings", tmp_path / "ratings.jsonl", low=0, high=4)
    assert len(found.texts) == 12
    assert sum(len(text.raters) or 1 for text in found.texts) == len(
        [x for x in store.answers() if x.ask.again is None]
    )
    store.close()


def test_one_raters_answers_are_deleted_and_the_server_goes_on(there):
    """Beside the running server, which remembered who was asked what."""
    arena, address = there
    first, second = (Visitor(link) for link in links(arena, address))
    for _ in range(8):
        first.answer(humor="first", consistency="first")
        second.answer(humor="second", consistency="first")
    done = CliRunner().invoke(app, ["arena", "--store", str(arena.store.path), "--forget", "1"])
    assert done.exit_code == 0 and "8 answers of rater 1" in done.output
    assert {x.ask.rater for x in arena.store.answers()} == {2}
    assert first.get("/judge").title == "Before you begin"  # they have agreed to nothing
    second.answer(humor="tie", consistency="tie")
    assert second.page.title == "Pair 10 of 20"
    again = Visitor(links(arena, address)[0])
    assert again.page.title == "Pair 1 of 20"
    wrong = CliRunner().invoke(app, ["arena", "--store", str(arena.store.path), "--forget", "9"])
    assert wrong.exit_code == 2 and "numbered from 1 to 2" in wrong.output


# The command


def test_the_store_is_its_owners_alone_and_another_one_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    store = session(tmp_path)
    assert stat.S_IMODE(os.stat(store.path).st_mode) == 0o600
    store.close()
    Path("other.sqlite").write_bytes(b"not a database, but something else that is long enough to be looked at")
    write_lines(tmp_path / "more.jsonl", ("x", "y"), 3)
    for arguments, said in [
        (["--store", "other.sqlite", "--close"], "is not the store of an arena"),
        (["--store", "none.sqlite", "--export", "x"], "There is no session in 'none.sqlite'"),
        (["--file", "more.jsonl"], "holds another session"),
        (["--file", "more.jsonl", "--store", "new", "--system", "x"], "pairs need two systems"),
        (["--file", "more.jsonl", "--store", "new", "--mode", "stars"], "--mode is pairs or ratings"),
        (["--file", "more.jsonl", "--store", "new", "--ask", "wit"], "--ask is one of humor"),
        (["--file", "more.jsonl", "--store", "new", "--repeats", "0.9"], "a share from 0 to 0.5"),
        (["--file", "more.jsonl", "--store", "new", "--host", "0.0.0.0"], "Add --share"),
        (["--store", "new"], "There is nothing to judge"),
        (["--file", "more.jsonl", "--store", "new", "--teacher"], "--teacher: no run has"),
    ]:
        done = CliRunner().invoke(app, ["arena", *arguments])
        assert done.exit_code == 2 and said in done.output, (arguments, done.output)
        assert not Path("new").exists() and not Path("new.lock").exists()


def test_a_session_is_continued_without_naming_its_lines_again(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    session(tmp_path).close()
    with socket.create_server(("127.0.0.1", 0)) as taken:  # so that the command ends where it would begin to serve
        port = taken.getsockname()[1]
        for again in ([], ["--file", "lines.jsonl"]):
            done = CliRunner().invoke(app, ["arena", *again, "--port", str(port), "--raters", "3"])
            assert done.exit_code == 2 and f"Cannot listen on 127.0.0.1, port {port}" in done.output, done.output
    with Store.open(tmp_path / "arena.sqlite") as store:
        assert len(store.raters()) == 3


def test_tokens_of_a_file(tmp_path, monkeypatch):
    from humor_env.experiments.commands.arena import _tokens

    path = tmp_path / "tokens.txt"
    path.write_text("# ours\nabcdefghijklmnop\n\nABCD-efgh_ijkl-mnop\n")
    assert _tokens(str(path), share=True) == ["abcdefghijklmnop", "ABCD-efgh_ijkl-mnop"]
    for text, said in (("short\n", "line 1 is not"), ("a" * 16 + "\n" + "a" * 16, "twice"), ("", "there is none")):
        path.write_text(text)
        with pytest.raises(InvalidOption, match=said):
            _tokens(str(path), share=True)
    store = session(tmp_path, raters=["mine-is-a-long-token", "and-another-long-one"])
    store.add_raters(["and-another-long-one", "a-third-one-comes-late"])
    assert [store.rater_of(t) for t in ("mine-is-a-long-token", "and-another-long-one", "a-third-one-comes-late")] == [
        1,
        2,
        3,
    ]
    assert store.rater_of(store.sign("rater", 1)) is None
    assert b"mine-is-a-long-token" not in store.path.read_bytes()  # kept as digests
    store.close()


def judging(server, number, count, said):
    """Answer until `count` are given or the server is gone."""
    one = Visitor(server.links[number])
    for _ in range(count):
        try:
            one.answer(humor="first", consistency="tie")
        except (OSError, http.client.HTTPException):
            return
        said[number] += 1


@pytest.mark.slow
def test_a_server_that_is_killed_has_every_answer_and_raters_go_on(tmp_path):
    write_lines(tmp_path / "lines.jsonl", tuple(TASTE), 60)
    server, said = Server(tmp_path, "--file", "lines.jsonl", "--raters", "4"), [0] * 4
    threads = [threading.Thread(target=judging, args=(server, n, 20, said)) for n in range(4)]
    for thread in threads:
        thread.start()
    while sum(said) < 24:
        threads[0].join(0.01)
    second = CliRunner().invoke(app, ["arena", "--store", str(tmp_path / "arena.sqlite"), "--port", "0"])
    assert second.exit_code == 2 and "Another server is using" in second.output
    server.kill()
    for thread in threads:
        thread.join()
    server.stop()
    with Store.open(tmp_path / "arena.sqlite") as store:
        count = Counter(x.ask.rater for x in store.answers())
        # One more than was seen, where the server died between writing and saying so.
        assert all(said[n] <= count[n + 1] <= said[n] + 1 for n in range(4)), (said, count)
        waiting = [store.open_ask(n) for n in range(1, 5)]
    with Server(tmp_path) as again:
        assert [link.rpartition("/")[2] for link in again.links] == [link.rpartition("/")[2] for link in server.links]
        for n, link in enumerate(again.links):
            one = Visitor(link)
            assert one.page.title == f"Pair {count[n + 1] + 1} of 100"
            if waiting[n]:
                assert one.page.fields["ask"] == waiting[n].nonce
            one.answer(humor="tie", consistency="tie")
            assert one.page.title == f"Pair {count[n + 1] + 2} of 100"
    tokens = [link.rpartition("/")[2] for link in (*server.links, server.results)]
    logged = (tmp_path / "errors.txt").read_text()
    assert "To continue: humor-env arena --store arena.sqlite" in logged
    assert not any(token in logged for token in tokens)
    assert not any(token in second.output for token in tokens)


@pytest.mark.slow
def test_a_full_disk_is_told_and_changes_nothing(tmp_path):
    """The limit on the size of files refuses writes as a full disk does, and can be lifted again."""
    write_lines(tmp_path / "lines.jsonl", tuple(TASTE), 60)
    with Server(tmp_path, "--file", "lines.jsonl") as server:
        one = Visitor(server.links[0])
        one.answer(humor="first", consistency="tie")
        resource.prlimit(server.process.pid, resource.RLIMIT_FSIZE, (1, resource.RLIM_INFINITY))
        page = one.post("/answer", one.page.fields | {"humor": "second", "consistency": "tie"})
        assert (page.status, page.title) == (503, "This could not be saved") and "Nothing was changed" in page.body
        assert one.get("/judge").fields == one.page.fields
        no_limit = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
        resource.prlimit(server.process.pid, resource.RLIMIT_FSIZE, no_limit)
        one.answer(humor="second", consistency="first")
        assert one.page.title == "Pair 3 of 100"
    with Store.open(tmp_path / "arena.sqlite") as store:
        assert [dict(x.replies)["humor"] for x in store.answers()] == ["first", "second"]


def test_many_raters_at_once_lose_and_double_nothing(tmp_path):
    """Measured with 32 raters of 200 answers each: see docs/arena.md."""
    store = session(tmp_path, prompts=60, raters=12, per_rater=15)
    given = [[] for _ in range(12)]

    def judge(number, link):
        one, people = Visitor(link), Taste(TASTE, seed=number)
        while one.page.asks:
            said = people(one.page.texts[1:])
            given[number].append((one.page.fields["ask"], said))
            one.answer(humor=said, consistency="tie")

    with served(store) as (arena, address):
        threads = [threading.Thread(target=judge, args=each) for each in enumerate(links(arena, address))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    for number, own in enumerate(given):
        there = [(x.ask.nonce, x.replies["humor"]) for x in store.answers() if x.ask.rater == number + 1]
        assert there == own and len(own) == 15
    store.close()


# What comes out


def test_the_card_has_figures_and_no_names_lines_or_links(judged):
    card, text = exports.card_data(judged), exports.card(judged)
    assert (card["raters"], card["answers"], card["sentences"]) == (4, 200, 40)
    about = card["about"]["humor"]
    assert next(one["system"] for one in about["ratings"]) == "good"
    assert about["two people agree"]["pairs"] > 20 and 0.5 < about["ceiling"]["value"] <= 1
    assert "some" in about["critics"]
    for secret in ("glaciers", "Thing", judged.token(1), judged.sign("owner")):
        assert secret not in text and secret not in json.dumps(card)
    assert "| one person with another |" in text


def test_exported_pairs_are_read_as_they_are(judged, tmp_path):
    from humor_env.rewards.rated.rated_sets import load_rated

    written = exports.write(judged, tmp_path / "out")
    assert [path.name for path in written] == [name for name in exports.FILES if name != "ratings.jsonl"]
    found = load_rated("pairs", tmp_path / "out" / "pairs.jsonl")
    votes = figures.votes_of(judged, "humor")
    assert len(found.pairs) == len(votes)
    for pair, vote in zip(found.pairs, votes, strict=True):
        assert (pair.a.text, pair.b.text) == (judged.lines[vote.a].text, judged.lines[vote.b].text)
        assert pair.label == {1.0: "a", 0.0: "b", 0.5: "tie"}[vote.share]
    table = list(csv.DictReader(io.StringIO((tmp_path / "out" / "answers.csv").read_text())))
    assert len(table) == 200 and {row["system_1"] for row in table} == set(TASTE)


def test_the_page_of_results_is_made_anew_after_an_answer_and_at_most_a_fifth_of_the_time(tmp_path, monkeypatch):
    """Each look at the clock takes a second, so making a page takes one, and the next is not made for four."""
    store = session(tmp_path, prompts=5)
    arena = Arena(store)
    clock = SimpleNamespace(monotonic=iter(range(9)).__next__)
    monkeypatch.setattr("humor_env.experiments.arena.session.time", clock)
    first = asyncio.run(arena.results())  # at 0, made at 1
    assert "0 answers from 0 raters" in first
    arena.answer(1, arena.ask_of(1).nonce, {"do": "skip"})
    said = [asyncio.run(arena.results()) for _ in range(5)]  # at 2, 3, 4 and 5; made at 6; at 7
    assert said[:3] == [first] * 3
    assert "1 answer from 1 rater" in said[3] and said[4] == said[3]
    store.close()


def test_the_page_of_results_says_of_whom_little_is_known():
    def votes(*pairs, times):
        return [figures.Vote(0, i, i + 1, *pair, "p", 1.0, None) for pair in pairs for i in range(times)]

    store = SimpleNamespace(systems=["ppo", "base", "teacher"])
    many = votes(("ppo", "base"), times=20)
    assert results._notes(store, many + votes(("teacher", "x"), times=19)) == [
        "Fewer than 20 answers are about teacher: their numbers are still very uncertain."
    ]
    assert results._notes(store, many + votes(("x", "teacher"), times=20)) == []
    assert results._notes(store, []) == []
    assert "The pairs are blind" in results._notes(SimpleNamespace(systems=[]), many)[0]
