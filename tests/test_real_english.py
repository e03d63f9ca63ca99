"""The tables of docs/real-english.md, by hand."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from humor_env.experiments.upkeep import real_english

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
    assert cells[2].startswith("0.128 (")
    assert cells[4].startswith("1.000")
    assert cells[5].startswith("62 (")
    assert cells[6].startswith("0 (")
    assert cells[8] == "16.7"
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
    assert "| imitation | 0.100" in text
    assert real_english.main([str(run), "--page", str(page)]) == 0
    assert page.read_text() == text
