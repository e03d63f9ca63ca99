"""`humor-env evaluate`: whose prompts, critic and sampling count, where the run and the command both speak."""

import json

import pytest

import humor_env.agents.ppo  # noqa: F401 - so that its seconds are no test's
from humor_env.errors import CheckpointError, HumorEnvError, InvalidOption
from humor_env.experiments.runs import measure_student as module
from humor_env.experiments.runs.evaluate import judged
from humor_env.experiments.runs.measure_student import ADAPTERS, measure_student
from humor_env.experiments.specs.spec import parse_spec
from humor_env.prompts import load_prompts
from humor_env.types import Joke

SPEC = """
[[critic]]
critic = "rules"
[eval]
split = "dev"
limit = 3
lines = 2
[learner]
name = "ppo"
[learner.sampling]
max_new_tokens = 7
"""


@pytest.fixture
def asked(monkeypatch):
    """What would be measured: a student is neither loaded nor asked."""
    told = {}

    def evaluate(student, prompts, critic, **options):
        told.update(options, student=student, prompts=prompts)
        jokes = [Joke(p, f"{p.text} {n}", "x") for p in prompts for n in range(options["lines"])]
        return judged(jokes, critic, name=options["name"])

    monkeypatch.setattr(module, "load_student", lambda settings, seed: (settings, seed))
    monkeypatch.setattr(module, "evaluate", evaluate)
    return told


@pytest.fixture
def run(tmp_path):
    folder = tmp_path / "run"
    for seed in (4, 12):
        (folder / f"seed-{seed}" / "student").mkdir(parents=True)
        (folder / f"seed-{seed}" / "student" / "student.json").write_text("{}")
    (folder / "spec.toml").write_text(parse_spec(SPEC).to_toml())
    (folder / "run.json").write_text('{"precision": "bfloat16"}')
    return folder


def test_a_plain_model_is_measured_in_the_pocket_world(asked):
    found = measure_student("owner/name", limit=12)
    prompts = load_prompts("pocket").split("test")[:12]
    assert asked["prompts"] == prompts
    settings, seed = asked["student"]
    assert (settings.model, settings.dtype, seed) == ("owner/name", "auto", 0)
    assert (asked["adapter"], asked["name"], asked["lines"], asked["seed"]) == (ADAPTERS["policy"], "policy", 1, 0)
    assert asked["sampling"] == module.Sampling()
    assert (found["count"], found["critic"], found["prompts"], found["split"]) == (12, "pocket", "pocket", "test")


def test_a_runs_student_is_measured_as_its_run_measures(asked, run):
    found = measure_student(str(run / "seed-12"))
    assert asked["prompts"] == load_prompts("pocket").split("dev")[:3]
    settings, seed = asked["student"]
    assert (settings.model, settings.dtype, seed) == (str(run / "seed-12" / "student"), "bfloat16", 12)
    assert (asked["lines"], asked["seed"], asked["sampling"].max_new_tokens) == (2, 12, 7)
    assert (found["count"], found["critic"], found["split"]) == (6, "rules", "dev")
    assert found["low"] is None, "too few prompts for an interval"


def test_what_the_command_says_counts_before_the_run(asked, run):
    found = measure_student(
        str(run / "seed-4"),
        **{"critic": "pocket", "split": "train", "limit": 2, "adapter": "base", "max_new_tokens": 5},
        **{"temperature": 0.0, "seed": 3, "lines": 1},
    )
    assert asked["prompts"] == load_prompts("pocket").split("train")[:2]
    assert (asked["adapter"], asked["name"], asked["seed"], asked["student"][1], asked["lines"]) == (
        None,
        "base",
        3,
        3,
        1,
    )
    assert asked["sampling"] == module.Sampling(max_new_tokens=5, temperature=0.0)
    assert (found["critic"], found["split"], found["count"]) == ("pocket", "train", 2)


def test_with_other_prompts_the_runs_split_limit_and_lines_do_not_count(asked, run):
    found = measure_student(str(run / "seed-4"), prompts="everyday")
    assert asked["prompts"] == load_prompts("everyday").split("test")
    assert (asked["lines"], found["prompts"], found["split"]) == (1, "everyday", "test")
    assert found["critic"] == "rules" and asked["sampling"].max_new_tokens == 7


def test_each_line_is_written_to_a_file(asked, run, tmp_path):
    out = tmp_path / "new" / "lines.jsonl"
    measure_student(str(run / "seed-4"), out=out)
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    prompts = load_prompts("pocket").split("dev")[:3]
    assert [(row["step"], row["prompt_id"], row["text"][-1]) for row in rows] == [
        (0, p.id, n) for p in prompts for n in "01"
    ]


def test_what_cannot_be_measured_is_told(asked, run):
    with pytest.raises(HumorEnvError, match="Did you mean 'policy'"):
        measure_student("x", adapter="polcy")
    with pytest.raises(InvalidOption) as caught:
        measure_student("x", options={"a": 1, "b": 2})
    assert str(caught.value) == "--option needs --critic: it sets an option of that critic (a, b)."
    (run / "seed-4" / "student" / "student.json").unlink()
    with pytest.raises(CheckpointError) as caught:
        measure_student(str(run / "seed-4"))
    assert str(caught.value) == (
        f"The run in '{run}' has saved no student yet: it was stopped. To finish it: humor-env train {run} --resume"
    )
    assert asked == {}
