"""Several lines for each prompt: which they are, how they are judged and counted, and that prompts are drawn."""

from __future__ import annotations

import numpy as np
import pytest
from tiny import letters_critic, prompts, stir, student

from humor_env.agents.best_of_n import BestOfN, BestOfNConfig
from humor_env.agents.student import POLICY
from humor_env.agents.student.sampling import Sampling
from humor_env.errors import InvalidOption
from humor_env.experiments.compare import benchmark_cell, benchmark_tables, stats
from humor_env.experiments.compare.benchmark import Benchmark, _row
from humor_env.experiments.compare.benchmark_cell import against_teacher
from humor_env.experiments.compare.benchmark_spec import parse_benchmark
from humor_env.experiments.reports.report_data import Judged, RunData, SeedData
from humor_env.experiments.reports.report_numbers import headline
from humor_env.experiments.runs import costs
from humor_env.experiments.runs.evaluate import evaluate, judged, written_by
from humor_env.experiments.specs.spec import parse_spec
from humor_env.experiments.upkeep.pages import real_english
from humor_env.teacher import TeacherBuffer
from humor_env.types import Demonstration, Joke, Judgement, Verdict

SHORT = Sampling(max_new_tokens=8)


@pytest.fixture(scope="module")
def moved():
    one = student()
    stir(one, POLICY)
    return one


def test_the_first_line_is_that_of_an_evaluation_of_one_line(moved):
    one = evaluate(moved, prompts(5), letters_critic(), sampling=SHORT, seed=3)
    three = evaluate(moved, prompts(5), letters_critic(), sampling=SHORT, seed=3, lines=3)
    assert [j.prompt.id for j in three.jokes] == [p.id for p in prompts(5) for _ in range(3)]
    assert three.jokes[::3] == one.jokes and three.judgements[::3] == one.judgements
    for place in range(0, 15, 3):
        assert len({j.text for j in three.jokes[place : place + 3]}) == 3
    again = evaluate(moved, prompts(5), letters_critic(), sampling=SHORT, seed=3, lines=3)
    assert again.jokes == three.jokes
    other = evaluate(moved, prompts(5), letters_critic(), sampling=SHORT, seed=4, lines=3)
    assert not {j.text for j in other.jokes} & {j.text for j in three.jokes}
    with pytest.raises(InvalidOption, match="at least 1 line for each prompt, not 0"):
        evaluate(moved, prompts(5), letters_critic(), sampling=SHORT, lines=0)


def test_best_of_n_chooses_each_line_among_candidates_of_its_own(moved):
    asked = []

    def critic(jokes):
        asked.append([j.prompt.id for j in jokes])
        return letters_critic()(jokes)

    writer = BestOfN(moved, critic, BestOfNConfig(n=3, sampling=SHORT))
    jokes = written_by(writer, prompts(4), lines=2, seed=0)
    assert jokes[::2] == writer.write(prompts(4)) != jokes[1::2]
    assert [j.prompt.id for j in jokes] == [p.id for p in prompts(4) for _ in range(2)]
    # A critic that compares siblings must not compare the candidates for two lines of one prompt.
    assert all(own.count("p0") == 3 for own in asked) and len(asked) == 3
    assert written_by(writer, prompts(4), lines=2, seed=0) == jokes
    assert written_by(writer, prompts(4), lines=2, seed=1)[1::2] != jokes[1::2]


def lines_for(count, texts):
    return [Joke(prompt, text) for prompt in prompts(count) for text in texts]


def test_no_critic_sees_two_lines_of_a_prompt_at_once():
    def among(jokes):
        ids = [j.prompt.id for j in jokes]
        return [Judgement("among", 1 / ids.count(i), reason=j.text) for i, j in zip(ids, jokes, strict=True)]

    found = judged(lines_for(3, ["a", "b"]), among, name="x")
    assert [j.score for j in found.judgements] == [1.0] * 6
    assert [j.reason for j in found.judgements] == ["a", "b"] * 3, "each line has its own judgement"


def test_a_prompt_counts_by_the_mean_of_the_lines_that_were_judged():
    """By hand: prompt 0 has 1.0 and a failure, prompt 1 has 0.0 and 0.5: (1 + 0.25) / 2; over lines it would be 0.5."""
    scores = {"a": 1.0, "b": None, "c": 0.0, "d": 0.5}

    def critic(jokes):
        return [Judgement("c", scores[j.text], error=None if scores[j.text] is not None else "?") for j in jokes]

    first, second = prompts(2)
    jokes = [Joke(first, "a"), Joke(first, "b"), Joke(second, "c"), Joke(second, "d")]
    found = judged(jokes, critic, name="x")
    assert found.mean == 0.625 and found.failures == 1


def test_four_lines_for_a_prompt_are_not_four_prompts():
    """Lines that repeat their prompt's score tell nothing new: the interval stays that of one line for each."""
    scores = {p.id: i / 32 for i, p in enumerate(prompts(20))}

    def critic(jokes):
        return [Judgement("c", scores[j.prompt.id]) for j in jokes]

    one = judged(lines_for(20, ["x"]), critic, name="x")
    four = judged(lines_for(20, "abcd"), critic, name="x")
    assert four.interval == one.interval and four.mean == one.mean

    array = np.array([[scores[p.id] for p in prompts(20)]])
    repeated = np.repeat(array[:, :, None], 4, axis=2)
    assert stats.interval([repeated]) == stats.interval([array])
    narrower = stats.interval([repeated.reshape(1, -1)])
    assert narrower.high - narrower.low < 0.6 * (four.interval[1] - four.interval[0])
    assert stats.paired_difference(repeated, repeated - 0.125) == stats.paired_difference(array, array - 0.125)
    assert stats.performance_profile(repeated, [0.5]) == stats.performance_profile(array, [0.5])


def test_games_are_between_lines_of_one_place():
    """By hand: of two lines the first system wins one game and loses one, though its mean is far higher: a draw."""
    scores = np.array([[[[1.0, 0.0]]], [[[0.0, 0.1]]]])
    assert [rating.points.value for rating in stats.bradley_terry(scores)] == [0.0, 0.0]
    assert stats.bradley_terry(scores.mean(-1))[0].points.value > 10
    # All games of a prompt count as one: four wins of one prompt are no stronger than one.
    one = np.array([[[0.9, 0.1]], [[0.5, 0.5]], [[0.2, 0.6]]])
    assert stats.bradley_terry(np.repeat(one[..., None], 4, axis=3)) == stats.bradley_terry(one)


def longer_wins(pairs):
    return [Verdict("longer", float(len(a.text) > len(b.text))) for a, b in pairs]


def test_line_k_stands_beside_the_teachers_line_k(tmp_path):
    """Of prompt 0 the teacher has two lines, so that the third line meets its first again; of prompt 1 it has none."""
    first, second = prompts(2)
    teacher = TeacherBuffer(
        tmp_path / "lines.jsonl", [Demonstration(first, "xxxx", "t"), Demonstration(first, "x", "t")]
    )
    jokes = [Joke(first, "aaa"), Joke(first, "bbb"), Joke(first, "ccccc"), Joke(second, "d")]
    found = against_teacher(jokes, teacher, longer_wins)
    assert found["wins"] == [0.0, 1.0, 1.0, None]
    assert found["longer"] == [-1, 2, 1, 0]


def numbers(scores, wins=None, **others):
    wins = wins or scores
    verdicts = {"wins": wins, "ties": [0.0] * len(wins), "longer": [1] * len(wins)}
    texts = {"distinct_2": 0.5, "commonest_line": 0.25, "self_overlap": 0.1, "teacher_copies": 0.0, "length_ratio": 1.0}
    return {
        "scores": scores,
        "parts": {},
        "failures": 0,
        "exact": verdicts,
        "feedback": {"crowd": {**verdicts, "score": 0.5}},
        **texts,
        **others,
    }


def test_a_teacher_with_fewer_lines_begins_again():
    first, second = prompts(2)
    found = numbers([0.1, 0.2, 0.3], [1.0, 0.5, 0.0])
    benchmark_cell._line_by_line(found, [Joke(first, "a"), Joke(first, "b"), Joke(second, "c")], 3)
    assert found["prompts"] == ["p0", "p1"]
    assert found["scores"] == [0.1, 0.2, 0.1, 0.3, 0.3, 0.3]
    assert found["exact"]["wins"] == found["feedback"]["crowd"]["wins"] == [1.0, 0.5, 1.0, 0.0, 0.0, 0.0]


BENCH = """
name = "tiny"
seeds = [0]
budget = { samples = 48 }
held_out = { critic = "pocket" }
[shared.teacher]
per_prompt = 1
[shared.eval]
limit = 12
lines = 2
[[feedback]]
name = "crowd"
judge = "pocket-crowd"
[[learners]]
name = "ppo"
settings = { batch_size = 8 }
"""


def bench_of(tmp_path, lines):
    bench = parse_benchmark(BENCH)
    ids = [f"p{i}" for i in range(12)]
    rows = []
    for system, scores in (("imitation", [i / 24 for i in range(12)]), ("ppo", [i / 12 for i in range(12)])):
        repeated = [s for s in scores for _ in range(lines)]
        found = numbers(repeated, [0.0, 1.0] * (len(repeated) // 2), prompts=ids)
        rows.append(_row(system, "crowd", 0, found, found["feedback"]["crowd"]))
    record = {"prompts": ids, "failures": {}, "cells": 2, "commit": "c", "versions": {}, "cpu_seconds": 60.0}
    return Benchmark(tmp_path, bench, record, rows, [])


@pytest.mark.parametrize("name", ["scores", "improvement", "ratings"])
def test_tables_of_a_benchmark_draw_prompts_and_not_lines(tmp_path, name):
    one, four = bench_of(tmp_path, 1), bench_of(tmp_path, 4)
    assert benchmark_tables.make_table(one, name) == benchmark_tables.make_table(four, name)


def test_a_page_says_how_many_lines_each_prompt_has(tmp_path):
    page = benchmark_tables.results_page(bench_of(tmp_path, 4))
    assert "12 held-out prompts, 4 lines for each; measured by" in page
    assert "over seeds and prompts, a prompt with all its lines; those during training over seeds only." in page
    assert "| commonest line |" in page and "| 0.250 |" in page
    assert "12 held-out prompts, one line for each; measured by" in benchmark_tables.results_page(bench_of(tmp_path, 1))


def test_a_rows_score_is_over_prompts():
    found = numbers([1.0, None, 0.0, 0.5], prompts=["a", "b"])
    assert _row("ppo", "crowd", 0, found, found["feedback"]["crowd"])["score"] == 0.625


def run_of(**stages):
    by_stage = {
        stage: [Judged(f"p{i}", "a prompt", f"{stage} {i} {k}", "c", s, {}, "") for i, k, s in rows]
        for stage, rows in stages.items()
    }
    return RunData("r", None, {}, {}, [SeedData("seed-0", None, [], [], [], by_stage, [], {}, {})], [])


def test_a_report_compares_lines_of_one_place():
    """By hand: prompt 0 meets the teacher's 0.5 and 0.1 with 0.4 and 0.2 (one of two); prompt 1, where the teacher has
    one line of 0.3, with 0.3 and 0.9 (both): three quarters. By prompt means it would be both prompts."""
    ppo = [(0, 0, 0.4), (0, 1, 0.2), (1, 0, 0.3), (1, 1, 0.9)]
    teacher = [(0, 0, 0.5), (0, 1, 0.1), (1, 0, 0.3)]
    base = [(0, 0, 0.0), (0, 1, 0.2), (1, 0, 0.1), (1, 1, 0.1)]
    rows = {row.stage: row for row in headline(run_of(base=base, ppo=ppo, teacher=teacher))}
    assert rows["ppo"].matches_teacher.mean == 0.75
    assert rows["ppo"].change.mean == pytest.approx(((0.4 + 0.0) / 2 + (0.2 + 0.8) / 2) / 2)
    assert (rows["ppo"].count, rows["teacher"].count) == (4, 3)


def test_real_english_compares_lines_of_one_place():
    """By hand, over twelve prompts: the first line of two wins and the second loses to the teacher's only one."""

    def stage(*scores):
        return [[line(f"p{i}", k, s) for i in range(12) for k, s in enumerate(scores)]]

    def line(prompt, k, score):
        text = f"line {k}"
        return {
            "prompt_id": prompt,
            "prompt": prompt,
            "text": text,
            "score": score,
            "parts": {"funny": 0, "meaning": 1},
        }

    stages = {"imitation": stage(0.9, 0.1), "teacher": stage(0.5), "ppo": stage(0.8, 0.8)}
    rows = real_english.score_table(stages).splitlines()
    cells = [cell.strip() for cell in rows[3].split("|")]
    assert cells[1:3] == ["ppo", "1"] and cells[3].startswith("0.800 (")
    assert cells[6].startswith("50 (") and cells[7].startswith("100 (")
    assert rows[-1].startswith("12 test sentences, 2 lines each")
    assert len(real_english.line_table(stages).splitlines()) == 2 + 12, "each sentence once"


def test_a_dry_run_counts_every_line(monkeypatch):
    """Two seeds, ten prompts: base, imitation, the learner and the teacher; and ten dev prompts twice on the way."""
    text = """
        seeds = [0, 1]
        [env]
        prompts = "everyday"
        [teacher]
        lines = "everyday"
        [[critic]]
        critic = "rules"
        [eval]
        limit = 10
        dev_limit = 10
        [[eval.critic]]
        critic = "scorer"
        options = { client = "anthropic:claude-haiku-4-5" }
        [learner]
    """
    ppo = text + 'name = "ppo"\nsteps = 2\nbatch_size = 8\nevaluate_every = 1'
    [item] = costs.estimate_spec(parse_spec(ppo, ["eval.lines=4"]))
    assert item.lines == 2 * (4 * 10 * 4 + 2 * 10)
    [item] = costs.estimate_spec(parse_spec(ppo, ["eval.lines=4", "eval.dev_lines=3"]))
    assert item.lines == 2 * (4 * 10 * 4 + 2 * 10 * 3)
    best = parse_spec(
        text.replace('"scorer"', '"rules"').replace('options = { client = "anthropic:claude-haiku-4-5" }', "")
        + 'name = "best-of-n"\nn = 8',
        ["eval.lines=4"],
    )
    monkeypatch.setattr(costs, "seconds_to_write", lambda spec: None)
    said = costs.forecast(best)
    assert f"about {2 * 8 * 10 * 4} lines to learn from" in said
    assert "each stage is measured on 10 prompts, 4 lines for each." in said


@pytest.mark.parametrize("key", ["lines", "dev_lines"])
def test_fewer_than_one_line_is_refused(key):
    with pytest.raises(InvalidOption, match=key):
        parse_spec('[learner]\nname = "ppo"\n[[critic]]\ncritic = "pocket"', [f"eval.{key}=0"])
