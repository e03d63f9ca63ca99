"""Cells: one that crashes stops no other, and a result is taken for its own settings only."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from test_benchmark import cell

from humor_env.errors import CheckpointError, InvalidOption
from humor_env.experiments.compare import launchers
from humor_env.experiments.compare.jobs import FAILURE, RESULT, Cell, outcome_of, run_cells


def test_a_crashed_cell_stops_no_other_and_tells_why(tmp_path):
    cells = [
        cell(tmp_path, "killed", kill=True),
        cell(tmp_path, "broken", **{"raise": True}),
        cell(tmp_path, "fine", seed=3, **{"is": "fine"}),
        cell(tmp_path, "after", needs=("broken",)),
        cell(tmp_path, "later", needs=("fine",)),
    ]
    said: list[str] = []
    found = run_cells(cells, workers=2, say=said.append)
    assert list(found) == [c.name for c in cells]
    assert "signal 9" in found["killed"].error and "log.txt" in found["killed"].error
    assert found["broken"].error == "ValueError: the job is broken"
    assert "sleep_and_answer" in json.loads((tmp_path / "broken" / FAILURE).read_text())["traceback"]
    assert "the job is broken" in (tmp_path / "broken" / "log.txt").read_text()
    assert "needs 'broken'" in found["after"].error and not (tmp_path / "after").exists()
    assert found["fine"].result == {"seed": 3, "is": "fine"} and found["later"].error is None
    assert len(said) == 5

    # Once more: what failed is tried again, what is finished is not.
    mended = [cell(tmp_path, "broken", is_mended=True), *cells[2:]]
    again = run_cells(mended, workers=1)
    assert [o.error for o in again.values()] == [None] * 4
    assert [o.again for o in again.values()] == [False, True, False, True]
    assert (tmp_path / "fine" / "times").read_text() == "x"
    assert not (tmp_path / "broken" / FAILURE).exists()


def test_a_cell_that_dies_before_it_begins_does_not_tell_the_failure_of_last_time(tmp_path, monkeypatch):
    """Its process may be killed while it imports: then the failure.json of an earlier attempt was told instead."""
    one = cell(tmp_path, "one")
    one.folder.mkdir()
    (one.folder / FAILURE).write_text('{"error": "of last time", "traceback": ""}')

    def dies(name, ready, settle, **_):
        settle(outcome_of(ready(), -9))

    monkeypatch.setattr(launchers, "launch", dies)
    assert "signal 9" in run_cells([one])["one"].error


def test_a_result_of_other_settings_is_not_taken_for_this_one(tmp_path):
    run_cells([cell(tmp_path, "one", **{"is": 1})])
    with pytest.raises(CheckpointError, match=r"spec changed.*delete"):
        run_cells([cell(tmp_path, "one", **{"is": 2})])
    moved = tmp_path / "elsewhere"
    (tmp_path / "one").rename(moved)
    assert run_cells([Cell("one", moved, "cell_jobs:sleep_and_answer", {"is": 1})])["one"].again


def test_cells_that_cannot_be_told_apart_or_come_too_early_are_refused(tmp_path):
    one = cell(tmp_path, "one")
    for cells, said in (
        ([one, one], "Two cells"),
        ([cell(tmp_path, "a", needs=("b",)), cell(tmp_path, "b")], "before"),
    ):
        with pytest.raises(InvalidOption, match=said):
            run_cells(cells)
    with pytest.raises(InvalidOption, match="launcher is one of local, ray"):
        run_cells([one], launcher="rai")
    with pytest.raises(InvalidOption, match="at least 1"):
        run_cells([one], workers=0)


@pytest.mark.slow
def test_ray_does_the_same_with_two_workers(tmp_path, monkeypatch):
    pytest.importorskip("ray")
    # Its workers are other processes, which find this file by its path alone.
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))
    monkeypatch.setenv("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
    cells = [
        cell(tmp_path, "left", seconds=1.0, **{"is": "left"}),
        cell(tmp_path, "right", seconds=1.0, **{"is": "right"}),
        cell(tmp_path, "broken", **{"raise": True}),
        cell(tmp_path, "killed", kill=True),
        cell(tmp_path, "after", seed=2, needs=("left", "right")),
    ]
    found = run_cells(cells, workers=2, launcher="ray")
    assert found["left"].result["is"] == "left" and found["right"].result["is"] == "right"
    assert found["broken"].error == "ValueError: the job is broken"
    assert "Ray worker died" in found["killed"].error
    assert found["after"].result == {"seed": 2, "is": None}
    both = [json.loads((tmp_path / name / RESULT).read_text())["seconds"]["wall"] for name in ("left", "right")]
    assert all(seconds >= 1.0 for seconds in both)
    assert run_cells(cells[:2], launcher="ray")["left"].again
