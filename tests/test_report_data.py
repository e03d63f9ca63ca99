"""What is read of a run's folder, file by file: what is skipped, noted, converted, put in order, or refused."""

import json
from dataclasses import fields

import pytest

from humor_env.errors import CheckpointError, InvalidOption
from humor_env.experiments.reports.report_data import Judged, RunData, SeedData, load_run


def write(folder, **files):
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        text = content if isinstance(content, str) else "".join(json.dumps(row) + "\n" for row in content)
        path = folder / (name.replace("__", "/").replace("_o_", ".").replace("_", "-") + ".jsonl")
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return folder


def row(text, score=0.5, **more):
    return {"prompt": "The soup was cold.", "text": text, "score": score} | more


def test_a_judged_line_keeps_all_that_was_written_of_it(tmp_path):
    full = row("So cold.", 0.25, prompt_id=7, critic="judge", parts={"form": 1}, reason="good", step=3)
    full |= {"stop_reason": "length"}
    failed = row("So wet.", None, error="refusal: no", parts=None, step=None)
    [first, second] = load_run(write(tmp_path / "log", jokes=[full, failed], metrics=[{"step": 1}])).seeds[0].training
    assert first == Judged("7", "The soup was cold.", "So cold.", "judge", 0.25, {"form": 1.0}, "good", 3, "length")
    assert second == Judged(
        *("The soup was cold.", "The soup was cold.", "So wet.", "", None, {}, "refusal: no", 0, None, "refusal: no"),
    )
    assert {type(first.step), type(first.parts["form"]), type(first.score)} == {int, float}


def test_the_rows_of_imitation_are_apart_from_those_of_learning(tmp_path):
    folder = write(
        tmp_path / "log",
        metrics=[{"step": 1, "sft/loss": 2}, {"step": 1, "reward/mean": 0.5}],
        imitation__metrics=[{"step": 9, "sft/dev_loss": 1}],
        timings=[{"step": 1, "seconds/step": 4}, {"step": 1, "seconds/spent": 4}],
        drift=[{"step": 2, "marks": ["x"]}],
    )
    [seed] = load_run(folder).seeds
    assert seed.metrics == [{"step": 1.0, "reward/mean": 0.5}]
    assert seed.imitation == [{"step": 1.0, "sft/loss": 2.0}, {"step": 9.0, "sft/dev_loss": 1.0}]
    assert seed.timings == [{"step": 1.0, "seconds/step": 4.0}]
    assert seed.drift == [{"step": 2, "marks": ["x"]}]


def test_stages_are_in_the_order_of_learning_and_empty_ones_left_out(tmp_path):
    names = ("teacher", "ppo", "dpo", "imitation", "base")
    folder = write(tmp_path / "log", **{f"evaluation_{name}": [row(name)] for name in names}, evaluation_none=[])
    numbers = {name: {"score": 0.5} for name in ("teacher", "ppo", "base")} | {"odd": 3}
    results = {"stages": numbers, "seconds": {"ppo": 3, "note": "x"}, "stopped": 1, "why": None}
    (folder / "results.json").write_text(json.dumps(results))
    [seed] = load_run(folder).seeds
    assert list(seed.stages) == ["base", "imitation", "dpo", "ppo", "teacher"]
    assert (list(seed.numbers), seed.seconds, seed.stopped, seed.why) == (
        ["base", "ppo", "teacher"],
        {"ppo": 3.0},
        True,
        "",
    )
    assert seed.trained == "dpo"
    without = SeedData("x", folder, (), (), (), {"base": [], "teacher": []}, (), {"imitation": {}, "brio": {}}, {})
    assert without.trained == "brio"


def test_second_opinions_belong_to_one_line_of_one_step(tmp_path):
    lines = [row("one", prompt_id="p", step=1), row("one", prompt_id="p", step=2), row("two", prompt_id="p", step=1)]
    again = [
        {"prompt_id": "p", "text": "one", "step": 1, "critic": "rules", "judgement": {"score": 0.25}},
        {"prompt_id": "p", "text": "two", "step": 1, "judgement": {"score": 1}},
        {"prompt_id": "p", "text": "one", "step": 2, "critic": "rules", "judgement": {"score": None}},
        {"prompt_id": "q", "text": "one", "step": 2, "critic": "rules", "judgement": None},
    ]
    folder = write(tmp_path / "log", jokes=lines, jokes_o_later=again, metrics=[{"step": 1}])
    training = load_run(folder).seeds[0].training
    assert [line.others for line in training] == [{"rules": 0.25}, {}, {"jokes.later": 1.0}]
    first = Judged("p", lines[0]["prompt"], "one", "", 0.5, {}, "", 1, others={"rules": 0.25})
    assert training[0] == first and [f.name for f in fields(first)][-1] == "others"


def test_empty_lines_are_nothing_and_a_torn_end_is_noted_with_its_folder(tmp_path):
    folder = write(tmp_path / "log", metrics='\n{"step": 1, "x": 1}\n  \n{"step": 2, "x": 2}\n{"st', jokes="\n\n[1")
    run = load_run(folder)
    assert [r["step"] for r in run.seeds[0].metrics] == [1.0, 2.0]
    assert run.notes == [
        "The last line of metrics.jsonl (log) is incomplete and is left out.",
        "The last line of jokes.jsonl (log) is incomplete and is left out.",
    ]
    write(folder, metrics='{"step": 1}\nno\n')
    with pytest.raises(CheckpointError, match=r"^Line 2 of '.*metrics.jsonl' is damaged"):
        load_run(folder)


def test_numbers_are_finite_and_no_truth_values(tmp_path):
    text = '{"step": 1, "a": NaN, "b": -Infinity, "c": true, "d": "x", "e": null, "f": 0}\n'
    assert load_run(write(tmp_path / "log", metrics=text)).seeds[0].metrics == [{"step": 1.0, "f": 0.0}]


def test_seeds_are_in_the_order_of_their_numbers_and_empty_ones_left_out(tmp_path):
    for name in ("seed-10", "seed-9", "seed-x", "seed-0"):
        write(tmp_path / "some" / name, metrics=[{"step": 1}] if name != "seed-0" else [])
    write(tmp_path / "some" / "seed-1" / "imitation", metrics=[{"step": 1, "sft/loss": 1}])
    (tmp_path / "some" / "seed-2").write_text("a file")
    run = load_run(tmp_path / "some")
    assert [seed.name for seed in run.seeds] == ["seed-1", "seed-9", "seed-10", "seed-x"]
    assert (run.name, run.folder, run.spec, run.record, run.spec_text) == ("some", tmp_path / "some", {}, {}, "")


def test_a_seeds_run_is_the_folder_around_it(tmp_path):
    write(tmp_path / "some" / "seed-3", metrics=[{"step": 1}])
    assert load_run(tmp_path / "some" / "seed-3").name == "seed-3"  # no spec: it is nobody's
    (tmp_path / "some" / "spec.toml").write_text('[learner]\nname = "grpo"\n')
    (tmp_path / "some" / "run.json").write_text('{"commit": "abc"}')
    run = load_run(tmp_path / "some" / "seed-3")
    assert (run.name, run.learner, run.record) == ("some/seed-3", "grpo", {"commit": "abc"})
    assert run.spec_text == '[learner]\nname = "grpo"\n'
    assert load_run(tmp_path / "some").name == "some"
    (tmp_path / "some" / "run.json").write_text("[1]")
    assert load_run(tmp_path / "some").record == {}


def test_a_run_in_the_current_folder_has_its_name(tmp_path, monkeypatch):
    monkeypatch.chdir(write(tmp_path / "here", metrics=[{"step": 1}]))
    from pathlib import Path

    assert load_run(Path(".")).name == "here"


@pytest.mark.parametrize(
    ("bad", "said"),
    [({"text": "x", "score": 1}, "KeyError"), (row("x", "high"), "ValueError"), (row("x", parts=[1]), "AttributeError"),
     (row("x", [1]), "TypeError")],
)  # fmt: skip
def test_a_record_that_is_no_line_is_named(tmp_path, bad, said):
    folder = write(tmp_path / "log", jokes=[row("fine"), bad])
    with pytest.raises(CheckpointError, match=rf"^Record 2 of '.*jokes.jsonl' is not a judged line \({said}"):
        load_run(folder)


def test_files_that_are_no_text_are_named(tmp_path):
    folder = write(tmp_path / "log", metrics=[{"step": 1}])
    (folder / "spec.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(CheckpointError, match=r"spec.toml' is not UTF-8 text"):
        load_run(folder)
    with pytest.raises(InvalidOption, match=r"^'.*metrics.jsonl' is a file\. Give the folder"):
        load_run(folder / "metrics.jsonl")


def test_the_learner_is_the_specs_or_the_one_that_was_measured(tmp_path):
    seed = SeedData("x", tmp_path, (), (), (), {"base": [], "brio": []}, (), {}, {})
    assert RunData("x", tmp_path, {"learner": {"name": "ppo"}}, {}, [seed], ()).learner == "ppo"
    assert RunData("x", tmp_path, {"learner": {}}, {}, [seed], ()).learner == "brio"
