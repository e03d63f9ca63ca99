"""A benchmark's folder from the command line: results that are there are never written over by accident."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from humor_env.errors import CheckpointError, InvalidOption
from humor_env.experiments.commands.cli import app
from humor_env.experiments.compare.benchmark import collect, load_benchmark, publish, run_benchmark
from humor_env.experiments.compare.benchmark_charts import CHARTS, make_chart
from humor_env.experiments.compare.benchmark_spec import BenchmarkSpec, load_benchmark_spec, parse_benchmark
from humor_env.experiments.compare.benchmark_tables import make_table, tables_of
from humor_env.experiments.compare.jobs import RESULT, Cell

RESULTS = Path(__file__).resolve().parent.parent / "docs" / "results"
SPEC = """
name = "tiny"
seeds = [0]
budget = { samples = 48, judgements = 48, evaluations = 2 }
held_out = { critic = "pocket" }

[learner]
batch_size = 8

[[feedback]]
name = "crowd"
judge = "pocket-crowd"

[[learners]]
name = "ppo"
"""


def finish(cell: Cell, prompts: int = 12) -> None:
    """Put a result where a cell would have it: each line scores a little more than the one before it."""
    verdicts = {"wins": [0.5] * prompts, "ties": [1.0] * prompts, "longer": [0] * prompts, "score": 0.5}
    numbers = {
        "prompts": [f"p{n}" for n in range(prompts)],
        "scores": [n / prompts for n in range(prompts)],
        "parts": {},
        "failures": 0,
        "exact": verdicts,
        "feedback": {"crowd": verdicts},
    }
    names = ["base", "teacher", "imitation"] if cell.name.startswith("imitation") else [cell.name.partition("/")[0]]
    point = {"step": 1, "seconds": 1.0, "samples": 24, "judgements": 24, "score": 0.5}
    found = {"systems": dict.fromkeys(names, numbers), "curve": [point], "spent": {"samples": 48.0}, "ended": ""}
    cell.folder.mkdir(parents=True)
    seconds = {"wall": 1.0, "cpu": 1.0}
    (cell.folder / RESULT).write_text(json.dumps({"cell": cell.asked, "seconds": seconds, "result": found}))


def done(folder: Path, cells: slice = slice(None), prompts: int = 12) -> BenchmarkSpec:
    """A benchmark's folder with some of its cells done, and nothing written from them yet."""
    spec = parse_benchmark(SPEC)
    folder.mkdir(parents=True)
    (folder / "spec.toml").write_text(spec.to_toml())
    for cell in spec.cells(folder)[cells]:
        finish(cell, prompts)
    return spec


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def run(*arguments: object):
    return CliRunner().invoke(app, ["benchmark", *map(str, arguments)])


@pytest.mark.parametrize("how", [(), ("--collect",), ("--dry-run",)])
def test_published_results_are_copied_and_never_written_over(tmp_path, how):
    """They have no cells: collecting them found nothing, and put that in place of their 76 rows."""
    mine, copy = tmp_path / "mine", tmp_path / "copy"
    shutil.copytree(RESULTS / "pocket-learners", mine)
    before = files(mine)
    found = run(mine, "--publish", copy, *how)
    assert found.exit_code == 0, found.output
    assert files(mine) == before
    if how == ("--dry-run",):
        assert not copy.exists() and "best-of-8/crowd/seed-0" in found.output
        return
    assert f"Published in {copy}" in found.output and "Written" not in found.output
    copied = files(copy)
    assert load_benchmark_spec(copy) == load_benchmark_spec(mine) and copied.pop("spec.toml")
    assert copied == {name: before[name] for name in copied} and len(copied) == 4
    assert len(load_benchmark(copy).rows) == 76


def test_cells_that_were_begun_beside_published_results_do_not_replace_them(tmp_path):
    shutil.copytree(RESULTS / "pocket-learners", tmp_path / "mine")
    (tmp_path / "mine" / "cells" / "imitation" / "seed-0").mkdir(parents=True)
    assert len(collect(tmp_path / "mine").rows) == 76
    assert len(load_benchmark(tmp_path / "mine").rows) == 76


def test_published_results_without_the_users_own_files_are_collected(tmp_path):
    """Their spec names no files, so their cells cannot even be listed."""
    shutil.copytree(RESULTS / "headlines", tmp_path / "mine")
    assert collect(tmp_path / "mine").rows == load_benchmark(RESULTS / "headlines").rows


def test_a_run_does_not_begin_anew_over_published_results(tmp_path):
    shutil.copytree(RESULTS / "pocket-learners", tmp_path / "mine")
    before = files(tmp_path / "mine")
    with pytest.raises(InvalidOption, match=r"results without the cells.*give another --out"):
        run_benchmark(load_benchmark_spec(tmp_path / "mine"), tmp_path / "mine", workers=0)  # would begin nothing
    assert files(tmp_path / "mine") == before


def test_with_a_spec_publish_runs_and_then_publishes(tmp_path):
    """It ran nothing, and published empty files."""
    (tmp_path / "tiny.toml").write_text(SPEC)
    done(tmp_path / "out")
    found = run(tmp_path / "tiny.toml", "--out", tmp_path / "out", "--publish", tmp_path / "copy")
    assert found.exit_code == 0, found.output
    assert "2 of 2 cells were done before" in found.output  # what a run says
    assert len(load_benchmark(tmp_path / "copy").rows) == 4


def test_settings_count_where_something_is_published(tmp_path):
    """`--set` was ignored there."""
    done(tmp_path / "out")
    found = run(tmp_path / "out", "--set", "shared.eval.limit=7", "--publish", tmp_path / "copy")
    assert found.exit_code == 1 and "other settings" in found.output
    assert not (tmp_path / "copy").exists()


def test_a_dry_run_writes_nothing(tmp_path):
    (tmp_path / "tiny.toml").write_text(SPEC)
    done(tmp_path / "out")
    page = tmp_path / "page.md"
    page.write_text("<!-- benchmark: pocket-learners/spent -->\nold\n<!-- end -->\n")
    (tmp_path / "results").symlink_to(RESULTS)
    before = files(tmp_path)
    asked = [
        (tmp_path / "tiny.toml", "--out", tmp_path / "out", "--publish", tmp_path / "copy"),
        (tmp_path / "out", "--publish", tmp_path / "copy"),
        ("--tables", page),
    ]
    said = [run(*arguments, "--dry-run") for arguments in asked]
    assert [found.exit_code for found in said] == [0, 0, 0], [found.output for found in said]
    assert "1 tables would be written" in said[-1].output
    found = run(tmp_path / "out", "--collect", "--dry-run")
    assert found.exit_code == 2 and "leave out --dry-run" in found.output
    assert files(tmp_path) == before


def test_what_has_no_results_yet_is_not_published(tmp_path):
    done(tmp_path / "out", slice(0, 0))
    found = run(tmp_path / "out", "--collect", "--publish", tmp_path / "copy")
    assert found.exit_code == 1 and "2 of 2 cells have no result" in found.output
    assert not (tmp_path / "copy").exists()
    with pytest.raises(InvalidOption, match="nothing to publish"):
        publish(load_benchmark(tmp_path / "out"), tmp_path / "copy")


def test_a_benchmark_is_not_published_over_itself(tmp_path):
    """Its spec would lose where the user's own files lie."""
    done(tmp_path / "out")
    with pytest.raises(InvalidOption, match="own folder"):
        publish(collect(tmp_path / "out"), tmp_path / "out")
    publish(collect(tmp_path / "out"), tmp_path / "copy")
    assert (tmp_path / "copy" / "results.csv").read_text() == (tmp_path / "out" / "results.csv").read_text()


def test_a_run_with_other_settings_is_refused_before_anything_is_written(tmp_path):
    """It was refused after spec.toml had been replaced: then nothing could be collected, nor resumed."""
    done(tmp_path / "out", slice(0, 1))
    assert list(collect(tmp_path / "out").failures) == ["ppo/crowd/seed-0"]
    before = files(tmp_path / "out")
    other = load_benchmark_spec(tmp_path / "out", ["shared.eval.limit=7"])
    with pytest.raises(CheckpointError, match="other settings"):
        run_benchmark(other, tmp_path / "out")
    assert files(tmp_path / "out") == before
    assert list(collect(tmp_path / "out").failures) == ["ppo/crowd/seed-0"]


def test_the_tables_of_one_prompt_and_one_seed_claim_nothing(tmp_path):
    """They had intervals of no width, a star for every difference, and tiers."""
    done(tmp_path / "out", prompts=1)
    bench = collect(tmp_path / "out")
    told = [make_table(bench, name) for name in tables_of(bench)]
    assert not [table for table in told if "[" in table or "*" in table or "nan" in table]
    tiers = make_table(bench, "ratings")
    assert tiers.count("| 1 | 0 |") == 4
    assert "0.000 |" in make_table(bench, "scores") and "50 |" in make_table(bench, "teacher")
    for name in CHARTS:
        assert "nan" not in make_chart(bench, name)


@pytest.mark.parametrize("name", ["7", "inf", "1_0"])
def test_a_name_that_looks_like_a_number_is_a_name(tmp_path, name):
    """Read back, the curve of a learner called "7" was that of a learner 7.0, and missing from every table."""
    folder = tmp_path / "out"
    folder.mkdir()
    spec = parse_benchmark(SPEC.replace('name = "ppo"', f'name = "{name}"\nlearner = "ppo"'))
    (folder / "spec.toml").write_text(spec.to_toml())
    for one in spec.cells(folder):
        finish(one)
    assert collect(folder).curves == load_benchmark(folder).curves
    assert make_table(load_benchmark(folder), "efficiency").count(f"| {name} |") == 1
