"""The pictures of a report: which are drawn of a run's numbers, of which values, and what their captions say."""

from dataclasses import replace
from pathlib import Path

import pytest

from humor_env.experiments.drawing import charts
from humor_env.experiments.drawing.charts import Bar, Dot, Mark
from humor_env.experiments.reports import pictures as module
from humor_env.experiments.reports.pictures import MOST_PARTS, drift_marks, pictures
from humor_env.experiments.reports.report_data import Judged, RunData, SeedData
from humor_env.experiments.reports.report_numbers import headline
from humor_env.experiments.reports.tables import percent, share_of

DRAWING = ("line_chart", "dot_chart", "bar_chart", "histogram", "scatter_chart")


@pytest.fixture
def drawn(monkeypatch):
    """What the drawing functions were given, by title; they draw all the same."""
    seen = {}
    for name in DRAWING:

        def draw(data, *, title, own=getattr(charts, name), **options):
            seen[title] = (list(data), options)
            return own(data, title=title, **options)

        monkeypatch.setattr(module, name, draw)
    return seen


def judged(score, number=0, **changes):
    line = Judged(f"p{number}", "The soup was cold.", f"So cold {number}.", "judge", score, {}, "")
    return replace(line, **changes)


def seed(name="seed-0", metrics=(), **changes):
    data = SeedData(name, Path("x"), metrics, (), (), {}, (), {}, {})
    return replace(data, **changes)


def run(*seeds, name="some"):
    return RunData(name, Path("x"), {"learner": {"name": "ppo"}}, {}, seeds, ())


def rows(name, *values):
    return [{"step": float(step), name: value} for step, value in enumerate(values, 1)]


def curve(line):
    return list(line.x), list(line.y)


def test_the_score_while_learning_is_each_seed_and_their_mean(drawn):
    two = run(seed(metrics=rows("reward/mean", 0.2, 0.4)), seed("seed-1", rows("reward/mean", 0.4, 0.8)))
    [picture] = pictures([two], [])
    lines, options = drawn["Score while learning"]
    assert [(line.faint, curve(line)[1]) for line in lines[:2]] == [(True, [0.2, 0.4]), (True, [0.4, 0.8])]
    assert not lines[2].faint
    assert lines[2].y == pytest.approx([0.3, 0.6])
    assert (picture.section, options["y_label"], options["marks"]) == ("curves", "mean score", [])
    assert picture.caption == "Thin: each seed and step. Thick: the mean over seeds, smoothed over 1 steps."


def test_the_held_out_judges_curve_has_its_band(drawn):
    metrics = [
        {"step": float(s), "reward/mean": 0.1 * s, "eval/score": 0.05 * s, "eval/low": 0.04 * s, "eval/high": 0.06 * s}
        for s in (1, 2, 3)
    ]
    [picture] = pictures([run(seed(metrics=metrics))], [])
    held_out = drawn["Score while learning"][0][-1]
    assert held_out.name == "held-out judge"
    assert [held_out.y, held_out.low, held_out.high] == [
        pytest.approx([k * s for s in (1, 2, 3)]) for k in (0.05, 0.04, 0.06)
    ]
    assert picture.caption.endswith("The held-out judge (dev prompts) and the training critic do not diverge.")
    for row in metrics[1:]:
        del row["eval/low"]
    pictures([run(seed(metrics=metrics))], [])
    held_out = drawn["Score while learning"][0][-1]
    assert (held_out.low, held_out.high) == (None, None)  # no band of which one edge is missing


def test_a_judge_asked_at_both_ends_only_is_two_points_and_no_line(drawn):
    stages = {"imitation": [judged(0.2)], "ppo": [judged(0.6)]}
    numbers = {name: {} for name in stages}
    one = run(seed(metrics=rows("reward/mean", 0.1, 0.2, 0.3, 0.4), stages=stages, numbers=numbers))
    picture = next(p for p in pictures([one], []) if "only before and after" in p.caption)
    line = drawn["Score while learning"][0][-1]
    assert list(line.x) == [0.0, 2.0, 4.0]
    assert [line.y[0], line.y[2]] == [0.2, 0.6]
    assert line.y[1] != line.y[1]  # a gap
    assert "learner.evaluate_every" in picture.caption


def test_alarms_are_marked_where_they_were_first_raised(drawn):
    later = [{"step": 30, "drift/training": 0.5, "marks": [{"limit": "longer"}]}]
    early = [
        {"step": 20, "drift/training": 0.1, "drift/held_out": 0.2, "marks": [{"limit": "longer"}]},
        {"step": 25, "drift/training": 0.3, "drift/held_out": 0.4, "marks": [{"limit": "a very long name of a limit"}]},
    ]
    both = run(seed(drift=later), seed("seed-1", drift=early))
    assert drift_marks(both) == [Mark(20, "longer"), Mark(25, "a very long name of a li")]
    [picture] = pictures([run(seed(drift=early))], [])
    lines, options = drawn["Drift monitor"]
    assert {line.name: curve(line) for line in lines} == {
        "training critic": ([20, 25], [0.1, 0.3]),
        "held-out judge": ([20, 25], [0.2, 0.4]),
    }
    assert [mark.x for mark in options["marks"]] == [20, 25]
    assert picture.section == "curves"


@pytest.mark.parametrize(("count", "note"), [(MOST_PARTS, ""), (MOST_PARTS + 2, " The other 2 are in metrics.jsonl.")])
def test_many_parts_are_cut_and_the_caption_says_so(drawn, count, note):
    metrics = [{"step": 1.0} | {f"reward/part/p{i}": i / 10 for i in range(count)}]
    [picture] = pictures([run(seed(metrics=metrics))], [])
    lines, _ = drawn["Parts of the reward"]
    assert [(line.name, list(line.y)) for line in lines] == [(f"p{i}", [i / 10]) for i in range(MOST_PARTS)]
    assert picture.caption == f"What the gain is made of.{note}"


def test_two_runs_are_named_in_titles_and_legends(drawn):
    metrics = [{"step": 1.0, "reward/mean": 0.2, "kl/per_line": 1.0, "text/distinct_2": 0.5}]
    pictures([run(seed(metrics=metrics), name=name) for name in ("one", "two")], [])
    assert set(drawn) == {
        *("Score while learning: one", "Score while learning: two", "Distance to the imitation"),
        *("Diversity of a batch: one", "Diversity of a batch: two"),
    }
    assert [line.name for line in drawn["Distance to the imitation"][0]] == ["one", "one", "two", "two"]
    pictures([run(seed(metrics=metrics))], [])
    assert [line.name for line in drawn["Distance to the imitation"][0]] == ["distance to the imitation"] * 2


@pytest.mark.parametrize("name", ["failures/share", "update/clip_share"])
def test_what_is_always_zero_is_not_drawn(drawn, name):
    assert pictures([run(seed(metrics=rows(name, 0.0, 0.0)))], []) == []
    assert len(pictures([run(seed(metrics=rows(name, 0.0, 0.1)))], [])) == 1
    assert len(pictures([run(seed(metrics=rows("update/entropy", 0.0, 0.0)))], [])) == 1


def test_scores_before_and_after_say_how_many_are_at_the_ends(drawn):
    before = [judged(s, n) for n, s in enumerate((0.0, 0.0, 0.0, 0.5))]
    after = [judged(s, n) for n, s in enumerate((0.5, 0.5, 0.5, 0.5))]
    teacher = [judged(1.0)]
    stages = {"base": teacher, "imitation": before, "ppo": after, "teacher": teacher}
    one = run(seed(stages=stages, numbers={name: {} for name in stages}))
    [picture] = [p for p in pictures([one], []) if p.section == "scores"]
    assert [(v.name, list(v.values)) for v in drawn["Held-out scores"][0]] == [
        ("imitation", [0.0, 0.0, 0.0, 0.5]),
        ("ppo", [0.5] * 4),
    ]
    assert picture.caption.endswith(
        "imitation: 75% at its lowest, 0.00, and 25% at its highest, 0.50; ppo: all at 0.50."
    )


def test_the_headline_has_a_dot_for_each_stage_and_an_axis_from_zero(drawn):
    stages = {"imitation": [judged(0.2, n) for n in range(12)], "ppo": [judged(0.6, n) for n in range(12)]}
    one = run(seed(stages=stages, numbers={name: {} for name in stages}))
    picture = pictures([one], headline(one))[0]
    dots, options = drawn["Held-out score"]
    assert [(d.label, round(d.value, 9), d.series) for d in dots] == [("imitation", 0.2, ""), ("ppo", 0.6, "")]
    assert options["x_range"] == (0.0, 1.0)
    assert picture.section == "result"
    pictures([one, one], [*headline(one), *headline(one)])
    assert {d.series for d in drawn["Held-out score"][0]} == {"some"}


@pytest.mark.parametrize(("top", "end"), [(0.25, 0.25), (0.26, 0.5), (0.51, 1.0), (1.5, 1.5)])
def test_the_headlines_axis_ends_at_a_round_number_above_all(drawn, top, end):
    stages = {"ppo": [judged(top)]}
    one = run(seed(stages=stages, numbers={"ppo": {}}))
    pictures([one], headline(one))
    assert drawn["Held-out score"][1]["x_range"] == (0.0, end)
    assert isinstance(drawn["Held-out score"][0][0], Dot)


def test_second_critics_are_drawn_against_the_runs_own(drawn):
    training = [judged(0.1 * n, n, others={"other": 0.05 * n}) for n in range(4)] + [
        judged(None, 9, others={"other": 1.0})
    ]
    stages = {"base": [judged(0.9, others={"other": 0.9})], "ppo": [judged(0.7, others={"third": 0.3})]}
    one = run(seed(training=training, stages=stages, numbers={name: {} for name in stages}))
    pictures([one], [])
    points, options = drawn["Two critics on the same lines"]
    assert [(p.name, list(p.x), list(p.y)) for p in points] == [
        ("other", pytest.approx([0.0, 0.1, 0.2, 0.3]), pytest.approx([0.0, 0.05, 0.1, 0.15])),
        ("third", [0.7], [0.3]),
    ]
    assert options["diagonal"]


def test_imitation_and_time_are_drawn_where_they_were_logged(drawn):
    imitation = [{"step": 1.0, "sft/loss": 3.0, "sft/dev_loss": 3.5}, {"step": 2.0, "sft/loss": 2.0}]
    one = run(seed(imitation=imitation, seconds={"imitation": 2.0, "ppo": 5.0}))
    assert {p.section for p in pictures([one], [])} == {"curves", "cost"}
    assert [(line.name, *curve(line)) for line in drawn["Imitation of the teacher"][0]] == [
        ("training loss", [1.0, 2.0], [3.0, 2.0]),
        ("dev loss", [1.0], [3.5]),
    ]
    assert drawn["Time by stage"][0] == [Bar("seed 0", {"imitation": 2.0, "ppo": 5.0})]


@pytest.mark.parametrize(
    ("share", "written"), [(0.0, "0%"), (0.004, "0.4%"), (0.0999, "10.0%"), (0.1, "10%"), (0.156, "16%"), (1.0, "100%")]
)
def test_a_small_share_has_a_decimal(share, written):
    assert percent(share) == written


def test_a_count_and_its_share():
    assert share_of(3, 250) == "3 of 250, 1.2%"
    assert share_of(1200, 2400) == "1,200 of 2,400, 50%"
    assert share_of(0, 5) == "0 of 5, 0%"
    assert share_of(0, 0) == "–"
