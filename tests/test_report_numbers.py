"""The numbers of a report by hand: means by prompt and seed, pairs, curves, flags, repeated words, time, dollars."""

import math
import operator
from dataclasses import replace
from pathlib import Path

import pytest

from humor_env.experiments.reports import report_numbers
from humor_env.experiments.reports.report_data import (
    Judged,
    RunData,
    SeedData,
    begun_from,
    first_lines,
    lines_by_prompt,
)
from humor_env.experiments.reports.report_numbers import (
    COLUMNS,
    FAR,
    Curve,
    Estimate,
    Headline,
    Repeat,
    at_steps,
    by_prompt,
    disagreement,
    flagged,
    headline,
    interval,
    mean_curve,
    over_seeds,
    paired,
    part_of,
    parting,
    phase_seconds,
    recent,
    repeats,
    series,
    shown,
    smooth,
    spent,
    window_for,
)
from humor_env.experiments.runs.interval import bootstrap_interval
from humor_env.rewards.rules import Fault


def judged(prompt, score, text="So cold.", **changes):
    return replace(Judged(prompt, "The soup was cold.", text, "judge", score, {}, ""), **changes)


def seed(name="seed-0", stages=None, **changes):
    return replace(SeedData(name, Path("x"), (), (), (), stages or {}, (), {}, {}), **changes)


def run(*seeds):
    return RunData("some", Path("x"), {}, {}, seeds, ())


def row_of(data, stage):
    return next(row for row in headline(data) if row.stage == stage)


# The table of stages


def test_a_prompt_counts_by_the_mean_of_its_lines_and_a_seed_by_its_prompts():
    """Seed 0: (0.2 + 0.6) / 2 = 0.4 and 0.8; seed 1: 0.1 and nothing. By prompt (0.4 + 0.1) / 2 = 0.25 and 0.8."""
    first = [judged("a", 0.2), judged("a", 0.6), judged("b", 0.8), judged("b", None)]
    second = [judged("a", 0.1), judged("b", None)]
    row = row_of(run(seed(stages={"ppo": first}), seed("seed-1", {"ppo": second})), "ppo")
    assert row.score == Estimate(pytest.approx((0.25 + 0.8) / 2))
    assert row.by_seed == pytest.approx([0.6, 0.1])
    assert (row.run, row.failures, row.count) == ("some", 2, 6)
    assert by_prompt(first) == pytest.approx({"a": 0.4, "b": 0.8})
    assert over_seeds([by_prompt(first), by_prompt(second)]) == pytest.approx({"a": 0.25, "b": 0.8})


def test_words_and_lengths_are_means_over_the_seeds():
    """Pairs of words: 2 different of 3 in seed 0 and 2 of 2 in seed 1. Letters over 18 a prompt: 20 / 36 and 9 / 18."""
    first = [judged("a", 0.1, "so so so so"), judged("b", 0.1, "wet soups")]
    second = [judged("a", 0.1, "so so wet")]
    row = row_of(run(seed(stages={"ppo": first}), seed("seed-1", {"ppo": second})), "ppo")
    assert row.distinct_2 == pytest.approx((2 / 4 + 2 / 2) / 2)
    assert row.length_ratio == pytest.approx((20 / 36 + 9 / 18) / 2)
    empty = row_of(run(seed(stages={"ppo": [replace(judged("a", 0.1, "1234"), prompt="")]})), "ppo")
    assert empty.length_ratio == 4.0


def test_a_change_is_from_the_imitation_or_else_the_base_and_references_have_none():
    stages = {
        "base": [judged("a", 0.1)],
        "imitation": [judged("a", 0.4)],
        "ppo": [judged("a", 0.9)],
        "teacher": [judged("a", 0.9)],
    }
    rows = {row.stage: row for row in headline(run(seed(stages=stages)))}
    assert rows["ppo"].change == Estimate(pytest.approx(0.5))
    assert rows["imitation"].change == Estimate(pytest.approx(0.3))
    assert (rows["base"].change, rows["teacher"].change) == (None, None)
    assert [rows[name].matches_teacher for name in stages] == [Estimate(0.0), Estimate(0.0), Estimate(1.0), None]
    del stages["imitation"]
    assert row_of(run(seed(stages=stages)), "ppo").change == Estimate(pytest.approx(0.8))
    assert [begun_from(stage, stages) for stage in ("ppo", "imitation")] == ["base", "base"]
    assert begun_from("ppo", ("imitation", "base")) == "imitation"
    assert begun_from("imitation", ("imitation", "base")) == "base"


def test_numbers_alone_make_a_row_too():
    """Two seeds have no common interval; a single one keeps its own."""
    one = {"score": 0.25, "low": 0.2, "high": 0.4, "distinct_2": 0.5, "length_ratio": 2.0, "failures": 1, "count": 10}
    two = {"score": 0.75, "low": 0.7, "high": 0.8, "distinct_2": None, "failures": None, "count": 5}
    single = row_of(run(seed(numbers={"ppo": one})), "ppo")
    assert single == Headline("some", "ppo", Estimate(0.25, 0.2, 0.4), [0.25], None, None, 0.5, 2.0, 1, 10)
    both = row_of(run(seed(numbers={"ppo": one}), seed("seed-1", numbers={"ppo": two})), "ppo")
    assert both == Headline("some", "ppo", Estimate(0.5), [0.25, 0.75], None, None, 0.5, 2.0, 1, 15)
    bare = row_of(run(seed(numbers={"ppo": {"score": None}})), "ppo")
    assert math.isnan(bare.score.mean) and list(bare.by_seed) == []
    assert (bare.distinct_2, bare.length_ratio, bare.failures, bare.count) == (None, None, 0, 0)
    lines = {"base": [judged("a", 0.5)]}
    stages = [row.stage for row in headline(run(seed(stages=lines, numbers={"base": {}, "ppo": one})))]
    assert stages == ["base", "ppo"]  # each once


def test_a_stage_that_only_some_seeds_have_is_made_of_those():
    lines = seed(stages={"base": [judged("a", 0.25)], "ppo": [judged("a", 0.5, "one two"), judged("a", None)]})
    other = seed("seed-1", {"base": [judged("a", 0.75)]})
    row = row_of(run(other, lines), "ppo")
    assert (row.by_seed, row.count, row.failures) == ([0.5], 2, 1)
    counted = seed("seed-2", numbers={"dpo": {"score": 0.5, "low": 0.25, "high": 0.75, "count": 4}})
    assert row_of(run(other, counted), "dpo").score == Estimate(0.5, 0.25, 0.75)


def test_the_interval_of_a_single_seed_is_drawn_with_its_own_number():
    lines = [judged(f"p{i}", i % 7 / 7) for i in range(30)]
    values = [line.score for line in lines]
    for name, drawn_with in (("seed-3", 3), ("seed-x", 0), ("log", 0), ("3", 3)):
        score = row_of(run(seed(name, {"ppo": lines})), "ppo").score
        assert (score.low, score.high) == bootstrap_interval(values, seed=drawn_with)
    two = row_of(run(seed("seed-3", {"ppo": lines}), seed("seed-4", {"ppo": lines})), "ppo").score
    assert (two.low, two.high) == bootstrap_interval(values, seed=0)
    assert interval(values) == two


def test_the_cells_of_the_table_of_stages():
    row = Headline(
        *("some", "ppo", Estimate(0.51234, 0.4, 0.6), [0.5, 0.52468], Estimate(0.1), Estimate(0.876, 0.8, 0.9)),
        *(0.456, 1.234, 3, 40),
    )
    assert [(c.heading, c.cell(row), c.small(row)) for c in COLUMNS] == [
        ("score", "0.512 [0.400, 0.600]", "by seed 0.500, 0.525"),
        ("change", "+0.100", ""),
        ("at least the teacher’s", "88% [80%, 90%]", ""),
        ("distinct-2", "0.46", ""),
        ("length", "1.23 × prompt", ""),
        ("lines", "40, 3 not judged", ""),
    ]
    bare = replace(
        row, score=Estimate(math.nan, 0.1, 0.2), by_seed=[0.5], change=None, matches_teacher=Estimate(1.0, 0.9, None)
    )
    bare = replace(bare, distinct_2=None, length_ratio=math.inf, failures=0)
    assert [(c.cell(bare), c.small(bare)) for c in COLUMNS] == [
        *(("–", ""), ("–", ""), ("100%", ""), ("–", ""), ("– × prompt", ""), ("40", "")),
    ]
    assert COLUMNS[0].cell(replace(row, score=Estimate(0.5, None, 0.6))) == "0.500"
    assert (shown(-0.0625, "+.2f"), shown(math.nan, ".2f"), shown(0.0, ".1f")) == ("-0.06", "–", "0.0")


# Pairs


def test_lines_are_paired_the_first_with_the_first_and_fewer_repeat():
    """a: 0.9 - 0.1, 0.5 - 0.4, 0.3 - 0.1, of mean 0.3666...; b: 0.8 - 0.6 alone; c and d have no pair."""
    now = [
        *(judged("a", 0.9), judged("a", 0.5), judged("a", 0.3)),
        *(judged("b", 0.8), judged("b", None), judged("c", 0.7), judged("d", 0.7)),
    ]
    then = [judged("a", 0.1), judged("a", 0.4), judged("b", 0.6), judged("d", None), judged("e", 0.2)]
    one = run(seed(stages={"ppo": now, "imitation": then}))
    a, b = (0.8 + 0.1 + 0.2) / 3, 0.2
    assert paired(one, "ppo", "imitation") == Estimate(pytest.approx((a + b) / 2))
    assert paired(one, "imitation", "ppo").mean == pytest.approx(((0.1 - 0.9 + 0.4 - 0.5) / 2 + 0.6 - 0.8) / 2)
    more = paired(one, "ppo", "imitation", lambda a, b: float(a > 2 * b), 0.0)
    assert more.mean == pytest.approx((2 / 3 + 0) / 2)  # 0.9 > 0.2, 0.5 < 0.8, 0.3 > 0.2; 0.8 < 1.2


def test_nothing_is_paired_where_a_seed_lacks_the_other_stage():
    both = {"ppo": [judged("a", 0.9)], "imitation": [judged("a", 0.4)]}
    alone = {"ppo": [judged("a", 0.9)]}
    assert paired(run(seed(stages=both), seed("seed-1", alone)), "ppo", "imitation") is None
    assert paired(run(seed(stages=alone)), "ppo", "imitation") is None
    assert paired(run(seed(stages=both)), "dpo", "imitation") is None
    assert paired(run(seed(stages=both), seed("seed-1", {"base": []})), "ppo", "imitation").mean == pytest.approx(0.5)
    apart = {"ppo": [judged("a", 0.9)], "imitation": [judged("b", 0.4)]}
    assert paired(run(seed(stages=apart)), "ppo", "imitation") is None


def test_a_part_is_paired_like_a_score():
    now, then = judged("a", 0.9, parts={"form": 0.75}), judged("a", 0.1, parts={"form": 0.25, "meaning": 1.0})
    one = run(seed(stages={"ppo": [now], "imitation": [then]}))
    form = paired(one, "ppo", "imitation", operator.sub, value=lambda line: part_of(line, "form"))
    assert form == Estimate(0.5)
    assert paired(one, "ppo", "imitation", value=lambda line: part_of(line, "meaning")) is None


def test_differences_have_their_own_lowest_value():
    """All alike, by the rule of three: up to 3 in 60 may differ, and only a difference can be below 0."""
    same = [0.0] * 60
    assert interval([1.0] * 60) == Estimate(1.0, pytest.approx(0.95), 1.0)
    assert interval(same) == Estimate(0.0, 0.0, pytest.approx(0.05))
    low_and_high = interval(same, -1.0)
    assert (low_and_high.low, low_and_high.high) == (pytest.approx(-0.05), pytest.approx(0.05))
    stages = {name: [judged(f"p{i}", 0.5) for i in range(60)] for name in ("ppo", "imitation", "teacher")}
    row = row_of(run(seed(stages=stages)), "ppo")
    assert (row.change.low, row.change.high) == (pytest.approx(-0.05), pytest.approx(0.05))
    assert (row.matches_teacher.low, row.matches_teacher.high) == (pytest.approx(0.95), 1.0)


def test_a_stages_lines_by_prompt():
    a, b, c = judged("p", 0.1, "one"), judged("q", 0.2, "two"), judged("p", 0.3, "three")
    assert lines_by_prompt([a, b, c]) == {"p": [a, c], "q": [b]}
    assert first_lines([a, b, c]) == {"p": a, "q": b}


# Curves


def test_a_series_has_the_rows_that_have_it_and_a_step():
    rows = [{"step": 1.0, "x": 0.5}, {"step": 2.0}, {"x": 0.25}, {"step": 4.0, "x": 0.0}]
    assert series(rows, "x") == Curve([1.0, 4.0], [0.5, 0.0])


def test_seeds_are_averaged_where_they_all_have_a_step():
    one, two, three = Curve([1, 2, 3], [0.0, 3.0, 6.0]), Curve([3, 2, 4], [9.0, 6.0, 1.0]), Curve([], [])
    assert mean_curve([one, two, three]) == Curve([2, 3], [4.5, 7.5])
    assert mean_curve([three, one]) is one
    assert mean_curve([three]) == Curve([], [])


@pytest.mark.parametrize(
    ("window", "values"),
    [
        (1, [0, 4, 8, 20, 0]),
        (2, [2, 4, 32 / 3, 28 / 3, 10]),
        (3, [2, 4, 32 / 3, 28 / 3, 10]),
        (5, [4, 8, 6.4, 8, 28 / 3]),
    ],
)
def test_a_running_mean_is_centred(window, values):
    assert smooth(Curve([1, 2, 3, 4, 5], [0, 4, 8, 20, 0]), window).values == pytest.approx(values)


@pytest.mark.parametrize(("points", "window"), [(0, 1), (39, 1), (40, 3), (79, 3), (80, 5), (400, 21)])
def test_a_long_curve_is_smoothed_over_more_points(points, window):
    assert window_for(Curve(range(points), range(points))) == window


def test_a_curve_between_its_steps_keeps_its_last_value():
    assert at_steps(Curve([2, 4], [0.25, 0.75]), [1, 2, 3, 4, 5]) == [0.25, 0.25, 0.25, 0.75, 0.75]
    assert all(map(math.isnan, at_steps(Curve([], []), [1, 2]))) and len(at_steps(Curve([], []), [1, 2])) == 2


@pytest.mark.parametrize(
    ("trained", "held_out", "step"),
    [
        ([0.0, 0.5, 1.0], [0.5, 0.75, 0.5], 2),  # best in the middle: only the last one after it
        ([0.0, 0.5, 1.0], [0.75, 0.5, 0.5], 1),
        ([0.0, 0.5, 1.0], [0.5, 0.5, 0.75], None),  # best at the end: nothing after it
        ([0.0, 0.5, 0.53125], [0.5, 0.75, 0.5], 2),  # 0.03125 gained
        ([0.0, 0.5, 0.515625], [0.5, 0.75, 0.5], None),
        ([0.0, 0.5, 1.0], [0.5, 0.75, 0.71875], 2),  # 0.03125 lost
        ([0.0, 0.5, 1.0], [0.5, 0.75, 0.734375], None),
        # Of the four after the best only the last three count: lost 0.25 / 3, and gained 0.5 / 3.
        ([0.0, 0.5, 0.0, 0.5, 0.5, 1.0], [0.0, 0.75, 0.0, 0.75, 0.75, 0.5], 2),
        ([0.0, 0.5, 1.0, 0.5, 0.5, 0.5], [0.0, 0.75, 0.0, 0.75, 0.75, 0.75], None),
    ],
)
def test_two_judges_part_at_the_held_out_judges_best_step(trained, held_out, step):
    assert parting(range(1, len(trained) + 1), trained, held_out) == step


def test_parting_takes_three_measurements_and_a_difference_beyond_the_least():
    assert parting([1, 2], [0.0, 1.0], [1.0, 0.0]) is None
    assert parting([1, 2, 3], [0.0, 0.0, 0.25], [0.25, 0.25, 0.0], least=0.0625) == 1  # both by 0.125, in the mean
    assert parting([1, 2, 3], [0.0, 0.0, 0.25], [0.25, 0.0, 0.0], least=0.125) is None  # gained 0.125, not more
    assert parting([1, 2, 3], [0.0, 0.25, 0.25], [0.25, 0.25, 0.0], least=0.125) is None  # lost 0.125, not more


# Flags


def test_a_line_is_flagged_by_gates_below_a_half_and_by_a_critic_far_below():
    gates = {
        "half": {"half": Fault(0.5, "at the limit")},
        "low": {"low": Fault(0.25, "too low"), "fine": Fault(1.0, ""), "zero": Fault(0.0, "nothing")},
    }
    lines = [
        judged("p", 0.75, "half", others={"b": 0.5, "c": 1.5, "a": 0.4375}),  # c is the farthest, and above
        judged("p", 0.75, "half", others={"b": 0.5, "a": 0.4375}),
        judged("p", 0.75, "half", others={"b": 0.5}),
        judged("p", 0.75, "low", others={"b": 0.25}, critic=""),
        judged("p", None, "half", others={"b": 0.0}),
        judged("p", 0.75, "low"),
    ]
    seen = []
    found = flagged(lines, lambda joke: seen.append(joke) or gates[joke.text])
    assert found == [
        ((), ""),
        (("critics_disagree",), "judge says 0.75, a says 0.44"),
        ((), ""),
        (("low", "zero", "critics_disagree"), "low: too low; zero: nothing; its critic says 0.75, b says 0.25"),
        ((), ""),
        (("low", "zero"), "low: too low; zero: nothing"),
    ]
    first = seen[0]
    assert (first.prompt.id, first.prompt.text, first.text, first.author, first.stop_reason) == (
        *("p", "The soup was cold.", "half", "student", None),
    )
    assert FAR == 0.3


def test_a_gate_sees_how_a_line_ended():
    seen = []
    flagged([judged("p", 0.5, stop_reason="length")], lambda joke: seen.append(joke.stop_reason) or {})
    assert seen == ["length"]


def test_how_far_critics_are_apart():
    assert disagreement(judged("p", 0.5, others={"a": 0.25, "b": 0.875})) == 0.625
    assert disagreement(judged("p", None, others={"a": 0.25, "b": 0.875})) == 0.625
    assert disagreement(judged("p", 0.5)) is None
    assert disagreement(judged("p", 0.5, others={"a": 0.5})) == 0.0


def test_only_the_latest_lines_are_scanned(monkeypatch):
    assert len(recent([0] * 20_001)) == 20_000
    monkeypatch.setattr(report_numbers, "_MOST_SCANNED", 2)
    assert recent([1, 2, 3]) == [2, 3]


# Repeated words


def test_words_that_come_again_are_told_with_the_teachers_share():
    """Of five lines: "b c d e" in three, "a b c d" in two (three words are the same: once), "x y z w" in two."""
    texts = ["a b c d e", "a b c d e", "b c d e", "x y z w", "x y z w"]
    student = [judged("p", 0.5, text) for text in texts]
    teacher = [judged("p", 0.5, text) for text in ("b c d e", "b c d e", "x y z w", "q q q q", "q q q q")]
    seeds = [seed(stages={"ppo": student, "teacher": teacher})]
    assert repeats(seeds, "ppo") == [Repeat("b c d e", 0.6, 0.4), Repeat("x y z w", 0.4, 0.0)]
    assert repeats(seeds, "ppo", most=1) == [Repeat("b c d e", 0.6, 0.4)]
    assert repeats(seeds, "ppo", least=0.6) == [Repeat("b c d e", 0.6, 0.4)]
    assert [r.words for r in repeats(seeds, "ppo", n=5)] == ["a b c d e"]
    two = [seeds[0], seed("seed-1", {"ppo": student[:1]})]
    assert repeats(two, "ppo") == [Repeat("b c d e", 4 / 6, 0.4), Repeat("x y z w", 2 / 6, 0.0)]


def test_words_of_the_prompt_and_words_said_twice_in_a_line_do_not_repeat():
    lines = [judged("p", 0.5, "the soup was cold"), judged("q", 0.5, "the soup was cold")]
    assert repeats([seed(stages={"ppo": lines})], "ppo") == []  # as their prompt says
    twice = [judged("p", 0.5, "a b c d a b c d"), judged("q", 0.5, "one")]
    assert repeats([seed(stages={"ppo": twice})], "ppo") == []
    assert repeats([seed()], "ppo") == []


# Time and money


def test_a_learners_time_by_phase():
    """Of 10 + 10 s: 7 writing, 2 waiting, 5 updating, 3 in a phase of its own, and 3 elsewhere."""
    timings = [
        {"step": 1.0, "seconds/step": 10.0, "seconds/generate": 3.0, "seconds/judge": 50.0, "seconds/update": 5.0},
        {"step": 2.0, "seconds/step": 10.0, "seconds/generate": 4.0, "seconds/judge_wait": 2.0, "seconds/fit": 3.0},
        {"seconds/spent": 90.0, "tokens_per_second": 4.0, "seconds/reference": 0.0},
    ]
    assert phase_seconds(seed(timings=timings)) == {
        **{"writing": 7.0, "waiting for the critic": 2.0, "update": 5.0, "fit": 3.0, "reference": 0.0},
        "other": 3.0,
    }


@pytest.mark.parametrize(("update", "other"), [(199.0, False), (198.5, True)])
def test_other_time_is_told_from_half_a_per_cent(update, other):
    timings = [{"seconds/step": 200.0, "seconds/update": update}]
    assert ("other" in phase_seconds(seed(timings=timings))) is other
    assert phase_seconds(seed(timings=[{"seconds/update": update}])) == {"update": update}
    assert phase_seconds(seed()) == {}


def test_calls_and_dollars_are_summed_over_seeds():
    one = seed(metrics=[{"critic/calls": 2.0, "critic/cost": 0.25}, {"critic/calls": 3.0}])
    two = seed(metrics=[{"critic/calls": 5.0, "other": 9.0}])
    assert spent(run(one, two)) == {"calls": 10.0, "cost": 0.25}
    assert spent(run(two)) == {"calls": 5.0}
    assert spent(run(seed())) == {}
