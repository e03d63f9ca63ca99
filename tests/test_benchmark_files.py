"""A benchmark's folder from the command line: results that are there are never written over by accident."""

from __future__ import annotations

import itertools
import json
import re
import shutil
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
from typer.testing import CliRunner

from humor_env.errors import CheckpointError, InvalidOption
from humor_env.experiments.commands.cli import app
from humor_env.experiments.compare.benchmark import Benchmark, collect, load_benchmark, publish, rows_of, run_benchmark
from humor_env.experiments.compare.benchmark_charts import CHARTS, make_chart
from humor_env.experiments.compare.benchmark_spec import BenchmarkSpec, load_benchmark_spec, parse_benchmark
from humor_env.experiments.compare.benchmark_tables import make_table, tables_of
from humor_env.experiments.compare.jobs import RESULT, Cell, finished

RESULTS = Path(__file__).resolve().parent.parent / "docs" / "results"
SVG = "{http://www.w3.org/2000/svg}"
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


def done(folder: Path, cells: slice = slice(None), prompts: int = 12, text: str = SPEC) -> BenchmarkSpec:
    """A benchmark's folder with some of its cells done, and nothing written from them yet."""
    spec = parse_benchmark(text)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "spec.toml").write_text(spec.to_toml())
    for cell in spec.cells(folder)[cells]:
        finish(cell, prompts)
    return spec


def is_line(path: ET.Element) -> bool:
    return "line" in (path.get("class") or "").split()


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
        assert not copy.exists() and "  best-of-8/crowd\n" in found.output
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
    done(folder, text=SPEC.replace('name = "ppo"', f'name = "{name}"\nlearner = "ppo"'))
    assert collect(folder).curves == load_benchmark(folder).curves
    assert make_table(load_benchmark(folder), "efficiency").count(f"| {name} |") == 1


# Numbers by hand


def test_the_teacher_is_measured_once_and_every_other_system_for_each_seed(tmp_path):
    spec = done(tmp_path, text=SPEC.replace("seeds = [0]", "seeds = [3, 7]"))
    found, _, _ = rows_of({cell.name: finished(cell) for cell in spec.cells(tmp_path)})
    assert sorted((row["system"], row["seed"]) for row in found) == [
        *(("base", 3), ("base", 7), ("imitation", 3), ("imitation", 7)),
        *(("ppo", 3), ("ppo", 7), ("teacher", 3)),
    ]


def test_overoptimisation_by_hand(tmp_path):
    """A KL of 4 nats; the two judges disagree about every line, in either direction."""
    done(tmp_path / "out")
    bench = collect(tmp_path / "out")
    [ppo] = [row for row in bench.rows if row["system"] == "ppo"]
    for training, held_out, told in ((1.0, 0.5, ["100", "50", "50"]), (0.5, 1.0, ["50", "100", "-50"])):
        ppo |= {"kl": 4.0, "wins": [training] * 12, "wins_held_out": [held_out] * 12}
        head, _, *rows = make_table(bench, "overoptimisation").splitlines()
        assert head == "|  | √KL | wins, training judge | wins, held-out judge | gap |"
        [row] = [row for row in rows if row.startswith("| ppo | ")]
        assert re.findall(r"\| ([-\d.]+) ", row) == ["2.00", *told]


def test_all_in_one_table_keeps_the_order_of_the_spec(tmp_path):
    """Learners as the spec names them and each with its feedback in turn, though the last are the best."""
    more = '\n[[learners]]\nname = "dpo"\n\n[[feedback]]\nname = "best"\njudge = "pocket-crowd"\n'
    spec = parse_benchmark(SPEC + more)
    learned = [(name, source) for name in ("ppo", "dpo") for source in ("crowd", "best")]
    systems = [*learned[::-1], ("imitation", "crowd"), ("base", "crowd")]  # best first
    rows = []
    for place, (name, source) in enumerate(systems):
        numbers = [1.0 - place / 10] * 3
        rows.append({"system": name, "feedback": source, "seed": 0, "score": numbers[0], "scores": numbers})
        rows[-1] |= dict.fromkeys(("wins", "ties", "wins_held_out", "ties_held_out"), numbers)
    bench = Benchmark(tmp_path, spec, {"prompts": ["a", "b", "c"]}, rows, [])
    table = make_table(bench, "effects").splitlines()
    assert [line.split(" | ")[0] for line in table[2:]] == [
        *("| imitation", "| base", "| ppo, crowd", "| ppo, best", "| dpo, crowd", "| dpo, best"),
    ]


def test_profiles_by_hand(tmp_path):
    """Scores of 0, 1/12, ..., 11/12: the share above each of the thresholds 0, 0.05, ..., 0.95. Nine systems more than
    an eye can tell apart leave the fixed ones and the best."""
    done(tmp_path / "out")
    bench = collect(tmp_path / "out")
    [ppo] = [row for row in bench.rows if row["system"] == "ppo"]
    bench.rows.extend(ppo | {"system": f"own-{n}", "score": 0.6 + n / 100} for n in range(9))
    svg = ET.fromstring(make_chart(bench, "profiles-chart"))
    lines = [[float(v) for v in re.findall(r"[-\d.]+", e.get("d"))] for e in svg.iter(SVG + "path") if is_line(e)]
    names = ["".join(e.itertext()) for e in svg.iter(SVG + "text")]
    assert [name for name in names if name in {row["system"] for row in bench.rows}] == [
        *("base", "teacher", "imitation", "own-8", "own-7", "own-6", "own-5", "own-4"),
    ]
    assert len(lines) == 8 and all(line == lines[0] for line in lines)
    x, y = lines[0][::2], lines[0][1::2]
    steps = [b - a for a, b in itertools.pairwise(x)]
    assert len(x) == 20 and max(steps) - min(steps) < 0.25
    above = [sum(n / 12 > k / 20 for n in range(12)) / 12 for k in range(20)]
    assert above[0] == 11 / 12 and above[10] == 5 / 12 and above[19] == 0
    height = (y[19] - y[0]) / above[0]
    assert [(y[19] - each) / height for each in y] == pytest.approx(above, abs=0.002)
