"""What the figures of the arena say: by hand, and beside independent computations."""

import asyncio
import csv
import io
import json
import math
from itertools import combinations
from types import SimpleNamespace

import numpy as np
import pytest
from arena_sessions import Taste, simulate
from test_arena import TASTE, session

from humor_env.experiments.arena import exports, figures, results
from humor_env.experiments.arena.results import results_view
from humor_env.experiments.arena.session import Arena
from humor_env.experiments.arena.sources import gather
from humor_env.experiments.arena.store import Settings, Store
from humor_env.rewards.tournament import strengths


@pytest.fixture
def judged(tmp_path):
    store = session(tmp_path, raters=4, per_rater=60, overlap=0.5)
    simulate(store, Taste(TASTE, ties=0.2), 200)
    yield store
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


def test_a_second_answer_on_a_sentence_does_not_make_a_winner_certain():
    """30 of 30 won had the bounds [183, 375]; one more answer on one of the sentences made them [375, 382]. By hand, of
    30 sentences three may be lost: a tenth of the 31 games."""
    votes = [vote(1, str(n)) for n in range(30)] + [vote(2, "0")]
    best, worst = figures.ratings(votes, ["x", "y"])
    lost = figures.ELO * strengths(np.array([[0, 27.9], [3.1, 0]]))[0]
    assert (best.points.low, worst.points.high) == pytest.approx((lost, -lost))
    assert best.points.value < best.points.high < best.points.value + 10


def test_a_system_with_one_answer_has_no_bounds_beside_well_known_ones():
    """A newcomer that won its only game stood at +163 [0, 289]."""
    votes = [vote(1, str(n), float(n % 10 > 0)) for n in range(60)] + [vote(1, "3", 1.0, "new", "x")]
    rated = {["x", "y", "new"][one.system]: one for one in figures.ratings(votes, ["x", "y", "new"])}
    assert unknown(rated["new"].points) and not unknown(rated["x"].points) and not unknown(rated["y"].points)
    assert {name: one.tier for name, one in rated.items()} == {"new": 1, "x": 1, "y": 2}


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
