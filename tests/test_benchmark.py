"""The benchmark: equal budgets, a held-out judge, cells that survive a kill, and tables that are never typed."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from contextlib import nullcontext
from pathlib import Path

import cell_jobs
import pytest
import tiny
from test_reward_model import decoder, encoder

from humor_env.errors import InvalidOption
from humor_env.experiments.compare import benchmark_cell, benchmark_pages, benchmark_tables
from humor_env.experiments.compare.benchmark import collect, load_benchmark, publish, run_benchmark, win_or_tie
from humor_env.experiments.compare.benchmark_cell import (
    CellRun,
    against_itself,
    against_teacher,
    train_and_measure,
)
from humor_env.experiments.compare.benchmark_charts import CHARTS, make_chart
from humor_env.experiments.compare.benchmark_spec import parse_benchmark
from humor_env.experiments.compare.bias_judges import OneOrder
from humor_env.experiments.compare.jobs import RESULT, Cell
from humor_env.experiments.reports.benchmark_page import benchmark_view
from humor_env.experiments.runs.ingredients import Ingredients, load_student
from humor_env.experiments.specs.spec import load_spec, parse_spec
from humor_env.experiments.specs.toml_text import dumps
from humor_env.prompts import load_prompts
from humor_env.rewards import reward_model
from humor_env.rewards.pocket import CrowdJudge, PocketJudge
from humor_env.rewards.reward_model import encode
from humor_env.teacher import pocket_lines
from humor_env.types import Joke, Verdict

DOCS = Path(__file__).resolve().parent.parent / "docs"
SPEC = """
name = "tiny"
seeds = [0]
budget = { samples = 48, judgements = 48, evaluations = 2 }
held_out = { critic = "pocket" }

[shared.student]
model = "STUDENT"

[shared.teacher]
per_prompt = 1

[shared.teacher.imitation]
epochs = 1
batch_size = 512
micro_batch = 512

[shared.eval]
limit = 6
dev_limit = 4
sampling = { max_new_tokens = 8 }

[learner]
batch_size = 8
sampling = { max_new_tokens = 8 }
pairs = { length_filter = "off", sampling = { max_new_tokens = 8 } }

[[feedback]]
name = "crowd"
judge = "pocket-crowd"
critic_options = { max_lines = 1 }
"""
LEARNERS = """
[[learners]]
name = "best-of-2"
learner = "best-of-n"
settings = { n = 2 }

[[learners]]
name = "ppo"

[[learners]]
name = "dpo"
settings = { epochs = 2 }
"""


@pytest.fixture(scope="session")
def student_folder(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("students") / "tiny"
    # Of one byte a token: the teacher's longest lines must fit.
    tiny.student(context=256).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="session")
def few_prompts(tmp_path_factory) -> str:
    """A file with 48 of the pocket world's sentences to learn from: imitating all 2400 takes a minute each time."""
    world, path = load_prompts("pocket"), tmp_path_factory.mktemp("prompts") / "few.jsonl"
    chosen = [p for split, count in (("train", 48), ("dev", 4), ("test", 6)) for p in world.split(split)[:count]]
    rows = [{"id": p.id, "text": p.text, "split": p.split} for p in chosen]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def text(student: str = "pocket:causal", learners: str = LEARNERS, prompts: str = "", **changes: str) -> str:
    found = SPEC.replace("STUDENT", student) + learners
    if prompts:
        found = found.replace("[shared.student]", f'[shared.env]\nprompts = "{prompts}"\n\n[shared.student]')
    for before, after in changes.items():
        assert before in found
        found = found.replace(before, after)
    return found


def cell(folder: Path, name: str, *, seed: int = 0, needs: tuple[str, ...] = (), **spec) -> Cell:
    return Cell(name, folder / name, "cell_jobs:sleep_and_answer", spec, seed, needs)


# Cells of a benchmark


def run_here(one: Cell) -> dict:
    one.folder.mkdir(parents=True, exist_ok=True)
    found = train_and_measure(one.spec, one.seed, one.folder)
    (one.folder / RESULT).write_text(
        json.dumps({"cell": one.asked, "seconds": {"wall": 1.0, "cpu": 1.0}, "result": found})
    )
    return found


@pytest.mark.slow
def test_budgets_are_equal_as_the_feedback_itself_counts_them(tmp_path, monkeypatch, student_folder, few_prompts):
    monkeypatch.setenv("COUNTING_FILE", str(tmp_path / "count"))
    learners = LEARNERS + "".join(
        f'\n[[learners]]\nname = "{name}"\nsettings = {{ {settings} }}\n'
        for name, settings in (
            ("grpo", "siblings = 4"),
            ("expert-iteration", "siblings = 4"),
            ("brio", "epochs = 2, rounds = 2"),
        )
    )
    counting = {'judge = "pocket-crowd"': 'judge = "cell_jobs:CountingJudge"'}
    spec = text(student_folder, learners, few_prompts, **counting)
    scalar = spec.replace("critic_options = { max_lines = 1 }", 'critic = "cell_jobs:CountingCritic"')
    bench = parse_benchmark(scalar)
    begin, *cells = bench.cells(tmp_path)
    run_here(begin)
    assert cell_jobs.counted("line") == cell_jobs.counted("pair") == 0
    for one in cells:
        before = cell_jobs.counted("line") + cell_jobs.counted("pair")
        found = run_here(one)
        asked = cell_jobs.counted("line") + cell_jobs.counted("pair") - before
        name = one.name.partition("/")[0]
        if name == "best-of-2":
            assert asked == 0 and "samples" not in found["spent"]
            continue
        assert found["spent"]["judgements"] == asked, name
        assert found["spent"]["samples"] == 48, name
        # Learners of pairs show the judge two of the six lines that they write for each of eight prompts.
        assert asked == 48 if name in ("ppo", "grpo", "expert-iteration") else 6 <= asked <= 8, name
        assert found["curve"][-1]["samples"] <= 48


@pytest.mark.slow
def test_a_benchmark_from_its_spec_to_its_page(tmp_path, student_folder):
    """All learners of a seed begin with the same weights; the files hold what the tables say."""
    # With all sentences: after few of them PPO moves so little that the measured KL may fall below 0 by chance.
    bench = parse_benchmark(text(student_folder))
    cells = bench.cells(tmp_path)
    for one in cells[:-1]:
        run_here(one)
    (tmp_path / "spec.toml").write_text(bench.to_toml())
    found = collect(tmp_path)
    assert {r["system"] for r in found.rows} == {"base", "teacher", "imitation", "best-of-2", "ppo"}
    assert list(found.failures) == ["dpo/crowd/seed-0"]

    loaded = load_benchmark(tmp_path)
    assert loaded.rows == found.rows and loaded.spec == bench
    assert [p["samples"] for p in loaded.curves if p["system"] == "ppo"] == [24, 48]
    page = (tmp_path / "RESULTS.md").read_text()
    assert "1 of 4 cells have no result" in page and "| teacher | " in page

    row = next(r for r in found.rows if r["system"] == "ppo")
    assert row["score"] == pytest.approx(sum(row["scores"]) / 6, abs=1e-4)
    of_two = next(r for r in found.rows if r["system"] == "best-of-2")
    assert of_two["kl"] == pytest.approx(math.log(2) - 0.5, abs=1e-4)
    assert row["kl"] > 0 and len(row["wins"]) == len(row["longer"]) == 6
    lines = (tmp_path / "cells/ppo/crowd/seed-0/seed-0/evaluation-ppo.jsonl").read_text().splitlines()
    assert [json.loads(line)["score"] for line in lines] == row["scores"]
    assert len(loaded.record["prompts"]) == 6

    # The same weights: what learns begins with the student that the warm start saved.
    begun = str((tmp_path / "cells/imitation/seed-0/seed-0/student").resolve())
    assert load_spec(tmp_path / "cells/ppo/crowd/seed-0/spec.toml").student.model == begun
    assert load_spec(tmp_path / "cells/best-of-2/crowd/seed-0/spec.toml").student.model == begun

    # The small files alone are enough, and a page's tables come from them.
    publish(found, tmp_path / "docs" / "results" / "tiny")
    page_path = tmp_path / "docs" / "benchmark.md"
    page_path.write_text(
        "# Results\n\n<!-- benchmark: tiny/scores -->\nold\n<!-- end -->\n\n<!-- benchmark: tiny/samples-chart -->\n"
        "<!-- end -->\n\n<!-- benchmark: missing/scores -->\n<!-- end -->\n"
    )
    assert benchmark_pages.fill_page(page_path) == 2
    filled = page_path.read_text()
    assert benchmark_tables.make_table(loaded, "scores") in filled and "old" not in filled
    assert "](results/tiny/samples-chart.svg)" in filled
    assert (tmp_path / "docs/results/tiny/samples-chart.svg").read_text().startswith("<?xml")
    assert benchmark_pages.fill_page(page_path) == 0
    for name in CHARTS:
        assert "</svg>" in make_chart(loaded, name)
    with pytest.raises(InvalidOption, match="No table"):
        benchmark_tables.make_table(loaded, "score")


KILLED = """
import sys
from pathlib import Path
from humor_env.experiments.compare.benchmark import run_benchmark
from humor_env.experiments.compare.benchmark_spec import load_benchmark_spec

if __name__ == "__main__":
    run_benchmark(load_benchmark_spec(sys.argv[1]), Path(sys.argv[2]), workers=1, say=lambda t: print(t, flush=True))
"""


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"
    except OSError:
        return False


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks at /proc")
def test_a_killed_benchmark_goes_on_where_it_was(tmp_path, student_folder, few_prompts):
    """SIGKILL in the middle of a learner: no process is left behind, what was finished is not done again, and the
    outcome is that of a benchmark that was never killed."""
    spec, script = tmp_path / "bench.toml", tmp_path / "go.py"
    spec.write_text(text(student_folder, prompts=few_prompts).replace("samples = 48", "samples = 160"))
    script.write_text(KILLED)
    arguments = [sys.executable, str(script), str(spec)]
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    first = subprocess.Popen([*arguments, str(killed)], stdout=subprocess.DEVNULL, start_new_session=True)
    ppo = killed / "cells/ppo/crowd/seed-0"
    deadline = time.monotonic() + 400
    while not (ppo / "seed-0" / "metrics.jsonl").exists():
        assert time.monotonic() < deadline and first.poll() is None
        time.sleep(0.02)
    children = [int(p) for p in _descendants(first.pid)]
    os.kill(first.pid, signal.SIGKILL)
    first.wait()
    assert children
    while any(alive(pid) for pid in children):
        assert time.monotonic() < deadline, "a killed benchmark left processes behind"
        time.sleep(0.05)
    assert not (ppo / RESULT).exists()
    done = {p: p.stat().st_mtime_ns for p in killed.glob("cells/**/result.json")}
    assert len(done) == 2  # the warm start and best-of-2

    for folder in (killed, whole):
        subprocess.run([*arguments, str(folder)], stdout=subprocess.DEVNULL, check=True)
    assert {p: p.stat().st_mtime_ns for p in done} == done
    before, after = load_benchmark(killed), load_benchmark(whole)
    assert not before.failures and not after.failures
    assert [_timeless(r) for r in before.rows] == [_timeless(r) for r in after.rows]


def _timeless(row: dict) -> dict:
    return {k: v for k, v in row.items() if k != "spent/seconds"}


def _descendants(pid: int) -> list[str]:
    found = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        for child in (task / "children").read_text().split():
            found += [child, *_descendants(int(child))]
    return found


def test_two_benchmarks_cannot_work_in_one_folder(tmp_path):
    fcntl = pytest.importorskip("fcntl")
    with (tmp_path / ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(InvalidOption, match="already at work"):
            run_benchmark(parse_benchmark(text()), tmp_path)
    (tmp_path / "spec.toml").write_text(parse_benchmark(text().replace('"tiny"', '"other"')).to_toml())
    with pytest.raises(InvalidOption, match="holds another benchmark"):
        run_benchmark(parse_benchmark(text()), tmp_path)


# Measuring


def test_lines_beside_the_teacher_are_asked_in_both_orders_and_copies_draw():
    prompts = load_prompts("pocket").split("test")[:3]
    teacher = pocket_lines(1)
    theirs = [teacher.lines_for(p.id)[0] for p in prompts]
    jokes = [Joke(prompts[0], theirs[0]), Joke(prompts[1], "The walrus."), Joke(prompts[2], theirs[2] + " Yes.")]
    found = against_teacher(jokes, teacher, PocketJudge())
    assert found["wins"][:2] == [0.5, 0.0] and found["ties"][0] == 1.0
    assert found["longer"] == [0, len("The walrus.") - len(theirs[1]), 5]
    # A tie is half of a win in `wins`, and a whole one in the paper's metric.
    assert win_or_tie([0.5, 0.0, None, 0.9], [1.0, 0.0, 0.0, 0.4]) == [1.0, 0.0, None, 1.0]
    # A judge that always prefers the line shown first: asking in both orders cancels that.
    biased = CrowdJudge(noise=0.0, length_bias=0.0, position_bias=50.0)
    assert against_teacher(jokes[1:2], teacher, biased)["wins"] == [0.5]
    once = OneOrder("pocket-crowd", {"noise": 0.0, "length_bias": 0.0, "position_bias": 50.0})
    assert against_teacher(jokes[1:2], teacher, once)["wins"] == [1.0]
    assert against_teacher(jokes[:1], None, biased)["wins"] == [None]


def test_a_policy_beside_itself_by_hand():
    """A win, a tie of scores, a line that was not judged, and the same words, which the judge is not asked about."""
    jokes = [Joke(p, "first") for p in load_prompts("pocket").split("test")[:4]]
    again = [Joke(j.prompt, t) for j, t in zip(jokes, ["a", "b", "c", "first "], strict=True)]
    asked = []

    def judge(pairs):
        asked.extend(a.text for a, _ in pairs)
        return [Verdict("j", 0.8, tie=0.4), Verdict("j", 0.0), Verdict("j", None, error="?")]

    numbers = {"scores": [0.5, 0.2, None, 0.1], "exact": {}, "feedback": {"crowd": {}}}
    against_itself(numbers, {"scores": [0.1, 0.2, 0.3, 0.4]}, list(zip(again, jokes, strict=True)), {"crowd": judge})
    assert numbers["exact"] == {"wins_itself": [1.0, 0.5, None, 0.0], "ties_itself": [0.0, 1.0, 0.0, 0.0]}
    assert numbers["feedback"]["crowd"]["wins_itself"] == [0.8, 0.0, None, 0.5]
    assert numbers["feedback"]["crowd"]["ties_itself"] == [0.4, 0.0, 0.0, 1.0]
    assert asked == ["a", "b", "c"]


def test_only_the_warm_start_is_written_twice_and_only_where_it_is_asked_for():
    off, on = (parse_benchmark(text(**{"seeds = [0]": f"seeds = [0]{more}"})) for more in ("", "\nnoise_floor = true"))
    before, after = off.cells(Path("out")), on.cells(Path("out"))
    assert after[0].spec == before[0].spec | {"noise_floor": True} and "noise_floor" not in before[0].spec
    assert [cell.spec for cell in after[1:]] == [cell.spec for cell in before[1:]]


@pytest.mark.slow
def test_the_imitation_is_written_twice(tmp_path, student_folder, few_prompts):
    """The same weights with other random numbers, two lines for each prompt; the page has a table of it."""
    changes = {"limit = 6\n": "limit = 6\nlines = 2\n", "seeds = [0]": "seeds = [0]\nnoise_floor = true"}
    bench = parse_benchmark(text(student_folder, prompts=few_prompts, **changes))
    run_here(bench.cells(tmp_path)[0])
    (tmp_path / "spec.toml").write_text(bench.to_toml())
    found = collect(tmp_path)
    rows = {row["system"]: row for row in found.rows}
    assert set(rows) == {"base", "teacher", "imitation", "imitation-again"}
    assert all(len(row["scores"]) == len(row["wins"]) == len(row["longer"]) == 12 for row in found.rows)
    assert len(rows["imitation-again"]["wins_itself"]) == len(rows["imitation-again"]["ties_itself_held_out"]) == 12
    place = tmp_path / "cells/imitation/seed-0/seed-0"
    first, again, teacher = (
        [json.loads(line)["text"] for line in (place / f"evaluation-{name}.jsonl").read_text().splitlines()]
        for name in ("sft", "sft-again", "teacher")
    )
    assert len(first) == len(again) == 12 and not set(first) & set(again)
    assert len(teacher) == 6, "the teacher's only line for a prompt is not judged twice"
    assert rows["teacher"]["scores"][::2] == rows["teacher"]["scores"][1::2]
    page = (tmp_path / "RESULTS.md").read_text()
    assert "6 held-out prompts, 2 lines for each" in page
    noise = benchmark_tables.make_table(found, "noise")
    assert noise in page and noise.splitlines()[2].startswith("| imitation, written again | ")
    assert "imitation, written again" not in benchmark_tables.make_table(found, "ratings")
    for name in CHARTS:
        assert "</svg>" in make_chart(found, name)
    _, shown = benchmark_view(tmp_path)
    assert all("sft-again" not in seed.stages for one in shown for seed in one.seeds)


def test_local_critics_read_each_line_once_in_a_measurement(tmp_path, student_folder, monkeypatch):
    """The held-out critic read every line three times and more: for the evaluation's file, its score, the pairs beside
    the teacher's lines; so did the one that teaches, as a judge and inside its win-tie critic. Measuring took as long
    as training. The numbers are the same to the digit."""
    held_out, teaching = encoder(tmp_path / "held-out"), decoder(tmp_path / "teaching")
    changes = {
        "limit = 6\n": "limit = 6\nlines = 2\n",
        'critic = "pocket"': f'critic = "reward-model", options = {{ folder = "{held_out}" }}',
        'judge = "pocket-crowd"': f'judge = "reward-model"\noptions = {{ folder = "{teaching}" }}',
    }
    asked = parse_benchmark(text(student_folder, **changes)).cells(tmp_path)[0].spec
    spec = parse_spec(dumps(asked["run"]))
    read: list[tuple[bool, str, str]] = []

    def counted(tokenizer, jokes, max_length):
        read.extend((tokenizer.cls_token is None, joke.prompt.text, joke.text) for joke in jokes)
        return encode(tokenizer, jokes, max_length)

    def measure(folder):
        """A cell without its training."""
        cell = CellRun(Ingredients(spec, folder), 0, load_student(spec.student, 0))
        cell._measure("base", None)
        cell._measure_teacher()
        found = benchmark_cell.measure_all(asked, cell, {name: cell._lines(name) for name in ("base", "teacher")})
        times = Counter(read)
        read.clear()
        return found, times

    monkeypatch.setattr(reward_model, "encode", counted)
    once, times = measure(tmp_path / "once")
    assert {of_teaching for of_teaching, _, _ in times} == {False, True} and set(times.values()) == {1}
    monkeypatch.setattr(benchmark_cell, "reading_once", lambda known: nullcontext())
    often, times = measure(tmp_path / "often")
    assert max(times.values()) == 3
    assert often == once


def test_a_judge_without_one_order_cannot_be_asked_in_one():
    with pytest.raises(InvalidOption, match="no method `ask`"):
        OneOrder("pocket")


# The docs


def test_the_pages_tables_are_those_of_the_result_files():
    page = DOCS / "benchmark.md"
    assert benchmark_pages.MARK.search(page.read_text(encoding="utf-8")), "the page asks for no table"
    after, charts = benchmark_pages.filled(page.read_text(encoding="utf-8"), DOCS / "results")
    assert page.read_text(encoding="utf-8") == after, "run: humor-env benchmark --tables docs/benchmark.md"
    for path, svg in charts.items():
        assert path.read_text(encoding="utf-8") == svg, "run: humor-env benchmark --tables docs/benchmark.md"
