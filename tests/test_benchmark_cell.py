"""What a cell of a benchmark measures, by hand, and with a student that has learned nothing."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
from test_benchmark import student_folder, text  # noqa: F401 - a fixture
from tiny import letters_critic

from humor_env.agents.feedback.pairs import CriticAsJudge
from humor_env.experiments.compare.benchmark_cell import (
    CellRun,
    _line_by_line,
    against_teacher,
    make_critic,
    make_judge,
    measured,
    start_of,
)
from humor_env.experiments.compare.benchmark_spec import parse_benchmark
from humor_env.experiments.runs.evaluate import evaluate
from humor_env.experiments.runs.ingredients import Ingredients, load_student
from humor_env.experiments.specs.spec import parse_spec
from humor_env.experiments.specs.toml_text import dumps
from humor_env.prompts import load_prompts
from humor_env.teacher import TeacherBuffer
from humor_env.types import Demonstration, Joke, Judgement, Prompt, Verdict

BUS, TEA = Prompt("bus", "0123456789"), Prompt("tea", "01234")


def jokes(*lines):
    return [Joke(prompt, text) for prompt, text in lines]


def test_lines_are_put_in_the_order_of_their_prompts_as_many_for_each():
    """The bus has three lines and tea one, which is repeated: lines 0, 2 and 1, 1."""
    written = jokes((BUS, "a"), (TEA, "b"), (BUS, "c"), (BUS, "d"))
    verdicts = [
        {"wins": [10 * k, 10 * k + 1, 10 * k + 2, 3], "ties": [k, 5, 6, 7], "longer": [8, 9, k, 4], "score": 0.5}
        for k in (1, 2, 3)
    ]
    numbers = {"scores": [0.0, 0.1, 0.2, 0.3], "exact": verdicts[0], "feedback": {"x": verdicts[1], "y": verdicts[2]}}
    _line_by_line(numbers, written, 2)
    assert numbers["prompts"] == ["bus", "tea"] and numbers["scores"] == [0.0, 0.2, 0.1, 0.1]
    assert numbers["exact"] == {"wins": [10, 12, 11, 11], "ties": [1, 6, 5, 5], "longer": [8, 1, 9, 9], "score": 0.5}
    assert numbers["feedback"]["y"]["wins"] == [30, 32, 31, 31] and numbers["feedback"]["x"]["ties"] == [2, 6, 5, 5]


def test_what_needs_no_critic_and_what_does():
    """Two of four lines are the same but for a space; 12 characters for prompts of 25; one copies the teacher's."""

    def critic(lines):
        scores = {"aa": 0.123456, "bb bb": 0.5, "aa ": None, "cc": 1.0}
        parts = {"aa": {"form": 0.5}, "cc": {"form": 1.0, "meaning": 0.25}}
        failed = {"aa ": "?"}
        return [Judgement("c", scores[j.text], parts.get(j.text, {}), error=failed.get(j.text)) for j in lines]

    critic.name = "c"
    written = jokes((BUS, "aa"), (TEA, "bb bb"), (TEA, "aa "), (TEA, "cc"))
    teacher = TeacherBuffer(demonstrations=[Demonstration(TEA, " cc ", "t"), Demonstration(BUS, "bb bb", "t")])
    found = measured(written, SimpleNamespace(eval_critic=critic, teacher=teacher))
    assert found["scores"] == [0.1235, 0.5, None, 1.0] and found["parts"] == {"form": 0.75, "meaning": 0.25}
    assert (found["failures"], found["different_lines"], found["commonest_line"]) == (1, 0.75, 0.5)
    assert found["teacher_copies"] == 0.25 and found["length_ratio"] == pytest.approx(12 / 25)
    assert "lift" not in found
    assert measured(written, SimpleNamespace(eval_critic=critic, teacher=None))["teacher_copies"] == 0.0


def test_each_line_is_compared_with_the_teachers_in_its_place():
    """The bus's third line meets the teacher's first again. The same words are a draw, and the judge is not asked."""
    teacher = TeacherBuffer(demonstrations=[Demonstration(BUS, text, "t") for text in ("one", "three")])
    asked = []

    def judge(pairs):
        asked.extend((a.text, b.text) for a, b in pairs)
        return [Verdict("j", 0.12345, tie=0.98765), Verdict("j", None, error="?")]

    written = jokes((BUS, "one "), (BUS, "x"), (TEA, "y"), (BUS, "four"))
    found = against_teacher(written, teacher, judge)
    assert asked == [("x", "three"), ("four", "one")]
    assert found == {"wins": [0.5, 0.123, None, None], "ties": [1.0, 0.988, 1.0, 0.0], "longer": [1, -4, 0, 1]}
    nothing = against_teacher(written, None, judge)
    assert nothing == {"wins": [None] * 4, "ties": [1.0] * 4, "longer": [0] * 4} and len(asked) == 2


@pytest.fixture
def cell(tmp_path, student_folder):  # noqa: F811
    """A cell of ppo before its training."""
    asked = parse_benchmark(text(student_folder)).cells(tmp_path)[2].spec
    spec = parse_spec(dumps(asked["run"]))
    return CellRun(Ingredients(spec, tmp_path), 0, load_student(spec.student, 0))


def test_during_training_both_critics_and_the_distance_are_measured(cell):
    """An untrained policy is at the distance 0; the training critic is another one than the held-out."""
    found = cell._evaluator("ppo", cell.config)(cell.student)
    dev = cell.parts.prompts.split("dev")[:4]
    plain = evaluate(cell.student, dev, cell.parts.eval_critic, sampling=cell.sampling, seed=0)
    judge = CriticAsJudge(cell.parts.eval_critic)
    wins = against_teacher(plain.jokes, cell.parts.teacher, judge)["wins"]
    taught = [j.score for j in cell.parts.train_critic(list(plain.jokes))]
    assert found == {
        "score": plain.mean,
        "length_ratio": plain.length_ratio,
        "distinct_2": plain.distinct_2,
        "meaning": plain.parts["meaning"],
        "feedback_score": pytest.approx(sum(taught) / len(taught)),
        "held_out_wins": pytest.approx(sum(wins) / 4),
        "kl": 0.0,
    }
    assert cell._teaching is not cell.parts.train_critic and cell._teaching is cell._teaching
    assert cell._evaluator("ppo", SimpleNamespace(evaluate_every=0)) is None
    assert "feedback_score" not in cell._evaluator("best-of-n", cell.config)(cell.student)


def test_a_critic_that_rates_lines_is_measured_by_its_wins_too(tmp_path, student_folder):  # noqa: F811
    """Its score was subtracted from the held-out win rate, as if it were one."""
    changes = {'judge = "pocket-crowd"': 'critic = "rules"', "critic_options = { max_lines = 1 }": ""}
    rated = text(student_folder, **changes)
    spec = parse_spec(dumps(parse_benchmark(rated).cells(tmp_path)[2].spec["run"]))
    cell = CellRun(Ingredients(spec, tmp_path), 0, load_student(spec.student, 0))
    found = cell._evaluator("ppo", cell.config)(cell.student)
    dev = cell.parts.prompts.split("dev")[:4]
    plain = evaluate(cell.student, dev, cell.parts.eval_critic, sampling=cell.sampling, seed=0)
    wins = against_teacher(plain.jokes, cell.parts.teacher, CriticAsJudge(cell.parts.train_critic))["wins"]
    assert len(wins) == 4 and found["feedback_wins"] == pytest.approx(sum(wins) / 4)
    assert {"feedback_score", "held_out_wins"} <= set(found)


def test_what_is_not_known_is_left_out_of_a_measurement(cell):
    """No judged line, no teacher: neither critic says anything."""

    def silent(lines):
        return [Judgement("silent", None, error="?") for _ in lines]

    silent.name = "silent"
    vars(cell.parts).update(eval_critic=silent, teacher=None)
    vars(cell)["_teaching"] = silent
    assert set(cell._evaluator("ppo", cell.config)(cell.student)) == {"length_ratio", "distinct_2", "kl"}
    vars(cell.parts)["eval_critic"] = letters_critic()
    found = cell._evaluator("ppo", cell.config)(cell.student)
    assert "score" in found and not {"feedback_score", "held_out_wins", "meaning"} & set(found)


def test_the_curve_and_the_costs_of_learning_by_hand(cell):
    cell.folder.mkdir(parents=True, exist_ok=True)
    assert cell.curve() == [] and cell.spent() == {"steps": 0.0}
    metrics = [
        {"step": 1, "eval/score": 0.123456, "spent/samples": 8, "critic/cost": 0.25, "loss": 1.0},
        {"step": 2, "spent/samples": 16.006, "critic/cost": 0.5},
        {"step": 3, "eval/score": 0.5, "eval/kl": 2.0, "spent/samples": 24.006, "spent/judgements": 12},
    ]
    timings = [{"step": 1, "seconds/spent": 1.23456}, {"step": 2, "seconds/spent": 2.5}, {"step": 3}]
    for name, rows in (("metrics", metrics), ("timings", timings)):
        (cell.folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert cell.curve() == [
        {"step": 1, "seconds": 1.2346, "score": 0.1235, "samples": 8},
        {"step": 3, "seconds": 0.0, "score": 0.5, "kl": 2.0, "samples": 24.006, "judgements": 12},
    ]
    assert cell.spent() == {"steps": 3.0, "samples": 24.01, "judgements": 12, "seconds": 2.5, "cost": 0.75}
    (cell.folder / "metrics.jsonl").write_text(json.dumps({"step": 1, "critic/cost": 0.0}) + "\n")
    assert cell.spent() == {"steps": 1.0, "seconds": 2.5}


def test_the_feedback_as_a_critic_and_as_a_judge_has_its_options(cell):
    table = {"critic": "win-tie", "options": {"judge": "pocket-crowd", "max_lines": 1}}
    assert type(make_critic(cell.parts, table)).__name__ == "WinTieCritic"
    judge = make_judge(cell.parts, {"judge": "pocket-crowd", "options": {"noise": 0.0, "position_bias": 50.0}})
    prompt = load_prompts("pocket").split("test")[0]
    a, b = Joke(prompt, "A walrus."), Joke(prompt, "An otter.")
    assert [v.probability for v in judge.ask([(a, b), (b, a)])] == [1.0, 1.0]


def test_the_student_that_the_warm_start_saved(tmp_path):
    (tmp_path / "warm" / "seed-3" / "student").mkdir(parents=True)
    (tmp_path / "ppo").mkdir()
    assert start_of({"start": "../warm"}, tmp_path / "ppo") == tmp_path.resolve() / "warm" / "seed-3" / "student"
