"""Grading without names, from the lines of a run to the table."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from humor_env.experiments.upkeep.graded_lines import read_jsonl
from humor_env.experiments.upkeep.pages import blind_grades

STAGES = ("base", "imitation", "ppo", "teacher")


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Two seeds, six sentences, two lines each; base and PPO write the same first line for the sentence p0."""
    for seed in (0, 1):
        folder = tmp_path / "run" / f"seed-{seed}"
        folder.mkdir(parents=True)
        for stage in STAGES:
            rows = [
                {"prompt_id": f"p{i}", "prompt": f"sentence {i}", "score": 0.5, "parts": {}}
                | {"text": "the same" if i == 0 and stage in ("base", "ppo") else f"{stage} {seed} {i} {line}"}
                for i in range(6)
                for line in (1, 2)
            ]
            (folder / f"evaluation-{stage}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        results = {"seed": seed, "stages": {stage: {} for stage in STAGES}, "seconds": {}, "steps": 3}
        (folder / "results.json").write_text(json.dumps(results))
    return tmp_path / "run"


def test_graders_see_the_first_lines_of_the_seeds_in_turn_and_no_names(run: Path, tmp_path: Path) -> None:
    grading = tmp_path / "grading"
    assert blind_grades.main(["batches", str(run), str(grading)]) == 0
    lines = {row["line"]: row for row in read_jsonl(grading / "lines.jsonl")}
    assert len(lines) == 4 * 6 - 1
    assert lines["the same"]["writer"] == "base and ppo"
    assert {"teacher 0 2 1", "teacher 1 3 1"} <= lines.keys()
    assert not {"teacher 1 2 1", "teacher 0 2 2"} & lines.keys()
    first, second = (read_jsonl(grading / name / "000.jsonl") for name in ("batches", "batches2"))
    assert set(first[0]) == {"n", "literal", "line"}
    assert [row["line"] for row in first] != [row["line"] for row in second]
    assert {row["line"] for row in first} == {row["line"] for row in second} == lines.keys()
    with pytest.raises(SystemExit, match="already"):
        blind_grades.main(["batches", str(run), str(grading)])


def test_grades_find_back_to_their_stages(run: Path, tmp_path: Path) -> None:
    """PPO's lines get 2 and 1, the teacher's 4 and 2, all others nothing, in both passes; what base and PPO share, both
    have: 2 * 1 / 2 for PPO, a sixth of it for base."""
    grading = tmp_path / "grading"
    blind_grades.main(["batches", str(run), str(grading)])
    for batches, answers in (("batches", "grades"), ("batches2", "grades2")):
        (grading / answers).mkdir()
        given = {"ppo": "2 1", "the": "2 1", "teacher": "4 2"}
        rows = read_jsonl(grading / batches / "000.jsonl")
        text = "".join(f"{row['n']} {given.get(row['line'].split()[0], '0 0')}\n" for row in rows)
        (grading / answers / "000.txt").write_text(text)
    kept = tmp_path / "kept.jsonl"
    assert blind_grades.main(["collect", str(grading), "--out", str(kept)]) == 0
    page = tmp_path / "page.md"
    page.write_text("a\n<!-- real: blind -->\nold\n<!-- end -->\nb\n")
    assert blind_grades.main(["table", str(kept), "--page", str(page)]) == 0
    rows = {cells[1].strip(): cells[2:-1] for row in page.read_text().splitlines() if (cells := row.split("|"))[1:]}
    assert [name for name in rows if name in STAGES] == list(STAGES)
    assert [rows[stage][3].split()[0] for stage in STAGES] == ["0.17", "0.00", "1.00", "4.00"]
    assert [rows[stage][5].split()[0] for stage in STAGES] == ["16.7", "0.0", "100.0", "100.0"]
    assert "kappa of 1.00" in page.read_text()
