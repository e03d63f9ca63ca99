"""The benchmark `headlines` on a small scale: critics trained on the spot, a tiny student, files of the user's own."""

from __future__ import annotations

import copy
import json
import random
from pathlib import Path
from typing import Any

import pytest
import tiny
from test_reward_model import encoder

from humor_env.errors import InvalidOption
from humor_env.experiments.compare.benchmark import load_benchmark, publish, run_benchmark
from humor_env.experiments.compare.benchmark_costs import forecast_benchmark
from humor_env.experiments.compare.benchmark_spec import BenchmarkSpec, load_benchmark_spec, parse_benchmark
from humor_env.experiments.compare.trained_critics import fill_names, named_in
from humor_env.prompts import load_prompts
from humor_env.registry import critics
from humor_env.rewards.audits.context import measure_context
from humor_env.types import Joke

# Words that the tiny critic knows; a headline also has numbers, which it does not.
WORDS = ["slow", "glaciers", "emoji", "lone", "meeting"]


def headlines(path: Path, seed: int, count: int = 60) -> Path:
    """Humicroedit's format: three edits of each headline, of which those with glaciers are funny."""
    source = random.Random(seed)
    rows = ["id,original,edit,grades,meanGrade"]
    for number in range(count):
        subject = " ".join(
            source.choice(kind) for kind in (["the", "that", "a"], ["meeting", "emoji"], ["was", "overtook"])
        )
        for word in source.sample(WORDS, 3):
            grades = sorted(
                (min(3, 2 * (word == "glaciers") + source.choice([1, 1, 2])) for _ in range(5)), reverse=True
            )
            text = f"{subject} <budget/> number {seed}{number} today"
            rows.append(f"{len(rows)},{text},{word},{''.join(map(str, grades))},{sum(grades) / 5}")
    path.write_text("\n".join(rows) + "\n", encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("headlines")
    headlines(folder / "humicroedit.csv", 1)
    headlines(folder / "funlines.csv", 2)
    encoder(folder / "encoder")
    tiny.student(context=256).save_pretrained(folder / "student")
    return folder


def small(place: Path, *changes: str) -> BenchmarkSpec:
    """The bundled benchmark with a tiny student, which imitates until it writes words, tiny critics and few lines."""
    model = {"model": str(place / "encoder"), "batch_size": 16, "lr": 1e-3, "precision": "float32", "epochs": 1}
    settings = [f"trained.{name}.settings={as_toml(model | more)}" for name, more in SETTINGS.items()]
    learner = {
        "batch_size": 8,
        "micro_batch": 8,
        "siblings": 4,
        "learning_rate": 1e-3,
        "sampling": {"max_new_tokens": 8},
    }
    overrides = [
        "seeds=[0]",
        *settings,
        f"shared.student={as_toml({'model': str(place / 'student')})}",
        f"shared.teacher.imitation={as_toml(IMITATION)}",
        "shared.eval={split='test', limit=6, dev_limit=2}",
        "budget={samples=16, judgements=16, evaluations=1}",
        f"learner={as_toml(learner)}",
        "learners.best-of-8.settings={n=2}",
        f"feedback.sense.critic_options={as_toml(with_small_fit())}",
        "learners.dpo.settings={pairs={candidates=2, length_filter='off', sampling={max_new_tokens=8}}}",
    ]
    return load_benchmark_spec("headlines", [*overrides, *changes])


def with_small_fit() -> dict[str, Any]:
    """The options of `sense`, in which the bundled student says what fits."""
    feedback = {one.name: one for one in load_benchmark_spec("headlines").feedback}
    options = copy.deepcopy(dict(feedback["sense"].critic_options))
    [fit] = [c["options"]["critic_options"] for c in options["critics"] if c.get("options", {}).get("critic") == "fit"]
    fit["model"] = "pocket:causal"
    return options


IMITATION = {"epochs": 60, "patience": 60, "full": True, "learning_rate": 3e-3, "warmup_steps": 0} | dict.fromkeys(
    ("batch_size", "micro_batch"), 16
)
SETTINGS = {"plain": {}, "context": {"other_prompts": 1.0}, "judge": {"other_prompts": 1.0}}


def as_toml(value: object) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}={as_toml(inner)}" for key, inner in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(as_toml, value)) + "]"
    return json.dumps(value)


def files(place: Path) -> list[str]:
    return [f"{name}={place / name}.csv" for name in ("humicroedit", "funlines")]


@pytest.fixture(scope="module")
def done(place: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    out, said = tmp_path_factory.mktemp("runs") / "headlines", []
    bench = run_benchmark(small(place).with_files(files(place)), out, workers=2, say=said.append)
    assert bench.failures == {}
    return out, said


@pytest.mark.slow
def test_one_command_trains_the_critics_then_every_learner_with_each_feedback(done):
    out, said = done
    assert all("trained/" in line for line in said[:2])
    bench = load_benchmark(out)
    rows = {(row["system"], row["feedback"]) for row in bench.rows}
    learners = ("ppo", "grpo", "rloo", "dpo", "expert-iteration", "best-of-8")
    assert {(x, f) for x in (*learners, "base", "teacher", "imitation") for f in ("plain", "remedies", "sense")} == rows
    for row in bench.rows:
        assert 0 <= row["part/form"] <= 1 and 0 < row["different_lines"] <= 1 and "lift" in row
    teacher = next(row for row in bench.rows if row["system"] == "teacher")
    assert teacher["part/form"] == 1.0
    page = (out / "RESULTS.md").read_text(encoding="utf-8")
    assert "| different lines |" in page and "| lift |" in page
    assert "| judge | funlines |" in page and "| context | humicroedit |" in page
    assert set(bench.record["trained"]) == {"plain", "context", "judge"}


@pytest.mark.slow
def test_the_lift_is_the_held_out_critics_own(done, place):
    """Of the lines that the imitation wrote: asked again, by the saved critic."""
    out, _ = done
    folder = out / "cells" / "imitation" / "seed-0" / "seed-0"
    written = [json.loads(line) for line in (folder / "evaluation-sft.jsonl").read_text(encoding="utf-8").splitlines()]
    prompts = {prompt.id: prompt for prompt in load_prompts(f"humicroedit:{place / 'humicroedit.csv'}")}
    judge = critics.make("reward-model", folder=str(out / "cells" / "trained" / "judge" / "critic"))
    critic = critics.make("fill-in", critic=judge)
    context = measure_context(critic, [Joke(prompts[x["prompt_id"]], x["text"]) for x in written], draws=2)
    row = next(row for row in load_benchmark(out).rows if row["system"] == "imitation")
    assert context is not None and row["lift"] == pytest.approx(context.lift, abs=6e-5)


@pytest.mark.slow
def test_the_same_command_again_does_nothing_and_needs_no_files(done):
    out, _ = done
    said = []
    bench = run_benchmark(load_benchmark_spec(out), out, workers=1, say=said.append)
    assert said == [f"{bench.record['cells']} of {bench.record['cells']} cells were done before"]


@pytest.mark.slow
def test_what_is_published_does_not_say_where_the_files_lie(done, place, tmp_path):
    out, _ = done
    publish(load_benchmark(out), tmp_path / "published")
    told = (tmp_path / "published" / "spec.toml").read_text(encoding="utf-8")
    assert "humicroedit.csv" not in told and 'prompts = "humicroedit:{data.humicroedit}"' in told
    with pytest.raises(InvalidOption, match=r"needs files that you download yourself: --data humicroedit=FILE \("):
        load_benchmark_spec(tmp_path / "published").cells(tmp_path)


def test_a_file_that_is_missing_or_not_asked_for_gets_a_sentence(place, tmp_path):
    bench = small(place)
    with pytest.raises(
        InvalidOption, match=r"--data humicroedit=FILE \(task-1_train.csv of Humicroedit.*; --data funlin"
    ):
        bench.cells(tmp_path)
    with pytest.raises(InvalidOption, match=r"no file 'funline'\. Did you mean 'funlines'\?"):
        bench.with_files(["funline=x.csv"])
    with pytest.raises(InvalidOption, match=r"there is no file 'x\.csv'"):
        bench.with_files(["funlines=x.csv"])
    with pytest.raises(InvalidOption, match="--data is NAME=FILE; found 'funlines'"):
        bench.with_files(["funlines"])
    with pytest.raises(InvalidOption, match="It takes none"):
        load_benchmark_spec("pocket-mini").with_files(["funlines=x.csv"])


def test_a_name_that_stands_for_nothing_is_found_before_anything_runs(place):
    with pytest.raises(InvalidOption, match=r"uses '\{trained.jugde\}'.*Did you mean 'trained.judge'\?"):
        small(place, "held_out.options.critic_options.folder='{trained.jugde}'")
    text = load_benchmark_spec("headlines").to_toml().replace('name = "context"', 'name = "plain"')
    with pytest.raises(InvalidOption, match="two trained critics are called 'plain'"):
        parse_benchmark(text)


def test_the_critic_that_teaches_cannot_measure(place):
    with pytest.raises(InvalidOption, match="cannot be called held out"):
        small(place, "held_out.options.critic_options.folder='{trained.plain}'")


def test_a_dry_run_says_what_comes_first(place):
    said, lacking = forecast_benchmark(small(place).with_files(files(place)), workers=2, threads=1)
    assert lacking == []
    assert "first trains its critics (plain, context, judge)" in said and "1 × 19 runs" in said


def test_names_are_filled_in_everywhere_and_nothing_else_is():
    data = {"a": "x:{data.f}", "b": [{"c": "{trained.k}/y"}, 1, True, "{other}", "{data}"], "d": 0.5}
    assert named_in(data) == {"data.f", "trained.k"}
    filled = {"a": "x:F", "b": [{"c": "K/y"}, 1, True, "{other}", "{data}"], "d": 0.5}
    assert fill_names(data, {"data.f": "F", "trained.k": "K"}) == filled
    assert fill_names(data, {"data.f": "F"}, others=True)["b"][0] == {"c": "{trained.k}/y"}
    with pytest.raises(InvalidOption, match=r"'\{trained.k\}' is not a known name"):
        fill_names(data, {"data.f": "F"})
