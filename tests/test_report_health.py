"""The report's tables of the trainer's and the judges' health: thirds, extremes, refusals, and dollars a thousand."""

import json

import pytest
from report_runs import make_run, write_lines

from humor_env.experiments.reports.health import in_thirds, is_refusal, judge_table, judges, trainer_table
from humor_env.experiments.reports.report import render
from humor_env.experiments.reports.report_data import Judged, load_run
from humor_env.experiments.reports.report_numbers import Curve


def changed(folder, seed, change):
    """The run with each row of a seed's metrics changed."""
    path = folder / f"seed-{seed}" / "metrics.jsonl"
    write_lines(path, [row | change(row["step"]) for row in map(json.loads, path.read_text().splitlines())])
    return load_run(folder)


def rows_of(table):
    return {row.cells[0]: row for row in table.rows}


@pytest.mark.parametrize(
    ("values", "thirds"),
    [
        ([1, 2, 3, 4, 5, 6], [1.5, 3.5, 5.5]),
        ([1, 2, 4, 8], [1.5, 3.0, 6.0]),  # two points each, so that none is left out
        ([5], [5, 5, 5]),
        ([1, 3], [1, 1, 3]),
    ],
)
def test_thirds(values, thirds):
    assert in_thirds(Curve(range(len(values)), values)) == thirds


def test_the_trainers_numbers_are_told_by_thirds_with_the_extremes_of_any_seed(tmp_path):
    folder = make_run(tmp_path / "some", steps=6)
    changed(folder, 0, lambda step: {"update/clip_share": 0.1 * step, "value/explained_variance": 0.5 - 0.2 * step})
    run = changed(folder, 1, lambda step: {"update/clip_share": 0.0, "update/grad_norm": 9.0 if step == 4 else 1.0})
    rows = rows_of(trainer_table(run, "Trainer"))
    clip = rows["clip share, share of tokens"]
    assert clip.cells[1:4] == ["0.075", "0.175", "0.275"]  # of both seeds; 0.15, 0.35 and 0.55 of the first
    assert clip.cells[4:6] == ["0 at 1", "0.6 at 6"]
    assert not clip.worth_a_look
    assert rows["explained variance, share"].worth_a_look  # ends at -0.6
    assert rows["gradient norm, before clipping"].cells[5] == "9 at 4"
    assert rows["speed, tokens a second"].cells[1:4] == ["100", "100", "100"]
    assert "entropy, nats a token" not in rows  # nothing was logged
    page = render([run])
    assert 'href="#trainer"' in page and "Clip share" in page and "Gradient norm" in page
    assert "Entropy" not in page


def test_the_limit_of_the_mismatch_is_that_of_the_runs_precision(tmp_path):
    """In float32 a mismatch of 0.03 is a fault, in bfloat16 it is rounding."""
    folder = make_run(tmp_path / "some", seeds=1, steps=3)
    marked = []
    for precision, mismatch in (
        ("float32", 0.03),
        ("bfloat16", 0.03),
        ("bfloat16", 0.07),
        (None, 0.03),
        ("float32", 0.005),
    ):
        record = json.loads((folder / "run.json").read_text()) | {"precision": precision}
        (folder / "run.json").write_text(json.dumps(record))
        run = changed(folder, 0, lambda step, mismatch=mismatch: {"update/first_mismatch": mismatch})
        marked.append(rows_of(trainer_table(run, ""))["writing against learning, nats a token"].worth_a_look)
    assert marked == [True, False, True, False, False]


def test_a_number_that_is_always_zero_is_left_out(tmp_path):
    """A learner without clipping logs a clip share of 0 at every step: no row and no chart."""
    folder = make_run(tmp_path / "some", seeds=1, steps=3)
    run = changed(folder, 0, lambda step: {"update/clip_share": 0.0})
    assert not [name for name in rows_of(trainer_table(run, "")) if name.startswith("clip share")]
    assert "Clip share" not in render([run])


@pytest.mark.parametrize(
    ("error", "refused"),
    [
        ("refusal: the model declined", True),
        ("refusal", True),
        ("humor: refusal: the model declined", True),
        ("overloaded: busy; refusal: the model declined", True),
        ("invalid: the reply says 'my refusal is final'", False),
        ("invalid: no refusals", False),
        ("", False),
    ],
)
def test_a_refusal_is_told_by_its_kind(error, refused):
    assert is_refusal(Judged("p", "A.", "B.", "scorer", None, {}, error, error=error)) is refused
    assert not is_refusal(Judged("p", "A.", "B.", "scorer", 0.5, {}, error, error=error))  # it answered


def test_what_a_thousand_judgements_cost(tmp_path):
    """Per line: 40 lines a seed of which 2 failed, one of these refused; 60 steps of $0.01."""
    folder = make_run(tmp_path / "some", seeds=1)
    path = folder / "seed-0" / "jokes.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    rows[0] |= {"score": None, "error": "refusal: the model declined"}
    rows[1] |= {"score": None, "error": "overloaded: busy"}
    write_lines(path, rows)
    run = changed(folder, 0, lambda step: {"spent/judgements": 10.0 * step, "reward/part/win_tie.flips": 0.25})
    [teaching, held_out] = judges(run)
    assert (teaching.role, teaching.name, teaching.asked, teaching.pairs) == ("teaching", "win-tie", 600, False)
    assert (teaching.failed, teaching.refusals) == (30, 15)  # 2 and 1 of 40, of 600
    assert teaching.flips == pytest.approx(0.25)
    assert teaching.cost_per_thousand == pytest.approx(1.0)
    assert (held_out.name, held_out.asked, held_out.failed, held_out.cost_per_thousand) == ("pocket", 120, 0, None)
    table = judge_table(run, "Judges")
    assert table.rows[0].cells[-1] == "$1.00" and table.rows[1].cells[-1] == "–"
    assert "ties" not in table.columns  # neither judge told any
    assert "30 of 600, 5.0%" in render([run])


def test_ties_of_a_judge_of_lines_are_the_mean_of_what_was_logged(tmp_path):
    folder = make_run(tmp_path / "some", seeds=1, steps=4)
    logged = {"reward/part/win_tie.tie": 0.1, "reward/part/necktie": 0.9, "length/tie": 0.9}
    teaching = judges(changed(folder, 0, lambda step: {n: step * v for n, v in logged.items()}))[0]
    assert teaching.ties == pytest.approx(0.25)  # (0.1 + 0.2 + 0.3 + 0.4) / 4
    assert "25%" in judge_table(load_run(folder), "Judges").rows[0].cells


def test_a_judge_of_pairs_is_counted_in_pairs(tmp_path):
    folder = make_run(tmp_path / "some", seeds=2, steps=3)
    counts = {"judged": 50.0, "failed": 5.0, "flipped": 30.0, "ties": 10.0, "calls": 100.0}
    for seed in (0, 1):
        run = changed(folder, seed, lambda step: {f"feedback/{name}": step / 3 * n for name, n in counts.items()})
    teaching = judges(run)[0]
    assert (teaching.asked, teaching.pairs, teaching.failed, teaching.calls) == (100, True, 10, 200)
    assert (teaching.flips, teaching.ties) == (60 / 90, 20 / 90)
    row = judge_table(run, "Judges").rows[0]
    assert row.worth_a_look and "100 pairs" in row.cells and "67%" in row.cells
