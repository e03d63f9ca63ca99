"""The tables of a benchmark by hand: three prompts, too few for intervals, so that every cell is a plain number."""

from __future__ import annotations

import json
import math
import re
from functools import cache
from pathlib import Path

import numpy as np
import pytest

import humor_env.agents.ppo  # noqa: F401 - a spec loads it by its name: before a test is timed
from humor_env.errors import InvalidOption
from humor_env.experiments.compare import benchmark_pages, stats
from humor_env.experiments.compare.benchmark import Benchmark
from humor_env.experiments.compare.benchmark_charts import make_chart, without_gaps
from humor_env.experiments.compare.benchmark_spec import parse_benchmark
from humor_env.experiments.compare.benchmark_tables import (
    System,
    curve_of,
    lines_of,
    make_table,
    ratings_of,
    results_page,
    systems_of,
    tables_of,
)

SPEC = """
name = "tiny"
title = "A tiny one"
seeds = [0, 1]
budget = { samples = 48, evaluations = 2 }
held_out = { critic = "pocket" }

[learner]
batch_size = 8

[[feedback]]
name = "crowd"
judge = "pocket-crowd"

[[learners]]
name = "ppo"

[[learners]]
name = "best-of-2"
learner = "best-of-n"

[[compare]]
name = "two"
title = "Two of them"
systems = ["ppo", "best-of-2", "base"]
"""
SECOND = '\n[[feedback]]\nname = "other"\njudge = "pocket-crowd"\n'
VERDICTS = ("wins", "ties", "wins_held_out", "ties_held_out")


def row(system, seed, *scores, feedback="crowd", **more):
    plain = dict.fromkeys(VERDICTS, [0.5] * len(scores)) | {"longer": [0] * len(scores)}
    found = {"system": system, "feedback": feedback, "seed": seed, "scores": list(scores), "score": np.mean(scores)}
    return found | plain | more


ROWS = [
    row("base", 0, 0.0, 0.0, 0.3, distinct_2=0.2),
    row("base", 1, 0.1, 0.1, 0.1, distinct_2=0.4),
    row("teacher", 0, 0.9, 0.6, 0.6, teacher_copies=1.0),
    row("imitation", 0, 0.3, 0.3, 0.6, kl=0.0, **{"spent/samples": 10.0}),
    row("imitation", 1, 0.6, 0.6, 0.6, kl=0.0, **{"spent/samples": 20.0}),
    row("imitation-again", 0, 0.3, 0.6, 0.6, wins_itself=[0.5, 0.2, None], ties_itself=[1.0, 0.4, 0.0])
    | {"wins_itself_held_out": [0.0, 1.0, 0.5], "ties_itself_held_out": [0.0, 0.0, 1.0]},
    row("ppo", 1, 0.9, 0.9, 0.9, kl=16.0, ended="a limit", **{"spent/samples": 48.0, "spent/cost": 1.5}),
    row(
        *("ppo", 0, 0.6, 0.6, 0.9),
        **{"wins": [0.2, 0.9, 0.5], "ties": [0.4, 0.4, 0.2], "wins_held_out": [0.0, 0.1, 0.2]},
        **{"ties_held_out": [0.0, 0.2, 0.0], "kl": 2.0, "length_ratio": 1.25, "lift": 0.5, "failures": 3, "ended": ""},
        **{"part/meaning": 0.75, "part/form": 1.0, "spent/samples": 40.0, "spent/seconds": 9.4, "spent/cost": 0.5},
    ),
]
CURVES = [
    {"system": "ppo", "feedback": "crowd", "seed": 0, "samples": 24, "score": 0.5, "judgements": 6},
    {"system": "ppo", "feedback": "crowd", "seed": 0, "samples": 48, "score": 0.7},
    {"system": "ppo", "feedback": "crowd", "seed": 1, "samples": 24, "score": 0.7},
    {"system": "ppo", "feedback": "crowd", "seed": 1, "samples": 48, "score": 0.9},
    {"system": "ppo", "feedback": "other", "seed": 1, "samples": 1, "score": 0.0},
]
RECORD = {
    "prompts": ["a", "b", "c"],
    "failures": {},
    "commit": "abc",
    "versions": {"humor-env": "1", "torch": "2", "numpy": "3"},
    "cpu_seconds": 90.0,
    "cells": 4,
}


parsed = cache(parse_benchmark)


def bench(text=SPEC, rows=ROWS, curves=CURVES, folder=Path("bench"), **record):
    return Benchmark(folder, parsed(text), RECORD | record, rows, curves)


def table(name, one=None):
    """The rows of a table: their cells by their first, and the head."""
    head, rule, *rows = make_table(one or bench(), name).splitlines()
    assert set(rule) == {"|", "-"} and rule.count("|") == head.count("|")
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in (head, *rows)]
    return cells[0][1:], {line[0]: line[1:] for line in cells[1:]}


def test_a_systems_numbers_with_and_without_several_lines():
    rows = [{"x": [0.0, 1.0, None, 3.0], "n": 2.0}, {"x": [4.0, 5.0, 6.0, 7.0]}]
    two, four = (System("a", "a", "", rows, prompts) for prompts in (2, 4))
    np.testing.assert_equal(two.lines("x"), [[[0, 1], [math.nan, 3]], [[4, 5], [6, 7]]])
    np.testing.assert_equal(four.lines("x"), [[0, 1, math.nan, 3], [4, 5, 6, 7]])
    np.testing.assert_equal(two.numbers("n"), [2, math.nan])
    assert two.mean("n") == 2 and math.isnan(two.mean("missing"))


def test_a_tie_is_half_a_win_more_and_never_over_one():
    """0.2 + 0.4 / 2, 0.9 + 0.4 / 2 at most 1, 0.5 + 0.2 / 2; by the held-out judge 0, 0.1 + 0.2 / 2 and 0.2."""
    [ppo] = systems_of(bench(rows=ROWS[-1:]))
    np.testing.assert_allclose(ppo.win_tie("feedback"), [[0.4, 1.0, 0.6]], atol=1e-12)
    np.testing.assert_allclose(ppo.win_tie("held out"), [[0.0, 0.2, 0.2]], atol=1e-12)
    [again] = [system for system in systems_of(bench()) if system.name == "imitation-again"]
    np.testing.assert_allclose(again.win_tie("feedback", "_itself"), [[1.0, 0.4, math.nan]], atol=1e-12)
    np.testing.assert_allclose(again.win_tie("held out", "_itself"), [[0.0, 1.0, 1.0]], atol=1e-12)


def test_systems_are_sorted_and_named_after_their_feedback_where_there_are_several():
    """By their means: 0.8, 0.7, 0.5, 0.5 (written again) and 0.1."""
    assert [(s.label, [r["seed"] for r in s.rows]) for s in systems_of(bench())] == [
        ("ppo", [0, 1]),
        ("teacher", [0]),
        ("imitation", [0, 1]),
        ("imitation, written again", [0]),
        ("base", [0, 1]),
    ]
    more = [*ROWS, row("base", 0, 9, 9, 9, feedback="other"), row("ppo", 0, 0, 0, 0, feedback="other")]
    assert [s.label for s in systems_of(bench(SPEC + SECOND, more))] == [
        *("ppo, crowd", "teacher", "imitation", "imitation, written again", "base", "ppo, other"),
    ]


def test_scores_and_their_parts():
    head, rows = table("scores")
    assert head == ["held-out score", "interquartile mean", "meaning", "form", "seeds"]
    assert rows == {
        "ppo": ["0.800", "0.800", "0.750", "1.000", "2"],
        "teacher": ["0.700", "0.700", "–", "–", "1"],
        "imitation": ["0.500", "0.500", "–", "–", "2"],
        "imitation, written again": ["0.500", "0.500", "–", "–", "1"],
        "base": ["0.100", "0.100", "–", "–", "2"],
    }


def test_against_the_teacher():
    """Of ppo's two seeds (0.4 + 1 + 0.6) / 3 = 67 and 0.5 + 0.5 / 2 = 75 percent by the training judge, 13 and 75 by
    the held-out one. With no line longer than another, a win at equal length is a win: (16/30 + 1/2) / 2 = 52, and
    (0.1 + 0.5) / 2 = 30."""
    head, rows = table("teacher")
    assert head[:2] == ["win or tie, held-out judge", "win or tie, training judge"]
    assert head[2:4] == ["win at equal length, held-out judge", "win at equal length, training judge"]
    assert rows["teacher"] == ["–"] * 5 and rows["base"] == ["75", "75", "50", "50", "–"]
    assert rows["ppo"] == ["44", "71", "30", "52", "1.25"]


def test_at_equal_length_prompts_are_resampled_as_well_as_seeds():
    """Two seeds that agree on twelve prompts, of which half are won, had 50 [25, 75] by the rule of three of the seeds
    that are equal, or no width at all; with lines of equal length it is the interval of a plain win."""
    wins = [1.0, 0.0] * 6
    rows = [row("ppo", seed, *wins, wins=wins, ties=[0.0] * 12, wins_held_out=wins) for seed in (0, 1)]
    [cells] = table("teacher", bench(rows=rows, prompts=list("abcdefghijkl")))[1].values()
    assert cells[1].startswith("50 [2") and cells[1].endswith(("75]", "76]", "77]"))
    bounds = [[int(n) for n in cell.partition("[")[2].rstrip("]").split(", ")] for cell in cells[1:4]]
    np.testing.assert_allclose(bounds[1], bounds[0], atol=4)
    np.testing.assert_allclose(bounds[2], bounds[0], atol=4)


def test_improvement_over_the_imitation_and_the_control():
    """ppo has 0.3 more than the imitation in both seeds, and both its runs are above the imitation's 0.4 and 0.6."""
    control = row("best-of-2", 1, 0.9, 0.9, 0.6)
    head, rows = table("improvement", bench(rows=[*ROWS, control]))
    assert head == [
        *("score over best-of-2", "P(better than best-of-2)", "score over imitation", "P(better than imitation)"),
    ]
    # Only seed 1 is shared: 0.9 - 0.8; of ppo's runs of 0.7 and 0.9 one beats 0.8. And 0.8 beats 0.4 and 0.6.
    assert rows["ppo"] == ["0.100", "0.50", "0.300", "1.00"]
    assert rows["best-of-2"] == ["–", "–", "0.200", "1.00"] and len(rows) == 2
    _, rows = table("improvement", bench(rows=[*ROWS[:4], ROWS[6]]))  # no seed in common
    assert rows["ppo"][0] == "–"


def test_a_star_where_the_interval_excludes_nothing():
    """Twelve prompts are enough for intervals: all the same gap, which by the rule of three may be 3/12 otherwise."""

    def starred(gap):
        rows = [row("imitation", 0, *[0.5] * 12), row("ppo", 0, *[0.5 + gap] * 12)]
        return table("improvement", bench(rows=rows, prompts=list("abcdefghijkl")))[1]["ppo"][0]

    assert starred(0.3) == "0.300 [0.050, 0.550] *" and starred(-0.3) == "-0.300 [-0.550, -0.050] *"
    assert starred(0.2) == "0.200 [-0.050, 0.450]" and starred(-0.2) == "-0.200 [-0.450, 0.050]"


def test_the_noise_of_the_same_policy():
    """Seed 0 is shared: 0.5 - 0.4. By the held-out judge (0 + 1 + 1) / 3, by the training judge (1 + 0.4) / 2."""
    head, rows = table("noise")
    assert head == [
        *("held-out score", "score over imitation", "win or tie with imitation, held-out judge"),
        "win or tie with imitation, training judge",
    ]
    assert rows == {"imitation, written again": ["0.500", "0.100", "67", "70"]}
    other = ROWS[5] | {"feedback": "other", "wins_itself": [0.0, 0.0, 0.3], "ties_itself": [0.0, 0.0, 0.0]}
    head, rows = table("noise", bench(SPEC + SECOND, [*ROWS, other]))
    assert head[3:] == ["win or tie with imitation, crowd", "win or tie with imitation, other"]
    assert rows["imitation, written again"][3:] == ["70", "10"]
    assert table("noise", bench(rows=ROWS[-2:]))[1] == {}


def test_variety_and_what_was_spent():
    head, rows = table("texts")
    assert head == [
        *("distinct-2", "self-overlap", "copies of the teacher", "length ÷ prompt's length", "lift", "KL to imitation"),
        "failed judgements",
    ]
    assert rows["ppo"] == ["–", "–", "–", "1.25", "0.500", "9.0", "3"]
    assert rows["base"][0] == "0.300" and rows["teacher"][2] == "–"
    more = [ROWS[0] | {"different_lines": 0.25, "commonest_line": 0.125}, *ROWS[1:]]
    head, rows = table("texts", bench(rows=more))
    assert head[1:3] == ["different lines", "commonest line"] and rows["base"][1:3] == ["0.250", "0.125"]
    assert "lift" not in table("texts", bench(rows=ROWS[:-1]))[0]
    head, rows = table("spent")
    assert head == ["lines written", "judgements", "steps", "seconds", "dollars", "ended early"]
    assert rows == {
        "ppo": ["44", "–", "–", "9", "1.00", "a limit"],
        "imitation": ["15", "–", "–", "–", "–", "–"],
    }
    assert "dollars" not in table("spent", bench(rows=ROWS[:5]))[0]


def test_during_training():
    """Between 24 lines and 48: (0.5 + 0.7) / 2 to (0.7 + 0.9) / 2. Before the first point nothing is known. The mean
    height is 0.6 in one seed and 0.8 in the other."""
    head, rows = table("efficiency")
    assert head == [*(f"after {n} samples" for n in (12, 24, 36, 48)), "mean over the budget"]
    assert [cell.split(" ")[0] for cell in rows.pop("ppo")] == ["–", "0.600", "0.700", "0.800", "0.700"] and not rows
    [ppo] = [system for system in systems_of(bench()) if system.name == "ppo"]
    assert curve_of(bench(), ppo, "score") == [([24, 48], [0.5, 0.7]), ([24, 48], [0.7, 0.9])]
    assert curve_of(bench(), ppo, "score", "judgements") == [([6], [0.5])]
    assert curve_of(bench(), ppo, "kl") == []
    by_pairs = SPEC.replace("samples = 48", "judgements = 8")
    head, rows = table("efficiency", bench(by_pairs))
    assert head[:3] == ["after 2 judgements", "after 4 judgements", "after 6 judgements"]
    assert rows["ppo"][2] == "0.500"


def test_overoptimisation():
    """The mean KL of 2 and 16 is 9. Wins of 16/30 and 1/2 against 0.1 and 1/2: the gap is 13/30 and 0."""
    head, rows = table("overoptimisation")
    assert head == ["√KL", "wins, training judge", "wins, held-out judge", "gap"]
    assert rows["ppo"] == ["3.00", "52", "30", "22"]
    assert rows["imitation"] == ["0.00", "50", "50", "0"] and rows["base"][0] == "–" and len(rows) == 3
    below = table("overoptimisation", bench(rows=[ROWS[-1] | {"kl": -4.0}]))[1]
    assert below["ppo"][0] == "0.00"


def test_all_in_one_and_those_that_the_spec_compares():
    head, rows = table("effects")
    assert head == [
        *("held-out score", "meaning", "length ÷ prompt's length", "win or tie, held-out judge"),
        *("win or tie, training judge", "lines written", "judgements"),
    ]
    assert rows["ppo"] == ["0.800", "0.75", "1.25", "44", "71", "44", "–"]
    assert list(rows)[-1] == "ppo" and rows["teacher"][3] == "–"
    assert "meaning" not in table("effects", bench(rows=ROWS[:5]))[0]
    assert list(table("two")[1]) == ["ppo", "base"], "in the spec's order, without those that are not there"
    with pytest.raises(InvalidOption, match=r"No table is called 'score'. Known: scores, .*critics, two\."):
        make_table(bench(), "score")


def test_ratings_are_those_of_games_between_all_but_the_one_written_twice():
    """The teacher plays in every seed, a system only in those that it was run with."""
    one = bench(rows=[*ROWS[:6], ROWS[6]])  # ppo in seed 1 only
    systems = ["ppo", "teacher", "imitation", "base"]
    none = [math.nan] * 3
    scores = [
        [none, [0.9] * 3],
        [[0.9, 0.6, 0.6]] * 2,
        [[0.3, 0.3, 0.6], [0.6] * 3],
        [[0.0, 0.0, 0.3], [0.1] * 3],
    ]
    expected = [(systems[r.system], r.points.value) for r in stats.bradley_terry(np.array(scores))]
    assert [(s.name, r.points.value) for s, r in ratings_of(one)] == expected
    head, rows = table("ratings", one)
    assert head == ["tier", "points"] and {cells[0] for cells in rows.values()} == {"1"}
    assert {name: cells[1] for name, cells in rows.items()} == {name: f"{points:.0f}" for name, points in expected}


def test_the_critics_that_were_trained():
    trained = {"mine": {"pair_accuracy": 0.7256, "sets": ["a", "b"], "pairs": 120.0}}
    assert make_table(bench(trained=trained), "critics").splitlines() == [
        "| | trained on | pairs right, % | pairs |",
        "|---|---|---|---|",
        "| mine | a, b | 72.6 | 120 |",
    ]


def test_which_tables_a_page_has():
    every = ["scores", "teacher", "ratings", "improvement", "efficiency", "overoptimisation", "texts", "spent"]
    assert tables_of(bench()) == every and tables_of(bench(rows=[])) == []
    assert set(tables_of(bench(SPEC + SECOND))) - set(every) == {"effects"}
    noisy = SPEC.replace("seeds = [0, 1]", "seeds = [0, 1]\nnoise_floor = true")
    assert set(tables_of(bench(noisy))) - set(every) == {"noise"}
    assert set(tables_of(bench(trained={"mine": {}}))) - set(every) == {"critics"}
    assert [lines_of(bench()), lines_of(bench(prompts=["a"])), lines_of(bench(rows=[]))] == [1, 3, 1]


def test_the_page_of_results():
    page = results_page(bench()).split("\n\n")
    assert page[:2] == [
        "# A tiny one",
        "Seeds 0, 1; 3 held-out prompts, one line for each; measured by `pocket`, which no learner was trained on. "
        "Budget per learner after the warm start: 48 samples. Intervals are 95 %, by bootstrap over seeds and prompts; "
        "those during training over seeds only.",
    ]
    assert page[2] == "## Two of them" and page[3] == make_table(bench(), "two")
    assert page[4] == "## Held-out score and its parts" and page[5] == make_table(bench(), "scores")
    assert page[-1] == (
        "Made by `humor-env benchmark tiny`, commit abc, humor-env 1, torch 2; 2 minutes of processor time in all.\n"
    )
    failed = results_page(bench(SPEC.replace('title = "A tiny one"', ""), rows=[], failures={"ppo/0": "why", "x": "y"}))
    assert failed.startswith("# tiny\n")
    assert "**2 of 4 cells have no result:**\n\n- ppo/0: why\n- x: y\n\nMade by" in failed
    several = results_page(bench(prompts=["a"]))
    assert (
        "1 held-out prompts, 3 lines for each" in several and "prompts, a prompt with all its lines; those" in several
    )


def test_the_chart_of_overoptimisation_compares_win_rates_only():
    """The score of a critic that rates lines was drawn as its win rate: 0.9 - 0.4 instead of 0.6 - 0.4. A critic that
    compares with the teacher gives a win rate, unless a tie counts as a win."""
    points = [p | {"feedback_score": 0.9, "held_out_wins": 0.4, "kl": 4.0} for p in CURVES[:4]]
    rated = SPEC.replace('judge = "pocket-crowd"', 'critic = "rules"')
    ties = SPEC.replace('judge = "pocket-crowd"', 'judge = "pocket-crowd"\ncritic_options = { ties = "win" }')

    def drawn(text, **more):
        one = bench(text, curves=[p | more for p in points])
        return sorted(set(re.findall(r"ppo: 2, (-?[0-9.]+)", make_chart(one, "overoptimisation-chart")))), without_gaps(
            one
        )

    assert drawn(SPEC) == (["0.5"], [])
    assert drawn(rated) == drawn(ties) == ([], ["ppo"])
    assert drawn(rated, feedback_wins=0.6) == (["0.2"], [])


# Filled into a page


PAGE = """# Page

<!-- benchmark: tiny/scores -->
old
<!-- end -->

<!-- benchmark: tiny/scores-chart -->
<!-- end -->

<!-- benchmark: missing/scores -->
old
<!-- end -->
"""


@pytest.fixture
def page(tmp_path):
    results = tmp_path / "results" / "tiny"
    results.mkdir(parents=True)
    (results / "spec.toml").write_text(parse_benchmark(SPEC).to_toml())
    (results / "run.json").write_text(json.dumps(RECORD))
    (results / "results.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    (results / "curves.csv").write_text("system,feedback,seed\n")
    (tmp_path / "page.md").write_text(PAGE)
    return tmp_path / "page.md"


def test_a_page_gets_its_tables_and_charts(page):
    one = bench(curves=[])
    assert benchmark_pages.fill_page(page, write=False) == 3 and page.read_text() == PAGE
    svg = page.parent / "results" / "tiny" / "scores-chart.svg"
    assert not svg.exists()
    assert benchmark_pages.fill_page(page) == 3
    assert page.read_text() == (
        f"# Page\n\n<!-- benchmark: tiny/scores -->\n\n{make_table(one, 'scores')}\n\n<!-- end -->\n\n"
        "<!-- benchmark: tiny/scores-chart -->\n\n![Held-out score of each system with its interval]"
        "(results/tiny/scores-chart.svg)\n\n<!-- end -->\n\n<!-- benchmark: missing/scores -->\n<!-- end -->\n"
    )
    assert svg.read_text() == make_chart(one, "scores-chart")
    assert benchmark_pages.fill_page(page) == 0
    page.write_text(page.read_text().replace("0.800", "0.801"))
    assert benchmark_pages.fill_page(page) == 1 and "0.801" not in page.read_text()
