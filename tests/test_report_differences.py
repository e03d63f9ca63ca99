"""Two runs as a difference with its interval, and what differs in how they were made."""

import json
import re

import pytest
from report_runs import make_run, score_of, write_lines

from humor_env.errors import InvalidOption
from humor_env.experiments.commands.cli import app
from humor_env.experiments.reports.differences import compare
from humor_env.experiments.reports.report import render, write_report
from humor_env.experiments.reports.report_data import load_run
from humor_env.experiments.specs.toml_text import flat


def lower(folder, by, seeds=(0, 1), **change):
    """The same run with its student's scores lower by that much, and by 0.01 more for every other prompt."""
    for seed in seeds:
        path = folder / f"seed-{seed}" / "evaluation-ppo.jsonl"
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        write_lines(path, [row | {"score": row["score"] - by - n % 2 / 100} | change for n, row in enumerate(rows)])
    return load_run(folder)


def test_the_difference_is_taken_prompt_by_prompt(tmp_path):
    """Scores differ by 0.2 on each prompt while they spread over 0.18: only pairing shows how sure 0.2 is."""
    new = load_run(make_run(tmp_path / "new"))
    old = lower(make_run(tmp_path / "old"), 0.2)
    found = compare(new, old)
    score = found.differences.rows[0]
    assert score.cells[0] == "score" and score.cells[4] == "30" and score.worth_a_look
    mean = sum(score_of("ppo", seed, n) for seed in (0, 1) for n in range(30)) / 60
    assert score.cells[1:3] == [f"{mean:.3f}", f"{mean - 0.205:.3f}"]
    low, high = (float(n) for n in re.findall(r"[-+][.\d]+", score.cells[3])[1:])
    assert score.cells[3].startswith("+0.205 [") and 0.2 < low < 0.205 < high < 0.21
    assert "the seeds that both have" in found.differences.caption
    rows = {row.cells[0]: row for row in found.differences.rows}
    assert rows["score of the imitation"].cells[3].startswith("+0.000 [-0.100, +0.100]")  # all alike: 3 in 30
    assert not rows["score of the imitation"].worth_a_look
    assert list(rows) == [
        *("score", "form", "meaning", "score of the imitation", "score of the base", "distinct-2", "characters a line"),
    ]
    back = compare(old, new).differences.rows[0]
    assert back.cells[3].startswith("-0.205 [-0.20")


def test_one_seed_says_that_the_luck_of_a_seed_is_not_in_the_interval(tmp_path):
    runs = [load_run(make_run(tmp_path / name, seeds=1)) for name in "ab"]
    caption = compare(*runs).differences.caption
    assert "they do not include the variation between seeds" in caption
    two = load_run(make_run(tmp_path / "two"))
    assert "the variation between seeds" in compare(two, runs[0]).differences.caption


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"critic": "rules"}, "new was measured by pocket and old by rules: scores of different critics cannot"),
        ({"prompt_id": "another"}, "no held-out prompt in common"),
    ],
)
def test_what_cannot_be_subtracted_is_said_and_not_shown(tmp_path, change, said):
    runs = load_run(make_run(tmp_path / "new")), lower(make_run(tmp_path / "old"), 0.2, **change)
    found = compare(*runs)
    assert said in found.why_none and found.differences.rows == ()
    page = render(runs)
    assert said in page and "prompt by prompt. Intervals" not in page


def test_a_run_that_was_not_measured_has_no_difference(tmp_path):
    write_lines(tmp_path / "log" / "metrics.jsonl", [{"step": 1, "reward/mean": 0.5}])
    runs = load_run(make_run(tmp_path / "new")), load_run(tmp_path / "log")
    assert compare(*runs).why_none.startswith("No stage of log was measured")


def test_what_differs_in_their_specs_is_listed(tmp_path):
    new, old = make_run(tmp_path / "new", seeds=1), make_run(tmp_path / "old", seeds=1)
    spec = (old / "spec.toml").read_text()
    spec = spec.replace('name = "some"', 'name = "other"').replace("steps = 60", "steps = 80\nkl_weight = 0.2")
    (old / "spec.toml").write_text(spec + "[eval.critic.options]\npart = '<b>form</b>'\n")
    record = json.loads((old / "run.json").read_text())
    (old / "run.json").write_text(json.dumps(record | {"commit": "def", "versions": {"torch": "3"}}))
    found = compare(load_run(new), load_run(old))
    assert [list(row.cells) for row in found.what_differs.rows] == [
        ["learner.steps", "60", "80"],
        ["commit", "abc", "def"],
        ["version of torch", "2", "3"],
    ]
    assert [list(row.cells) for row in found.only_in_one.rows] == [
        ["eval.critic.0.options.part", "not set", "<b>form</b>"],
        ["learner.kl_weight", "not set", "0.2"],
    ]
    page = render([load_run(new), load_run(old)])
    assert "Settings that only one of them has: 2" in page
    assert "&lt;b&gt;form" in page and "<b>form" not in page


def test_prompts_of_both_go_from_the_most_gained_to_the_most_lost(tmp_path):
    new, old = (make_run(tmp_path / name, seeds=1, prompts=9) for name in ("new", "old"))
    for folder, score in ((new, 0.4), (old, 0.0)):
        path = folder / "seed-0" / "evaluation-ppo.jsonl"
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        # The old run's line of prompt n scores 0.1 n, and nobody judged the last one.
        change = [{"score": score or n / 10, "text": f"{folder.name} {n}"} for n in range(9)]
        change[8] |= {"score": None, "error": "away"}
        write_lines(path, [row | more for row, more in zip(rows, change, strict=True)])
    shown = compare(load_run(new), load_run(old)).prompts
    assert [each.versions[1].text for each in shown] == [f"old {n}" for n in (0, 2, 3, 4, 6, 7)]
    assert [(v.when, v.text) for v in shown[0].versions] == [("new", "new 0"), ("old", "old 0")]
    page = render([load_run(new), load_run(old)])
    assert "The same prompts by both" in page


def test_settings_have_dotted_names():
    spec = {"a": {"b": 1, "c": {"d": [1, 2]}}, "critic": [{"critic": "x"}, {"critic": "y"}], "empty": [], "none": {}}
    found = {"a.b": 1, "a.c.d": [1, 2], "critic.0.critic": "x", "critic.1.critic": "y", "empty": [], "none": {}}
    assert flat(spec) == found


def test_two_equal_runs_have_nothing_that_differs(tmp_path):
    page = render([load_run(make_run(tmp_path / name, seeds=1)) for name in "ab"])
    assert "Their specs, code and versions are the same." in page


def test_several_runs_are_compared_with_one_on_request_only(tmp_path):
    a, b, c = (load_run(make_run(tmp_path / name, seeds=1, prompts=8)) for name in "abc")
    assert '<section id="difference"' not in render([a, b, c])
    assert '<section id="difference"' not in render([a])
    page = render([a, b, c], against=True)
    assert "a minus c" in page and "b minus c" in page and "a minus b" not in page


def test_the_option_against(tmp_path, monkeypatch):
    from typer.testing import CliRunner

    new, old = (make_run(tmp_path / name, seeds=1, prompts=8) for name in ("new", "old"))
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(app, ["report", str(new), "--against", str(old)])
    assert done.exit_code == 0, done.output
    page = (tmp_path / "report.html").read_text(encoding="utf-8")  # not in the folder of one of the two
    assert f"humor-env report {new} --against {old} --out report.html" in page
    assert "new (ppo) minus old (ppo)" in page
    with pytest.raises(InvalidOption, match="given twice"):
        write_report([new], tmp_path / "x.html", against=new)
