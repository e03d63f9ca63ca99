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

from humor_env.errors import CheckpointError, HumorEnvError, InvalidOption
from humor_env.experiments.compare import benchmark_cell, benchmark_pages, benchmark_tables, launchers
from humor_env.experiments.compare.benchmark import collect, load_benchmark, publish, run_benchmark, win_or_tie
from humor_env.experiments.compare.benchmark_cell import (
    CellRun,
    against_itself,
    against_teacher,
    train_and_measure,
)
from humor_env.experiments.compare.benchmark_charts import CHARTS, make_chart
from humor_env.experiments.compare.benchmark_costs import forecast_benchmark
from humor_env.experiments.compare.benchmark_spec import bundled_benchmarks, load_benchmark_spec, parse_benchmark
from humor_env.experiments.compare.bias_judges import OneOrder
from humor_env.experiments.compare.jobs import FAILURE, RESULT, Cell, outcome_of, run_cells
from humor_env.experiments.reports.benchmark_page import benchmark_view
from humor_env.experiments.runs.costs import in_words
from humor_env.experiments.runs.ingredients import Ingredients, evaluation_sampling, load_student
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


# What it would take


def test_a_dry_run_prints_calls_tokens_dollars_and_time(monkeypatch):
    """It printed the names of its cells. Of one seed, by hand: six held-out prompts, four dev prompts measured twice.

    Learning: PPO has 48 lines scored and DPO 8 pairs judged (six candidates each). Measuring: of the warm start's three
    systems 18 lines by the critic and 18 pairs by the judge; of each learner 6 and 6, and 8 dev lines. In both orders.
    """
    monkeypatch.delenv("ANTHROPIC_API_KEY", raising=False)
    monkeypatch.setattr("humor_env.experiments.runs.costs.seconds_to_write", lambda spec, threads: 0.5 * threads)
    judge = 'judge = "multiple-choice"\noptions = { client = "anthropic:claude-haiku-4-5" }'
    learners = LEARNERS[LEARNERS.index('[[learners]]\nname = "ppo"') :]
    changes = {
        'judge = "pocket-crowd"': judge,
        "[shared.student]": '[shared.env]\nprompts = "everyday"\n\n[shared.student]',
        'critic = "pocket"': 'critic = "rules"',
        "per_prompt = 1": 'lines = "everyday"\nper_prompt = 1',
        "seeds = [0]": "seeds = [0, 1]",
    }
    bench = parse_benchmark(text(learners=learners, **changes))
    said, lacking = forecast_benchmark(bench, workers=2, threads=1)
    assert lacking == []
    table = [[c.strip() for c in line.split("|")[1:-1]] for line in said.splitlines() if "| crowd |" in line]
    assert [row[:4] for row in table] == [
        ["measuring", "crowd", str(2 * (36 + 2 * (12 + 8))), str(2 * 2 * (36 + 2 * (12 + 8)))],
        ["learning", "crowd", str(2 * (48 + 8)), str(2 * 2 * (48 + 8))],
    ]
    assert float(table[1][6]) > 0 and "2 seeds: at most about $" in said
    assert "6 cells; the learners write about 192 lines" in said
    taught = len(load_prompts("everyday").split("train"))
    seconds = 0.5 * (0.75 * taught + 2 * 6 + 2 * (2 * 48 + 6 + 8))  # of two seeds, by two workers
    assert f"with 2 workers, that takes roughly {in_words(seconds)}" in said


def test_a_dry_run_counts_several_lines_and_the_noise_floor(monkeypatch):
    """By hand: of the warm start's four systems 4 x 6 prompts x 2 lines by the critic and by the judge, and 12 pairs of
    the imitation's own lines; of best-of-2 12 lines and 12 pairs, which it chooses among 24."""
    monkeypatch.delenv("ANTHROPIC_API_KEY", raising=False)
    monkeypatch.setattr("humor_env.experiments.runs.costs.seconds_to_write", lambda spec, threads: None)
    changes = {
        'judge = "pocket-crowd"': 'judge = "multiple-choice"\noptions = { client = "anthropic:claude-haiku-4-5" }',
        "[shared.student]": '[shared.env]\nprompts = "everyday"\n\n[shared.student]',
        'critic = "pocket"': 'critic = "rules"',
        "per_prompt = 1": 'lines = "everyday"\nper_prompt = 1',
        "limit = 6\n": "limit = 6\nlines = 2\n",
        "seeds = [0]": "seeds = [0]\nnoise_floor = true",
    }
    learners = LEARNERS[: LEARNERS.index('[[learners]]\nname = "ppo"')]
    said, _ = forecast_benchmark(parse_benchmark(text(learners=learners, **changes)), workers=1, threads=1)
    table = [[c.strip() for c in line.split("|")[1:-1]] for line in said.splitlines() if "| crowd |" in line]
    assert [row[:3] for row in table] == [
        ["measuring", "crowd", str(48 + 48 + 12 + 12 + 12)],
        ["learning", "crowd", str(2 * 6 * 2)],
    ]


def test_a_dry_run_counts_the_other_prompts_of_the_held_out_critic(monkeypatch):
    """They were left out. With two others, 2 x (3 systems + best-of-2) x 6 lines more."""
    monkeypatch.delenv("ANTHROPIC_API_KEY", raising=False)
    monkeypatch.setattr("humor_env.experiments.runs.costs.seconds_to_write", lambda spec, threads: None)

    def questions(others: int) -> int:
        client = 'options = { client = "anthropic:claude-haiku-4-5" }'
        changes = {
            'held_out = { critic = "pocket" }': f'held_out = {{ critic = "scorer", {client}, others = {others} }}',
            "[shared.student]": '[shared.env]\nprompts = "everyday"\n\n[shared.student]',
            "per_prompt = 1": 'lines = "everyday"\nper_prompt = 1',
        }
        learners = LEARNERS[: LEARNERS.index('[[learners]]\nname = "ppo"')]
        said, _ = forecast_benchmark(parse_benchmark(text(learners=learners, **changes)), workers=1, threads=1)
        [row] = [line for line in said.splitlines() if line.startswith("| held out |")]
        return int(row.split("|")[3].replace(",", ""))

    assert questions(2) - questions(0) == 2 * (3 + 1) * 6


def test_a_dry_run_finds_what_would_stop_a_cell():
    judge = 'judge = "multiple-choice"\noptions = { client = "local:/nope" }'
    bench = parse_benchmark(text(**{'judge = "pocket-crowd"': judge}))
    with pytest.raises(HumorEnvError, match="There is no folder '/nope'"):
        forecast_benchmark(bench, workers=1, threads=1)


# Cells


def cell(folder: Path, name: str, *, seed: int = 0, needs: tuple[str, ...] = (), **spec) -> Cell:
    return Cell(name, folder / name, "cell_jobs:sleep_and_answer", spec, seed, needs)


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


# The spec


@pytest.mark.parametrize("name", bundled_benchmarks())
def test_bundled_benchmarks_are_whole(name, tmp_path):
    (tmp_path / "file.csv").touch()
    bench = load_benchmark_spec(name)
    bench = bench.with_files([f"{table.name}={tmp_path / 'file.csv'}" for table in bench.data])
    cells = bench.cells(Path("out"))
    assert len(cells) == len(bench.trained) + len(bench.seeds) * (1 + len(bench.pairs()))
    assert parse_benchmark(bench.to_toml()) == bench


def test_base_and_imitation_are_written_at_the_learners_temperature():
    """They were written at 1.0 beside learners at 0.5: the gap between them was one of temperature too."""
    bench = load_benchmark_spec("everyday-smollm2")
    runs = [bench.imitation_run(0), *(bench.learner_run(x, bench.feedback[0], 0) for x in bench.learners)]
    found = [evaluation_sampling(spec, spec.learner_config(0)) for spec in (bench.parsed(run, "a run") for run in runs)]
    assert {(sampling.temperature, sampling.max_new_tokens) for sampling in found} == {(0.5, 32)}


def test_the_main_benchmark_compares_what_it_says():
    bench = load_benchmark_spec("pocket-learners")
    registered = {x.registered for x in bench.learners}
    # Imitation is the eleventh: the warm start of all of them, with a row of its own.
    assert registered == {
        *("sd", "brio", "dpo", "brio-dpo", "ppo", "grpo", "rloo", "reinforce++", "best-of-n", "expert-iteration")
    }
    assert bench.seeds == [0, 1, 2, 3, 4]
    by_name = {x.name: bench.run_spec(x, bench.feedback[0], 0).learner_config(0) for x in bench.learners}
    assert by_name["best-of-8"].n == 8
    rounds = {name: by_name[name].rounds for name in by_name if name.startswith("brio-") and name != "brio-dpo"}
    assert sorted(rounds.values()) == [1, 2, 10]
    assert by_name["brio-dpo"].brio.pairs_of == "teacher"  # naming another setting of it must not undo this


def test_every_learner_gets_the_same_and_each_step_follows_from_it():
    bench = load_benchmark_spec("pocket-learners")
    for learner in bench.learners:
        config = bench.run_spec(learner, bench.feedback[0], 0).learner_config(0)
        config = getattr(config, "dpo", config)
        if hasattr(config, "pairs"):
            lines = config.rounds * config.prompts_per_round * config.pairs.candidates
        elif hasattr(config, "steps"):
            lines = config.steps * config.batch_size
        else:
            continue
        budget = bench.budget.samples * learner.budget
        assert 0.98 * budget <= lines <= budget, learner.name


def test_a_budget_is_derived_by_hand():
    learners = LEARNERS + '\n[[learners]]\nname = "often"\nlearner = "brio"\nsettings = { rounds = 2 }\nbudget = 0.5\n'
    learners += '\n[[learners]]\nname = "rare"\nlearner = "ppo"\nsettings = { evaluate_every = 5 }\n'
    bench = parse_benchmark(text(learners=learners))
    found = {x.name: bench.settings_of(x) for x in bench.learners}
    assert found["ppo"]["steps"] == 6  # 48 lines in batches of 8
    assert found["ppo"]["evaluate_every"] == 3  # two evaluations
    assert found["rare"]["evaluate_every"] == 5  # as it says itself
    assert found["dpo"]["prompts_per_round"] == 8  # 48 lines, six for each prompt
    assert found["often"]["prompts_per_round"] == 2  # 24 lines in two rounds of six each
    fewer = parse_benchmark(text(learners=learners, **{"judgements = 48": "judgements = 17"}))
    found = {x.name: fewer.settings_of(x) for x in fewer.learners}
    assert found["ppo"]["steps"] == 2
    assert found["dpo"]["prompts_per_round"] == 8
    assert found["often"]["prompts_per_round"] == 2


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({'name = "ppo"': 'name = "ppo"\nsettings = { steps = 5 }'}, "follows from"),
        ({'name = "ppo"': 'name = "imitation"\nlearner = "ppo"'}, "uses itself"),
        ({'name = "ppo"': 'name = "imitation-again"\nlearner = "ppo"'}, "uses itself"),
        ({'name = "ppo"': 'name = "ppo"\nfeedback = ["crowds"]'}, "Did you mean 'crowd'"),
        ({'name = "ppo"': 'name = "dpo"'}, "two learners"),
        ({"samples = 48, judgements = 48,": ""}, "needs samples or judgements"),
        ({"samples = 48, judgements = 48": "samples = 3"}, "too small"),
        ({'judge = "pocket-crowd"\n': ""}, "needs a judge"),
        ({"seeds = [0]": "seeds = [0, 0]"}, "two seeds"),
        ({"epochs = 2": "epoch = 2"}, "epoch"),
        ({"seeds = [0]": "seed = [0]"}, "seed"),
    ],
)
def test_mistakes_are_told_before_anything_is_computed(changes, said):
    with pytest.raises(InvalidOption, match=said):
        parse_benchmark(text(**changes))


@pytest.mark.parametrize(
    ("held_out", "feedback"),
    [
        ('critic = "win-tie", options = { judge = "pocket-crowd", teacher = "x" }', 'judge = "pocket-crowd"'),
        ('critic = "pocket"', 'critic = "pocket"'),
        # By another road, by its import path, in a mixture, and with another seed it is still the same judge.
        ('critic = "pocket"', 'judge = "pocket"'),
        ('critic = "pocket"', 'critic = "humor_env.rewards.pocket:PocketCritic"'),
        ('critic = "pocket"', 'critic = "tournament"\ncritic_options = { judge = "pocket" }'),
        ('critic = "pocket"', 'critic = "mix"\ncritic_options = { critics = [{ critic = "pocket", weight = 1.0 }] }'),
        (
            'critic = "win-tie", options = { judge = "pocket-crowd", judge_options = { seed = 9 } }',
            'judge = "pocket-crowd"',
        ),
        (
            'critic = "scorer", options = { client = "anthropic:a" }',
            'critic = "scorer"\ncritic_options = { client = "anthropic:a" }',
        ),
        # What a critic asks where nothing else is said.
        ('critic = "pocket"', 'critic = "tournament"'),
        ('critic = "pocket"', 'critic = "lift"'),
        ('critic = "pocket"', 'critic = "mix"'),
        ('critic = "tournament"', 'judge = "jury"'),
        ('critic = "scorer"', 'critic = "scorer"\ncritic_options = { client = "anthropic:claude-haiku-4-5" }'),
        # In every place that a judge may have in another one.
        ('critic = "everyday-judge"', 'judge = "cheap-first"\noptions = { cheap = "everyday-judge", paid = "pocket" }'),
        ('critic = "everyday-judge"', 'judge = "cheap-first"\noptions = { cheap = "pocket", paid = "everyday-judge" }'),
        (
            'critic = "fill-in", options = { critic = "everyday" }',
            'critic = "mix"\ncritic_options = { critics = ["novelty", '
            '{ critic = "lift", options = { critic = "everyday" } }] }',
        ),
        # One model and one folder, however they are written.
        (
            'critic = "scorer", options = { client = "anthropic" }',
            'critic = "scorer"\ncritic_options = { client = "anthropic-batch:claude-haiku-4-5" }',
        ),
        (
            'critic = "scorer", options = { client = "openai:m@http://a/v1" }',
            'critic = "scorer"\ncritic_options = { client = "openai:m@http://a/v1/" }',
        ),
        (
            'critic = "reward-model", options = { folder = "runs/critic" }',
            'critic = "reward-model"\ncritic_options = { folder = "./runs/x/../critic/" }',
        ),
    ],
)
def test_who_teaches_is_never_called_held_out(held_out, feedback):
    spec = text().replace('held_out = { critic = "pocket" }', f"held_out = {{ {held_out} }}")
    spec = spec.replace('judge = "pocket-crowd"\ncritic_options = { max_lines = 1 }', feedback)
    with pytest.raises(InvalidOption, match="cannot be called held out"):
        parse_benchmark(spec)


def test_two_models_behind_one_kind_of_critic_are_two_critics():
    from humor_env.experiments.compare.benchmark_spec import FeedbackTable, HeldOutTable, refuse_training_critic

    taught = FeedbackTable(name="a", critic="scorer", critic_options={"client": "anthropic:a"})
    refuse_training_critic(HeldOutTable(critic="scorer", options={"client": "anthropic:b"}), taught)
    refuse_training_critic(HeldOutTable(critic="scorer"), taught)  # the default is a third
    taught = FeedbackTable(name="a", judge="reward-model", options={"folder": "runs/one"})
    refuse_training_critic(HeldOutTable(critic="reward-model", options={"folder": "runs/two"}), taught)
    # A win-tie critic's default judge does not teach where the feedback names another.
    taught = FeedbackTable(name="a", judge="pocket-crowd", critic="win-tie", critic_options={"max_lines": 1})
    refuse_training_critic(HeldOutTable(critic="pocket"), taught)
    taught = FeedbackTable(name="a", critic="tournament", critic_options={"judge": "pocket-crowd"})
    refuse_training_critic(HeldOutTable(critic="pocket"), taught)


def test_a_folder_is_one_by_whatever_way_it_is_reached(tmp_path, monkeypatch):
    from humor_env.experiments.compare.identities import identities_of

    (tmp_path / "critic").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "critic")
    monkeypatch.chdir(tmp_path)
    folders = ["critic", "critic/", "./critic", str(tmp_path / "critic"), "link"]
    assert len({frozenset(identities_of("reward-model", {"folder": folder})) for folder in folders}) == 1
    models = [f"local:{folder}" for folder in folders]
    assert len({frozenset(identities_of("scorer", {"client": model})) for model in models}) == 1


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
