"""Graded lines: brought back to their sentences unchanged; how far the passes agree; what the package holds."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from humor_env.experiments.upkeep.graded_lines import agreement, collect, kappa, main, read_grades
from humor_env.rewards.audits.audit import audit
from humor_env.rewards.audits.report import AuditReport
from humor_env.rewards.cards.card import make_card
from humor_env.rewards.cards.page import card_markdown
from humor_env.rewards.rated.everyday_grades import graded_rows
from humor_env.rewards.rated.rated_sets import load_rated
from humor_env.teacher import everyday_lines


def write(folder: Path, second: str = "0 1 2\n1 3 1\n") -> Path:
    """Two lines; the second pass saw them in the other order."""
    lines = [
        {"id": f"line-{i}", "prompt_id": f"p{i}", "literal": f"sentence {i}", "line": f"joke {i}", "writer": "teacher"}
        | {"split": "train", "use": "everyday"}
        for i in (0, 1)
    ]
    for name, order in (("batches", (0, 1)), ("batches2", (1, 0))):
        (folder / name).mkdir(parents=True)
        blind = [{"n": n, "literal": f"sentence {i}", "line": f"joke {i}"} for n, i in enumerate(order)]
        (folder / name / "000.jsonl").write_text("".join(json.dumps(row) + "\n" for row in blind))
        key = "key" if name == "batches" else "key2"
        rows = [{"n": n, "id": f"line-{i}"} for n, i in enumerate(order)]
        (folder / f"{key}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "lines.jsonl").write_text("".join(json.dumps(row) + "\n" for row in lines))
    for name, answers in (("grades", "0 4 1\n1 0 0\n"), ("grades2", second)):
        (folder / name).mkdir()
        (folder / name / "000.txt").write_text(answers)
    return folder


def test_both_grades_come_back_to_their_line(tmp_path: Path) -> None:
    """In the second pass row 0 is line 1."""
    first, second = collect(write(tmp_path / "g"))
    assert (first["id"], first["funny"], first["meaning"]) == ("line-0", [4, 3], [1, 1])
    assert (second["id"], second["funny"], second["meaning"]) == ("line-1", [0, 1], [0, 2])
    assert (first["raters"], first["score"]) == ([2.0, 1.5], 1.75)  # funny times meaning over 2
    assert (second["raters"], second["score"]) == ([0.0, 1.0], 0.5)


def test_a_line_that_one_pass_has_not_graded_is_left_out(tmp_path: Path) -> None:
    assert [row["id"] for row in collect(write(tmp_path / "g", "0 1 2\n"))] == ["line-1"]


@pytest.mark.parametrize("answers", ["0 5 1\n", "0 1 3\n", "0 -1 1\n", "7 1 1\n", "0 1 1\n0 1 1\n"])
def test_a_grade_that_cannot_be_is_refused(answers: str, tmp_path: Path) -> None:
    folder = write(tmp_path / "g", answers)
    with pytest.raises(SystemExit, match=r"000\.txt"):
        read_grades(folder, "grades2", "batches2", "key2")


def test_kappa_by_hand() -> None:
    """Grades 0, 1, 2 in passes (0, 0), (2, 2), (0, 1), (1, 2): squared gaps 0, 0, 1, 1. By chance the first pass has
    0 twice, 1 and 2 once, the second one each of 0 and 1 and 2 twice; the mean squared gap of all 16 pairings is
    (2 (0 + 1 + 4 + 4) + (1 + 0 + 1 + 1) + (4 + 1 + 0 + 0)) / 16 = 26 / 16, so kappa is 1 - (2 / 4) / (26 / 16)."""
    table = np.zeros((3, 3))
    for a, b in ((0, 0), (2, 2), (0, 1), (1, 2)):
        table[a, b] += 1
    assert float(kappa(table)) == pytest.approx(1 - 0.5 / (26 / 16))
    assert float(kappa(np.diag([3.0, 2.0, 1.0]))) == 1.0
    assert np.isnan(kappa(np.diag([3.0, 0.0, 0.0])))  # one grade throughout: nothing to agree on


def test_the_interval_is_around_kappa_and_repeats() -> None:
    rows = [row for row in graded_rows() if row["kind"] == "teacher"][:200]
    value, low, high = agreement(rows, "meaning")
    assert low < value < high
    assert agreement(rows, "meaning") == (value, low, high)


def test_the_bundled_grades_belong_to_the_bundled_sentences(capsys: pytest.CaptureFixture[str]) -> None:
    """At least 3,000 lines for 600 sentences; no sentence teaches both critics, and none of test teaches any."""
    rows = graded_rows()
    prompts = {prompt.id: prompt for prompt in everyday_lines().prompts()}
    assert len(rows) >= 3000 and len({row["prompt_id"] for row in rows}) >= 600
    assert len({row["id"] for row in rows}) == len({(row["prompt_id"], row["text"]) for row in rows}) == len(rows)
    uses: dict[str, set[str]] = {}
    for row in rows:
        prompt = prompts[row["prompt_id"]]
        assert (prompt.text, prompt.split) == (row["prompt"], row["split"])
        uses.setdefault(row["use"], set()).add(prompt.id)
        assert (row["use"] == "evaluation") == (prompt.split == "test")
        assert row["raters"] == [f * m / 2 for f, m in zip(row["funny"], row["meaning"], strict=True)]
    assert set(uses) == {"everyday", "everyday-judge", "evaluation"}
    assert sum(map(len, uses.values())) == len(set().union(*uses.values()))
    assert main([]) == 0
    assert "each graded twice" in capsys.readouterr().out


def test_they_are_ratings_for_an_audit_and_for_train_critic() -> None:
    import humor_env.data

    file = Path(humor_env.data.__file__).parent / "everyday_grades.jsonl"
    rated = load_rated("ratings", [file], low=0, high=4)
    assert len(rated.texts) == len(graded_rows())
    assert len(rated.texts[0].raters) == 2
    assert rated.scale == (0, 4)


def test_the_bundled_grades_are_a_set_of_their_own_and_nobody_is_told_that_people_gave_them() -> None:
    rated = load_rated("everyday-grades")
    lines = {row["id"]: row for row in graded_rows() if row["use"] == "evaluation"}
    assert [text.id for text in rated.texts] == list(lines)
    first = rated.texts[0]
    assert (first.score, first.raters, first.prompt.text) == (
        lines[first.id]["score"], tuple(lines[first.id]["raters"]), lines[first.id]["prompt"],
    )  # fmt: skip
    report = audit("rules", rated, context=0, surprisal=None)
    page = report.markdown()
    assert "people" not in page and "person" not in page.replace("no person was asked", "")
    assert "Agreement with a large language model" in page
    again = AuditReport.load(report.data())
    assert again.rated_by == "a large language model"
    made = make_card("rules", prompts=["everyday"], audits=[again])
    assert "Agreement with a large language model: everyday-grades" in card_markdown(made)
    assert any("has not been compared with people's ratings" in limit for limit in made.limits)
