"""The health of trainer and judges by hand: the rows, their limits, how numbers are written, and what was counted."""

import math
from dataclasses import replace
from pathlib import Path

import pytest

from humor_env.experiments.reports.health import (
    TRAINER,
    JudgeHealth,
    _short,
    judge_table,
    judges,
    trainer_table,
)
from humor_env.experiments.reports.report_data import Judged, RunData, SeedData


def judged(score=0.5, critic="judge", error="", **parts):
    named = {name.replace("__", "."): value for name, value in parts.items()}
    return Judged("p", "The soup was cold.", "So cold.", critic, score, named, error, error=error)


def seed(**changes):
    return replace(SeedData("seed-0", Path("x"), (), (), (), {}, (), {}, {}), **changes)


def run(*seeds, spec=(), record=()):
    return RunData("some", Path("x"), dict(spec), dict(record), seeds, ())


def steps(name, *values):
    return [{"step": float(step), name: value} for step, value in enumerate(values, 1)]


# The trainer


@pytest.mark.parametrize(
    ("value", "written"),
    [
        (0.0, "0"),
        (0.5, "0.5"),
        (-0.5, "-0.5"),
        (0.001, "0.001"),
        (0.00099, "9.9e-4"),
        (-0.00099, "-9.9e-4"),
        (1.25e-12, "1.2e-12"),
        (99.96, "100"),
        (99.94, "99.9"),
        (100.0, "100"),
        (-100.4, "-100"),
        (12345.6, "12,346"),
        (-2000.0, "-2,000"),
        (3.14159, "3.14"),
    ],
)
def test_a_number_has_three_digits(value, written):
    assert _short(value) == written


def test_the_limits_of_the_trainers_numbers():
    limits = {
        vital.metric: (vital.least, vital.most, vital.most_in_float32)
        for vital in TRAINER
        if (vital.least, vital.most) != (-math.inf, math.inf)
    }
    assert limits == {
        "update/clip_share": (-math.inf, 0.3, None),
        "value/explained_variance": (0.0, math.inf, None),
        "update/first_mismatch": (-math.inf, 0.06, 0.01),
        "update/chosen_gain": (0.0, math.inf, None),
        "groups/no_spread_share": (-math.inf, 0.9, None),
    }


def test_each_row_is_named_in_words_and_measured_once():
    metrics = [vital.metric for vital in TRAINER]
    assert len(set(metrics)) == len(metrics)
    assert not any(" " in metric for metric in metrics)
    names = [f"{vital.name}, {vital.unit}" for vital in TRAINER]
    assert len(set(names)) == len(names)
    assert not any("/" in name or "_" in name for name in names)
    assert sum(vital.name[0].islower() for vital in TRAINER) == len(TRAINER) - 3  # those of a KL
    assert names[0] == "KL to the imitation, nats a token" and names[-1] == "most memory so far, GiB"


@pytest.mark.parametrize(
    ("metric", "value", "precision", "odd"),
    [
        ("update/clip_share", 0.3, None, False),
        ("update/clip_share", 0.31, "float32", True),
        ("value/explained_variance", 0.0, None, False),
        ("value/explained_variance", 0.5, None, False),
        ("value/explained_variance", -0.01, None, True),
        ("update/first_mismatch", 0.06, "bfloat16", False),
        ("update/first_mismatch", 0.011, "float32", True),
        ("update/first_mismatch", 0.01, "float32", False),
        ("update/chosen_gain", -0.5, None, True),
        ("groups/no_spread_share", 0.95, None, True),
        ("kl/per_line", 1e9, None, False),
    ],
)
def test_a_row_is_marked_beyond_its_limit(metric, value, precision, odd):
    [vital] = [vital for vital in TRAINER if vital.metric == metric]
    assert vital.odd(value, precision) is odd


def test_a_row_has_the_means_of_the_thirds_and_the_extremes_with_their_first_step():
    logged = steps("update/entropy", 4.0, 1.0, 3.0, 1.0, 6.0, 6.0)
    timed = steps("seconds/step", 0.5, 0.25, 0.5)
    table = trainer_table(run(seed(metrics=logged, timings=timed)), "Trainer")
    assert (table.title, table.columns) == (
        "Trainer",
        ("number, unit", "first third", "middle", "last third", "lowest, at step", "highest, at step"),
    )
    entropy, step = table.rows
    assert entropy.cells == ["entropy, nats a token", "2.5", "2", "6", "1 at 2", "6 at 6"]
    assert (entropy.hint, entropy.worth_a_look) == ("near 0 nothing new is tried", False)
    assert step.cells == ["time of a step, seconds", "0.5", "0.25", "0.5", "0.25 at 2", "0.5 at 3"]
    assert table.caption == "Means over each third of the steps. A marked row ended beyond its limit."
    [rate] = trainer_table(run(seed(metrics=steps("learning_rate", 0.5))), "").rows
    assert rate.cells[0] == "learning rate"  # it has no unit


def test_seeds_are_averaged_and_their_extremes_kept():
    first, second = seed(metrics=steps("kl/per_line", 1.0, 2.0, 3.0)), seed(metrics=steps("kl/per_line", 3.0, 8.0, 5.0))
    table = trainer_table(run(first, second, seed()), "")
    assert table.rows[0].cells[1:] == ["2", "5", "4", "1 at 1", "8 at 2"]
    assert table.caption.endswith(" Means over seeds; the extremes are those of any seed.")
    one = trainer_table(run(first, seed(metrics=steps("kl/per_line", 0.0, 0.0, 0.0))), "")
    assert one.rows[0].cells[1:] == ["0.5", "1", "1.5", "0 at 1", "3 at 3"]  # zero in one seed only
    apart = run(first, seed(metrics=[{"step": 9.0, "kl/per_line": 1.0}]))
    assert list(trainer_table(apart, "").rows) == []  # no step that both have


def test_only_the_end_of_a_run_marks_a_row_and_by_the_runs_precision():
    early, late = steps("update/clip_share", 0.9, 0.1, 0.1), steps("update/clip_share", 0.1, 0.1, 0.9)
    assert [trainer_table(run(seed(metrics=m)), "").rows[0].worth_a_look for m in (early, late)] == [False, True]
    mismatch = seed(metrics=steps("update/first_mismatch", 0.02))
    marked = [trainer_table(run(mismatch, record=record), "").rows[0].worth_a_look
              for record in ({"precision": "float32"}, {"precision": "bfloat16"}, {})]  # fmt: skip
    assert marked == [True, False, False]


# The judges


def test_a_judge_of_lines_is_counted_from_the_lines_that_were_kept():
    """8 kept lines, 3 failed, 2 of them refused, and 81 judgements: 30.4 failed, 20.25 refused."""
    kept = [judged()] * 5 + [judged(None, error="refusal: no")] * 2 + [judged(None, error="busy")]
    one = seed(
        training=kept, metrics=[{"step": 1.0, "spent/judgements": 50.0}, {"step": 2.0, "spent/judgements": 61.0}]
    )
    two = seed(metrics=[{"step": 2.0, "spent/judgements": 20.0, "reward/part/x/flips": 0.5, "reward/part/x/tie": 0.25}])
    [found] = judges(run(one, two))
    assert found == JudgeHealth("teaching", "judge", 81, False, 30, 20, 0.5, 0.25)
    [bare] = judges(run(seed(training=kept)))
    assert bare == JudgeHealth("teaching", "judge", 8, False, 3, 2)


def test_failures_are_told_from_the_log_where_no_lines_were_kept():
    logged = [
        {"step": 1.0, "failures/share": 0.25},
        {"step": 2.0, "failures/share": 0.75, "spent/judgements": 10.0, "critic/calls": 4.0, "critic/cost": 0.5},
    ]
    [found] = judges(run(seed(metrics=logged), spec={"critic": [{"critic": "a", "name": "A"}, {"critic": "b"}]}))
    assert found == JudgeHealth("teaching", "A + b", 10, False, 5, None, calls=4, cost=0.5)
    assert found.cost_per_thousand == 50.0
    [none] = judges(run(seed(metrics=[{"step": 1.0, "spent/judgements": 10.0, "critic/cost": 0.5}])))
    assert (none.failed, none.calls, none.cost, none.name) == (0, None, None, "")  # a cost without a call is none
    assert none.cost_per_thousand is None
    assert replace(found, asked=0).cost_per_thousand is None
    assert judges(run(seed(metrics=[{"step": 1.0}]))) == []


def test_the_teaching_judge_is_named_by_the_spec_or_else_by_its_lines():
    kept = [judged(critic="b"), judged(critic=""), judged(critic="a")]
    names = [
        judges(run(seed(training=kept), spec=spec))[0].name
        for spec in ({}, {"judge": {"judge": "crowd"}}, {"judge": "odd"}, {"critic": [{"critic": "x"}], "judge": {}})
    ]
    assert names == ["a, b", "crowd", "a, b", "x"]


def test_a_judge_of_pairs_is_counted_from_the_last_step_of_each_seed():
    """A pair that failed left two lines without a score; of five such lines three were refused, so one pair."""
    last = {"feedback/judged": 20.0, "feedback/failed": 3.0, "feedback/flipped": 5.0, "feedback/ties": 2.0}
    kept = [judged(None, error="refusal")] * 3 + [judged(None, error="busy")] * 2 + [judged()]
    first = [{"step": 1.0, "feedback/judged": 99.0}, {"step": 2.0} | last]
    both = run(seed(metrics=first, training=kept), seed(metrics=[{"step": 2.0} | last | {"feedback/calls": 7.0}]))
    [found] = judges(both)
    assert found == JudgeHealth("teaching", "judge", 40, True, 6, 1, 10 / 34, 4 / 34, calls=7)
    [bare] = judges(run(seed(metrics=[{"step": 1.0} | last])))
    assert (bare.refusals, bare.calls) == (None, None)
    assert judges(run(seed(metrics=[{"step": 1.0, "feedback/judged": 0.0}]))) == []


def test_flips_are_a_share_of_the_pairs_judged_in_both_orders_and_ties_of_all_verdicts():
    """Failed pairs counted as steady ones: 33 flips of 55 verdicts, which are 60 %, were shown as 33 % and not marked.
    A judge that was never asked in both orders had 0 % instead of a dash."""
    counts = {"judged": 100.0, "failed": 45.0, "both_orders": 50.0, "flipped": 33.0, "ties": 11.0}

    def shown(**changed):
        logged = {f"feedback/{name}": value for name, value in (counts | changed).items() if value is not None}
        table = judge_table(run(seed(metrics=[{"step": 1.0} | logged])), "Judges")
        cells = dict(zip(table.columns, table.rows[0].cells, strict=True))
        return cells.get("flips"), cells["ties"], table.rows[0].worth_a_look

    assert shown() == ("66%", "20%", True)
    assert shown(both_orders=None) == ("60%", "20%", True)  # a log from before it was counted
    assert shown(both_orders=0.0, flipped=0.0) == (None, "20%", False)


def test_the_held_out_judge_is_asked_about_every_stage():
    stages = {
        "base": [judged(critic="b", flips=0.5, a__flips=0.25, tie=0.5), judged(None, "", "refusal")],
        "ppo": [judged(critic="a", my_flips=1.0, a__tie=0.0, necktie=1.0), judged(None, error="busy")],
    }
    found = judges(run(seed(stages=stages), seed(stages={"ppo": [judged(critic="a")]})))
    assert found == [JudgeHealth("held out", "a, b, judge", 5, False, 2, 1, 0.375, 0.25)]


def test_the_table_of_judges_has_the_columns_that_were_measured():
    pairs = {"feedback/judged": 2000.0, "feedback/failed": 50.0, "feedback/flipped": 975.0, "feedback/calls": 4000.0}
    stages = {"ppo": [judged(tie=0.5), judged(None, error="refusal"), judged(None)]}
    table = judge_table(run(seed(metrics=[{"step": 1.0} | pairs], stages=stages)), "Judges")
    assert table.columns == ["judge", "asked about", "failed", "refused", "flips", "ties", "calls"]
    assert [row.cells for row in table.rows] == [
        ["teaching", "2,000 pairs", "50 of 2,000, 2.5%", "–", "50%", "0%", "4,000"],
        ["held out: judge", "3 lines", "2 of 3, 67%", "1 of 3, 33%", "–", "50%", "–"],
    ]
    assert [row.worth_a_look for row in table.rows] == [False, True]  # half of the verdicts flip, and most failed
    assert table.caption == (
        "Failed: no score came back. Refused: the model declined to answer. Flips: verdicts that change when the two "
        "lines are shown in the other order."
    )


def test_what_marks_a_judge_and_what_it_costs():
    calls = [{"step": 1.0, "spent/judgements": 2000.0, "critic/calls": 1500.0, "critic/cost": 2469.0}]
    table = judge_table(run(seed(metrics=calls)), "")
    row = dict(zip(table.columns, table.rows[0].cells, strict=True))
    assert (row["calls"], row["cost"], row["cost per 1,000"]) == ("1,500", "$2,469.00", "$1,234.50")
    assert table.caption.endswith("Cost per 1,000: dollars for 1,000 judgements.")
    marked = []
    for failed, flipped in ((1, 0.0), (2, 0.0), (3, 0.0), (0, 0.5), (0, 0.75)):
        lines = [judged(None)] * failed + [judged(flips=flipped)] * (4 - failed)
        marked.append(judge_table(run(seed(stages={"ppo": lines})), "").rows[0].worth_a_look)
    assert marked == [False, False, True, False, True]  # half is not most
