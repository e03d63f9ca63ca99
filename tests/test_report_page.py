"""The parts of a report's page by hand: its facts, its steps, what it cost, its warnings, and the lines it shows."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from report_runs import make_benchmark

from humor_env.experiments.reports import benchmark_page, report
from humor_env.experiments.reports.health import judge_table
from humor_env.experiments.reports.report_data import Judged, RunData, SeedData
from humor_env.experiments.reports.report_numbers import Estimate, Headline, ScannedLine
from humor_env.experiments.reports.tables import Table, TableRow
from humor_env.rewards.rules import Fault


def judged(prompt="p", score=0.5, text="So cold.", step=0, **changes):
    return replace(Judged(prompt, f"{prompt}?", text, "judge", score, {}, "good", step), **changes)


def seed(name="seed-0", stages=None, **changes):
    return replace(SeedData(name, Path("x"), (), (), (), stages or {}, (), {}, {}), **changes)


def run(*seeds, name="some", spec=(), **record):
    return RunData(name, Path("runs/some"), dict(spec), record, seeds, ())


def test_the_command_can_be_pasted():
    folders = [Path("a b"), Path("c")]
    assert report.command_for(folders, Path("o'ut.html")) == "humor-env report 'a b' c --out 'o'\"'\"'ut.html'"
    said = report.command_for([Path("a")], Path("r.html"), Path("old one"))
    assert said == "humor-env report a --against 'old one' --out r.html"
    assert report.default_path([Path("a")]) == Path("a/report.html")
    assert report.default_path([Path("a")], Path("b")) == report.default_path(folders) == Path("report.html")


@pytest.mark.parametrize(
    ("asked", "last", "said"),
    [
        (60, (), "60"),
        (None, (), ""),
        (60, (60,), "60"),
        (60, (40,), "40 of 60"),
        (None, (40,), "40"),
        (60, (40, 60), "40 to 60 of 60"),
        (40, (60, 40), "40 to 60"),
    ],
)
def test_the_steps_that_were_reached(asked, last, said):
    seeds = [seed(metrics=[{"step": 1.0}, {"step": float(step)}]) for step in last] or [seed(metrics=[{"x": 1.0}])]
    spec = {} if asked is None else {"learner": {"steps": asked}}
    assert report._steps(run(*seeds, spec=spec)) == said


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({}, ""),
        ({"critic/calls": 0.0, "critic/cost": 1.0}, ""),
        ({"critic/calls": 3.0}, "the training critic made 3 calls of a language model for an unknown cost."),
        (
            {"critic/calls": 3.0, "critic/cost": 1.256},
            "the training critic made 3 calls of a language model for $1.26.",
        ),
    ],
)
def test_what_the_critic_cost(row, said):
    assert report._spent(run(seed(metrics=[row]))) == said


def test_the_facts_of_a_run():
    spec = {
        "critic": [{"critic": "win-tie", "name": "mine"}, {"critic": "rules"}],
        "eval": {"critic": [{"critic": "pocket"}]},
        "budget": {"max_calls": 5, "max_cost": 2.5},
        "learner": {"name": "ppo", "steps": 9},
        "env": {"id": "humor_env/Paraphrase-v0"},
        "student": {"model": "pocket:causal"},
    }
    record = {"commit": "abc", "precision": "float32", "device": "cpu", "platform": "linux", "started": "today"}
    record |= {"versions": {"torch": "2", "peft": "1"}, "repeat": "again", "facts": {"own": 1, "commit": "def"}}
    about = report._about(run(seed("seed-3"), seed("seed-5", stopped=True), seed("log", why="KL"), spec=spec, **record))
    facts = {fact.name: fact.value for fact in about["facts"]}
    assert facts.items() >= {
        *(("seeds", "3, 5"), ("steps", "9"), ("limits", "max_calls 5, max_cost 2.5"), ("commit", "def"), ("own", "1")),
        *(("precision", "float32"), ("machine", "cpu, linux"), ("begun", "today")),
    }
    assert "mine" in " ".join(facts.values()) and "pocket" in facts["held-out judge"]
    assert (about["versions"], about["repeat"], about["folder"]) == ("torch 2, peft 1", "again", "runs/some")
    assert about["stopped"] == [("seed-5", ""), ("log", "KL")]
    assert about["same_judge"] is False
    same = {"critic": [{"critic": "pocket"}], "eval": {"critic": [{"critic": "pocket"}]}}
    judges = [(same, True), ({"critic": same["critic"]}, True), ({"eval": same["eval"]}, False), ({}, False)]
    assert [report._about(run(seed(), spec=spec))["same_judge"] for spec, _ in judges] == [same for _, same in judges]
    assert report._about(run(seed(), versions=3))["versions"] == ""


def test_a_judge_that_depends_on_the_order_is_a_note():
    """The last step of each seed and every stage count, of which the highest share is told."""

    def notes(last, measured):
        metrics = [{"step": 1.0, "feedback/judged": 4.0, "feedback/flipped": 4.0}]
        metrics += [{"step": 2.0, "feedback/judged": 4.0, "feedback/flipped": flipped} for flipped in last]
        return report._order_bias(run(seed(metrics=metrics[-1:]), seed(numbers={"ppo": {"part/flips": measured}})))

    end = "change when the two lines are shown in the other order: they depend more on a line's position than on "
    end += "its words."
    assert notes([2.0], 0.5) == []
    assert notes([3.0], None) == [f"some: 75% of the verdicts of the judge that gave the reward {end}"]
    assert notes([0.0], 0.625) == [f"some: 62% of the verdicts of the judge that measured {end}"]
    assert report._order_bias(run(seed())) == []


def test_tables_without_rows_are_left_out_and_a_caption_is_told_once():
    def make(run, title):
        return Table(title, ("a",), [TableRow(["1"])] if run.name != "empty" else [], "what it is")

    runs = [run(name=name) for name in ("empty", "one", "two")]
    tables = report._tables(runs, {"First": make, "Second": make})
    assert [(table.title, table.caption) for table in tables] == [
        *(("First: one", "what it is"), ("First: two", ""), ("Second: one", "what it is"), ("Second: two", "")),
    ]
    assert [table.title for table in report._tables(runs[1:2], {"First": make})] == ["First"]
    assert [table.title for table in report._tables(runs[1:], {"First": make})] == ["First: one", "First: two"]
    assert list(judge_table(run(seed()), "x").rows) == []


def test_each_run_is_compared_with_the_last_one_on_request(monkeypatch):
    seen = {}
    monkeypatch.setattr(report, "_whole", lambda view, runs, command: seen.update(view))
    monkeypatch.setattr(report, "compare", lambda run, other: (run.name, other.name))
    lines = [judged("a")]
    runs = [run(seed(stages={"base": lines, "ppo": lines}), name=name) for name in ("one", "two", "three")]
    for count, against, compared in (
        (1, False, []),
        (2, False, [("one", "two")]),
        (3, False, []),
        (3, True, [("one", "three"), ("two", "three")]),
    ):
        report.render(runs[:count], against=against)
        assert seen["comparisons"] == compared
        names = [f": {r.name}" for r in runs[:count]] if count > 1 else [""]
        assert [section.title for section in seen["same"]] == [f"Held-out prompts, stage by stage{n}" for n in names]
    assert seen["title"] == "one · two · three"


def test_runs_of_one_name_are_told_apart_by_their_folders():
    runs = [replace(run(name="a"), folder=Path(folder)) for folder in ("x/a", "y/a")] + [run(name="b")]
    assert [r.name for r in report._named_apart(runs)] == ["x/a", "y/a", "b"]


def test_numbers_of_the_page():
    assert (report._number(None), report._number(float("nan")), report._number(0.12345)) == ("–", "–", "0.123")
    assert report._number(2.0, 1) == "2.0"
    assert (report._short(None), report._short(float("inf")), report._short(0.123456)) == (None, None, 0.1235)
    row = Headline("some", "ppo", Estimate(0.5), [0.5], None, None, None, None, 0, 3)
    assert report._head_row(row)["learned"] and not report._head_row(replace(row, stage="imitation"))["learned"]
    assert report._head_row(row)["cells"][-1] == ("lines", "3", "")
    line = judged(score=0.123456, parts={"form": 0.55557}, others={"rules": 0.77777})
    assert report._version("ppo", line) == ["ppo", "So cold.", 0.1235, "good", {"form": 0.5556}, {"rules": 0.7778}]


def scanned(score, text, prompt="p"):
    return ScannedLine("some", "seed-0", "ppo", judged(prompt, score, text), (), "")


def test_the_best_and_the_worst_have_each_text_once_and_at_most_half_each():
    lines = [scanned(0.5, "b"), scanned(0.25, "a"), scanned(1.0, "c"), scanned(0.75, "a"), scanned(None, "d")]
    best, worst = report._ends(lines)
    assert [(s.line.text, s.line.score) for s in best] == [("c", 1.0)]  # of three texts, one
    assert [(s.line.text, s.line.score) for s in worst] == [("a", 0.25)]
    many = [scanned(n / 100, f"{n}") for n in range(30)]
    best, worst = report._ends(many)
    assert [s.line.text for s in best] == [f"{n}" for n in range(29, 21, -1)]
    assert [s.line.text for s in worst] == [f"{n}" for n in range(8)]
    two = report._ends([scanned(0.5, "b"), scanned(0.25, "a")])
    assert [[s.line.text for s in end] for end in two] == [["b"], ["a"]]
    assert report._ends(lines[:1] * 3) == report._ends([]) == ([], [])


def gates(joke):
    return {"rude": Fault(0.0, "rude word")} if "rude" in joke.text else {}


def test_the_scan_counts_what_gates_stop_and_lists_the_lines():
    """Held out: of two lines of ppo one is rude. It lost 0.3 against the imitation's line of its place."""
    base = [judged("a", 0.5, "rude one"), judged("b", 0.5, "fine")]
    start = [judged("a", 0.8, "start a"), judged("a", 0.2, "start a2"), judged("b", 0.5, "start b")]
    late = [
        judged("a", 0.5, "now rude"),
        judged("a", 0.1, "now a2"),
        judged("b", 0.45, "now b"),
        judged("c", None, "rude c"),
    ]
    stages = {"base": base, "imitation": start, "ppo": late}
    training = [
        judged("a", s, t, n) for n, (s, t) in enumerate([(0.5, "rude"), (0.4, "rude"), (None, "rude"), (1, "ok")], 1)
    ]
    scan = report._LineScan([run(seed(stages=stages, training=training))], gates)
    assert scan.scanned == 2 + 3 + 4 + 4
    assert [(f.gate, f.shares) for f in scan.flaggings] == [("rude", {"base": 0.5, "imitation": 0.0, "ppo": 0.5})]
    assert scan.flag_stages == ["base", "imitation", "ppo"]
    assert [(s.stage, s.line.text) for s in scan.suspects] == [("ppo", "now rude"), ("step 1", "rude")]
    assert [(row["now"].text, row["before"].text) for row in scan.worst] == [
        ("now rude", "start a"),
        ("now a2", "start a2"),
    ]
    assert [row["change"] for row in scan.worst] == pytest.approx([-0.3, -0.1])
    assert scan.critics == ["judge"]
    rows = [row for row in scan.rows if row["k"] == "held-out"]
    assert [(row["p"], row["l"][row["m"]][1], row.get("c"), row.get("f")) for row in rows] == [
        ("a?", "now rude", -0.3, ["rude"]),
        ("a?", "now a2", -0.1, None),
        ("b?", "now b", -0.05, None),
        ("c?", "rude c", None, ["rude"]),
    ]
    assert [line[1] for line in rows[1]["l"]] == ["rude one", "start a2", "now a2"]  # of a single line the base has
    assert (rows[0]["w"], rows[0]["s"], rows[0]["r"]) == ("rude: rude word", "seed-0", 0)
    assert [(row["t"], row["l"][0][0]) for row in scan.rows if row["k"] == "training"] == [
        *((1, "ppo"), (2, "ppo"), (3, "ppo"), (4, "ppo")),
    ]
    two = report._LineScan([run(seed(stages=stages)), run(seed(stages=stages), name="other")], gates)
    assert two.flag_stages[::3] == ["some: base", "other: base"]
    assert [row["r"] for row in two.rows] == [0] * 4 + [1] * 4


def test_only_the_latest_training_lines_and_paid_hacks_are_listed(monkeypatch):
    monkeypatch.setattr(report, "MOST_TRAINING_LINES", 2)
    texts = ["rude 1", "rude 2", "rude 3", "ok 4", "ok 5", "ok 6"]
    training = [judged("a", 0.5, text, n) for n, text in enumerate(texts, 1)]
    scan = report._LineScan([run(seed(training=training))], gates)
    assert [row["l"][0][1] for row in scan.rows] == ["rude 2", "rude 3", "ok 5", "ok 6"]
    assert len(scan.suspects) == 3


# A benchmark's page


def test_a_benchmarks_systems_are_runs_with_the_stages_that_all_share(tmp_path, monkeypatch):
    folder = make_benchmark(tmp_path / "mini", prompts=4)
    view, runs = benchmark_page.benchmark_view(folder)
    assert [r.name for r in runs] == ["best-of-8", "ppo", "dpo"]
    assert [s.name for s in runs[1].seeds] == ["seed-0", "seed-1"]
    assert list(runs[1].seeds[0].stages) == ["base", "imitation", "teacher", "ppo"]
    assert runs[1].seeds[0].training == ()
    facts = {fact["name"]: fact["value"] for fact in view["runs"][0]["facts"]}
    assert (facts["held-out prompts"], facts["commit"], facts["seeds"]) == ("4", "abc", "0, 1")
    assert view["runs"][0]["versions"] == "torch 2"
    assert view["notes"] == ["dpo/crowd/seed-7 has no result: it <b>broke</b>"]
    assert all(len(rows) > 1 for _, rows in view["tables"])
    assert benchmark_page.is_benchmark(folder)
    monkeypatch.setattr(benchmark_page, "MOST_LINES", 24)  # 3 systems x 2 seeds x 4 lines
    assert [len(r.seeds) for r in benchmark_page.benchmark_view(folder)[1]] == [2, 2, 2]
    monkeypatch.setattr(benchmark_page, "MOST_LINES", 23)
    view, runs = benchmark_page.benchmark_view(folder)
    assert [[s.name for s in r.seeds] for r in runs] == [["seed-0"]] * 3
    assert view["notes"][0].startswith("Very many lines")
    (folder / "cells" / "dpo" / "crowd" / "seed-1" / "result.json").unlink()
    monkeypatch.setattr(benchmark_page, "MOST_LINES", 99)
    assert [len(r.seeds) for r in benchmark_page.benchmark_view(folder)[1]] == [2, 2, 1]
    (folder / "curves.csv").unlink()
    assert not benchmark_page.is_benchmark(folder)


def test_a_line_of_dashes_is_not_a_row():
    table = "text\n| a | b |\n|:--|--:|\n| - | `x*y` |\n|  | – |"
    assert benchmark_page.markdown_rows(table) == [["a", "b"], ["-", "x*y"], ["", "–"]]
    assert json.loads(report.json_for_html({"a": [1, 2]})) == {"a": [1, 2]} and " " not in report.json_for_html(
        {"a": 1}
    )
