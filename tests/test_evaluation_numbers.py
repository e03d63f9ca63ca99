"""An evaluation's numbers, by hand: failures in no mean, parts of those that have them, lines averaged by prompt."""

import json
import math

import pytest

from humor_env.experiments.runs.evaluate import (
    Evaluation,
    judge_apart,
    judged,
    line_places,
    prompt_means,
    save_lines,
)
from humor_env.types import Joke, Judgement, Prompt

A, B = Prompt("a", "Ten chars."), Prompt("b", "Twenty characters ok")
JOKES = (Joke(A, "one two three"), Joke(A, "one two four"), Joke(B, "five"))
JUDGEMENTS = (
    Judgement("c", 0.2, {"funny": 0.4, "meaning": 0.5}),
    Judgement("c", 0.6, {"funny": 0.8}),
    Judgement("c", None, error="no answer"),
)


def test_parts_are_means_over_the_lines_that_have_them():
    evaluation = Evaluation("ppo", JOKES, JUDGEMENTS, (0.1, 0.7))
    assert evaluation.parts == {"funny": pytest.approx(0.6), "meaning": 0.5}
    assert evaluation.scores == [0.2, 0.6]
    assert evaluation.failures == 1
    assert evaluation.mean == pytest.approx(0.4)  # of the one prompt with judged lines
    assert evaluation.length_ratio == (13 + 12 + 4) / (10 + 10 + 20)
    # Word pairs: "one two", "two three", "one two", "two four": three of four differ.
    assert evaluation.distinct_2 == 0.75
    assert evaluation.numbers() == {
        "score": evaluation.mean,
        "low": 0.1,
        "high": 0.7,
        "part/funny": evaluation.parts["funny"],
        "part/meaning": 0.5,
        "distinct_2": 0.75,
        "length_ratio": evaluation.length_ratio,
        "failures": 1.0,
    }


def test_a_prompt_counts_once_however_many_lines_it_has():
    scores = [Judgement("c", s) for s in (0.0, 1.0, 0.25)]
    assert prompt_means(JOKES, scores) == [0.5, 0.25]
    assert (
        judged(JOKES, lambda jokes: [j for j, k in zip(scores, JOKES, strict=True) if k in jokes], name="x").mean
        == 0.375
    )


def test_nothing_that_was_judged_has_no_mean():
    nothing = Evaluation("x", JOKES[2:], JUDGEMENTS[2:], (math.nan, math.nan))
    assert math.isnan(nothing.mean)
    assert nothing.parts == {}


def test_lines_are_numbered_within_their_prompt_and_judged_apart():
    jokes = [JOKES[0], JOKES[2], JOKES[1], Joke(B, "six"), Joke(A, "seven")]
    assert line_places(jokes) == [0, 0, 1, 1, 2]
    asked = []

    def critic(shown):
        asked.append([j.text for j in shown])
        return [Judgement("c", len(j.text) / 100) for j in shown]

    judgements = judge_apart(critic, jokes)
    assert asked == [["one two three", "five"], ["one two four", "six"], ["seven"]]
    assert [j.score for j in judgements] == [0.13, 0.04, 0.12, 0.03, 0.05]
    assert judge_apart(critic, []) == []


def test_saved_numbers_have_null_where_there_is_no_number(tmp_path):
    numbers = save_lines(Evaluation("ppo", JOKES, JUDGEMENTS, (math.nan, math.inf)), tmp_path / "new")
    assert (numbers["low"], numbers["high"], numbers["count"], numbers["failures"]) == (None, None, 3.0, 1.0)
    rows = [json.loads(line) for line in (tmp_path / "new" / "evaluation-ppo.jsonl").read_text().splitlines()]
    assert [(row["prompt_id"], row["text"], row["score"]) for row in rows] == [
        ("a", "one two three", 0.2),
        ("a", "one two four", 0.6),
        ("b", "five", None),
    ]
