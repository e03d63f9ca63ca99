"""The tables of docs/real-english.md, by hand."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from humor_env.experiments.upkeep import everyday_critics
from humor_env.experiments.upkeep.pages import real_english
from humor_env.rewards.rated.rated_sets import load_rated
from humor_env.types import Joke, Judgement

SCORES = {
    "base": [0.0] * 12,
    "imitation": [0.1] * 12,
    "ppo": [0.2] * 6 + [0.11] * 3 + [0.0] * 3,
    "teacher": [0.5] * 12,
}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = tmp_path / "run" / "seed-0"
    folder.mkdir(parents=True)
    for stage, scores in SCORES.items():
        rows = [
            {"prompt_id": f"p{i}", "prompt": f"sentence {i}", "text": f"{stage} <b>{i % 6}</b> | joke", "score": score}
            | {"parts": {"funny": score, "meaning": 1.0}}
            for i, score in enumerate(scores)
        ]
        (folder / f"evaluation-{stage}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    results = {"seed": 0, "stages": {stage: {} for stage in SCORES}, "seconds": {}, "steps": 3}
    (folder / "results.json").write_text(json.dumps(results))
    return tmp_path / "run"


def test_stages_come_in_their_order_with_means_wins_and_the_commonest_line(run: Path) -> None:
    """Six of PPO's twelve lines beat imitation's by 0.1, three are 0.01 better, a tie, and three lose: (6 + 1.5) / 12.
    Of its twelve lines each of six texts stands twice: the commonest is one in six."""
    rows = real_english.score_table(real_english.read_run(run)).splitlines()
    assert [row.split("|")[1].strip() for row in rows[2:6]] == ["base", "imitation", "ppo", "teacher"]
    cells = [cell.strip() for cell in rows[4].split("|")]
    assert cells[2] == "1"
    assert cells[3].startswith("0.128 (")
    assert cells[5].startswith("1.000")
    assert cells[6].startswith("62 (")
    assert cells[7].startswith("0 (")
    assert cells[9] == "16.7"
    assert "12 test sentences" in rows[-1]


def test_lines_are_taken_by_rank_and_are_text(run: Path) -> None:
    rows = real_english.line_table(real_english.read_run(run)).splitlines()[2:]
    scores = [float(row.rsplit("|", 2)[1]) for row in rows]
    assert scores == sorted(scores, reverse=True)
    assert (scores[0], scores[-1]) == (0.2, 0.0)
    assert "<b>" not in "".join(rows)
    assert all(row.count("|") - row.count("\\|") == 6 for row in rows)


def test_a_page_is_filled_between_its_comments(run: Path, tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("a\n<!-- real: scores -->\nold\n<!-- end -->\nb\n<!-- real: lines -->\n<!-- end -->\n")
    assert real_english.main([str(run), "--page", str(page)]) == 0
    text = page.read_text()
    assert "old" not in text
    assert "| imitation | 1 | 0.100" in text
    assert real_english.main([str(run), "--page", str(page)]) == 0
    assert page.read_text() == text
    page.write_text(text.replace("| imitation |", "| of another run |").replace("| sentence |", "| old |"))
    assert real_english.main([str(run), "--page", str(page), "--table", "scores"]) == 0
    assert "| imitation | 1 | 0.100" in page.read_text() and "| old |" in page.read_text()
    page.write_text("<!-- real: scores -->\nkept\n<!-- end -->\n<!-- real: more -->\n<!-- end -->\n")
    assert real_english.main([str(run), "--page", str(page), "--mark", "more"]) == 0
    assert page.read_text().count("| imitation | 1 | 0.100") == 1 and "kept" in page.read_text()


class ByStage:
    """Scores a line by the stage that its text names; asked for prompts as they were."""

    name = "by-stage"

    def __call__(self, jokes: Sequence[Joke]) -> list[Judgement]:
        assert all(joke.prompt.text == f"sentence {joke.prompt.id[1:]}" for joke in jokes)
        points = {"base": 0.1, "imitation": 0.3, "ppo": 0.5, "teacher": 0.2}
        return [Judgement(self.name, points[joke.text.split()[0]]) for joke in jokes]


def test_another_judge_scores_the_same_lines(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folders = []
    monkeypatch.setattr(real_english, "RewardModelCritic", lambda folder: folders.append(folder) or ByStage())
    page = tmp_path / "page.md"
    page.write_text("<!-- real: scores -->\nkept\n<!-- end -->\n<!-- real: other-judge -->\n<!-- end -->\n")
    assert real_english.main([str(run), "--judge", "critic", "--page", str(page)]) == 0
    rows = [[cell.strip() for cell in row.split("|")[1:-1]] for row in page.read_text().splitlines() if "|" in row]
    assert folders == [Path("critic")] and "kept" in page.read_text()
    assert [(row[0], row[2][:5], row[3][:6]) for row in rows[2:]] == [
        ("base", "0.100", "-0.200"),
        ("imitation", "0.300", "–"),
        ("ppo", "0.500", "0.200 "),
        ("teacher", "0.200", "-0.100"),
    ]


def test_the_grades_of_one_critic_are_a_rated_set(tmp_path: Path) -> None:
    """What `train-critic --data ratings=FILE` reads: no sentence of the evaluation is among them."""
    sets = {}
    for use in ("everyday-judge", "evaluation"):
        assert everyday_critics.main(["ratings", use, str(tmp_path / f"{use}.csv")]) == 0
        sets[use] = load_rated("ratings", [tmp_path / f"{use}.csv"])
    own, other = ({text.joke.prompt.text for text in of.texts} for of in sets.values())
    assert len(sets["evaluation"].texts) == len(load_rated("everyday-grades", []).texts)
    assert own and other and not own & other


def test_imitation_beside_itself_is_the_noise_floor(run: Path) -> None:
    """Two lines for a sentence: the second one is 0.1 better for half of the sentences, and equal for the others."""
    rows = [{"prompt_id": f"p{i // 2}", "text": "x", "score": 0.1 * (i % 4 == 1), "parts": {}} for i in range(24)]
    text = real_english.noise_floor({"imitation": [rows]}, 2)
    assert "differ from its first by 0.050 (" in text
    assert "win or tie against them in 75 (" in text
    assert real_english.noise_floor({"imitation": [rows]}, 1) == ""


def test_the_cells_of_a_learner_become_a_run(run: Path, tmp_path: Path) -> None:
    """A benchmark keeps the imitation apart from what began from it, and calls it by another name."""
    seed = run / "seed-0"
    cells = tmp_path / "bench" / "cells"
    imitation, ppo = cells / "imitation" / "seed-0" / "seed-0", cells / "ppo" / "everyday" / "seed-0" / "seed-0"
    for cell, stages in ((imitation, ("base", "imitation", "teacher")), (ppo, ("ppo",))):
        cell.mkdir(parents=True)
        named = {stage: "sft" if stage == "imitation" else stage for stage in stages}
        for stage, name in named.items():
            (cell / f"evaluation-{name}.jsonl").write_text((seed / f"evaluation-{stage}.jsonl").read_text())
        numbers = {name: {"score": SCORES[stage][0]} for stage, name in named.items()}
        (cell / "results.json").write_text(json.dumps({"seed": 0, "stages": numbers, "seconds": {}, "steps": 3}))
        for log in ("metrics.jsonl", "timings.jsonl", "jokes.jsonl"):
            (cell / log).write_text(f'{{"step": 1, "of": "{sorted(named)[0]}"}}\n')
        for file in ("spec.toml", "run.json"):
            (cell.parent / file).write_text(f"# {sorted(named)[0]}")
    whole = real_english.read_run(tmp_path / "bench")
    assert whole == real_english.read_run(run)
    assert real_english.main([str(tmp_path / "bench"), "--as-run", str(tmp_path / "one"), "--learner", "ppo"]) == 0
    assert real_english.read_run(tmp_path / "one") == whole
    assert '"ppo"' in (tmp_path / "one" / "seed-0" / "metrics.jsonl").read_text()
    assert (tmp_path / "one" / "spec.toml").read_text() == "# ppo"
    with pytest.raises(SystemExit, match="no finished cell of a learner 'grpo'"):
        real_english.main([str(tmp_path / "bench"), "--as-run", str(tmp_path / "two"), "--learner", "grpo"])
