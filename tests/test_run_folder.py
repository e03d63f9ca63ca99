"""A run's folder: which one it is, what is written there, and when a run may go on in it."""

import functools
import json
from datetime import UTC, datetime
from pathlib import Path

import pytest

import humor_env.agents.ppo  # noqa: F401 - so that its seconds are no test's
from humor_env.errors import CheckpointError, InvalidOption
from humor_env.experiments.runs import run_folder
from humor_env.experiments.runs.run_folder import (
    _changes,
    choose_folder,
    claimed_folder,
    jokes_folder,
    prepare_folder,
    read_json,
    read_results,
    run_of,
    student_folder,
    write_json,
    write_text,
)
from humor_env.experiments.specs.spec import parse_spec

SPEC = """
name = "mine"
seeds = [3, 4]
[[critic]]
critic = "scorer"
options = {client = "local:model"}
[learner]
name = "ppo"
steps = 5
"""


@pytest.fixture(autouse=True)
def somewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(run_folder, "commit", lambda: "abc")


@functools.cache
def spec(*overrides):
    return parse_spec(SPEC, overrides)


def a_run(folder, *names):
    folder.mkdir(parents=True, exist_ok=True)
    for name in names or ("spec.toml", "run.json"):
        (folder / name).write_text("{}")
    return folder


def refusal(act, error=InvalidOption):
    with pytest.raises(error) as caught:
        act()
    return str(caught.value)


# Which folder


def test_a_new_run_gets_the_first_folder_of_its_name_without_a_run():
    assert choose_folder(spec(), "mine.toml", None, False) == Path("runs/mine")
    a_run(Path("runs/mine"), "run.json")
    assert choose_folder(spec(), "mine.toml", None, False) == Path("runs/mine-2")
    assert choose_folder(spec(), "mine.toml", None, False, [Path("runs/mine-2")]) == Path("runs/mine-3")
    a_run(Path("runs/mine-2"), "spec.toml")  # no record: nothing was started there
    assert choose_folder(spec(), "mine.toml", None, False) == Path("runs/mine-2")


def test_a_folder_that_was_asked_for_is_taken_unless_something_would_be_lost():
    out = Path("out")
    assert choose_folder(spec(), "mine.toml", out, False) == out
    a_run(out, "notes.txt")
    assert choose_folder(spec(), "mine.toml", out, False) == out
    a_run(out, "seed-1", "seed-0", "results.json", "spec.toml")
    assert refusal(lambda: choose_folder(spec(), "mine.toml", out, False)) == (
        "'out' is not a run's folder and holds spec.toml, results.json, seed-0, which a run would overwrite. Give "
        "another folder with --out."
    )
    a_run(out, "run.json")
    assert refusal(lambda: choose_folder(spec(), "mine.toml", out, False)) == (
        "'out' already holds a run. Give --resume to continue it, or another --out."
    )


def test_a_runs_folder_is_not_repeated_by_mistake():
    a_run(Path("runs/x"))
    assert refusal(lambda: choose_folder(spec(), "runs/x", None, False)) == (
        "'runs/x' is the folder of a run. To continue it: humor-env train runs/x --resume. To repeat it in another "
        "folder: humor-env train runs/x/spec.toml."
    )
    assert choose_folder(spec(), "runs/x/spec.toml", None, False) == Path("runs/mine")


def test_a_run_is_resumed_where_it_was_asked_for_where_its_spec_lies_or_in_the_latest():
    for name in ("mine", "mine-2", "mine-3", "mine-5", "x", "out"):
        a_run(Path("runs") / name)
    assert choose_folder(spec(), "runs/x", Path("runs/out"), True) == Path("runs/out")
    assert choose_folder(spec(), "runs/x", None, True) == Path("runs/x")
    assert choose_folder(spec(), "runs/x/spec.toml", None, True) == Path("runs/x")
    assert choose_folder(spec(), "runs/x/other.toml", None, True) == Path("runs/mine-3")
    assert choose_folder(spec(), "mine", None, True) == Path("runs/mine-3")


def test_what_cannot_be_resumed_is_told():
    assert refusal(lambda: choose_folder(spec(), "mine", None, True)) == (
        "There is no run to resume in 'runs/mine' (no spec.toml there). Give its folder with --out, or leave out "
        "--resume to start a run."
    )
    a_run(Path("out"), "spec.toml")
    assert refusal(lambda: choose_folder(spec(), "mine", Path("out"), True)) == (
        "There is no run to resume in 'out': it has a spec.toml, but no run.json."
    )
    a_run(Path("other"), "run.json")
    assert "(no spec.toml there)" in refusal(lambda: choose_folder(spec(), "mine", Path("other"), True))


def test_a_claimed_folder_is_anothers_for_nobody_else():
    with claimed_folder(spec(), "mine", None, False) as first:
        assert first == Path("runs/mine") and first.is_dir()
        with claimed_folder(spec(), "mine", None, False) as second:
            assert second == Path("runs/mine-2")
        assert not second.exists(), "nothing was started there"

        def again():
            with claimed_folder(spec(), "mine", first, False):
                pytest.fail("two writers in one folder")

        assert refusal(again) == (
            "'runs/mine' is being written by another humor-env: wait for it, or give another --out."
        )
        a_run(first)
    assert first.is_dir()
    with claimed_folder(spec(), "mine", None, True) as resumed:
        assert resumed == first


def test_a_folder_that_was_there_stays_and_one_that_was_made_for_nothing_goes():
    Path("out").mkdir()
    for out in (Path("out"), Path("new/deep")):
        with claimed_folder(spec(), "mine", out, False) as folder:
            assert folder == out and out.is_dir()
    assert Path("out").is_dir()
    assert not Path("new").exists()


# What is written there


def read(folder):
    return json.loads((folder / "run.json").read_text())


def test_a_run_leaves_its_spec_and_a_record(tmp_path):
    folder = tmp_path / "new" / "run"
    prepare_folder(spec(), folder, resume=False, machine={"device": "cpu"}, inputs={"prompts": "1"}, say=pytest.fail)
    assert parse_spec((folder / "spec.toml").read_text()) == spec()
    record = read(folder)
    now = record["started"]
    assert abs((datetime.now(UTC) - datetime.fromisoformat(now)).total_seconds()) < 3600
    assert "." not in now
    assert record["seeds"] == [3, 4] and record["device"] == "cpu" and record["commit"] == "abc"
    assert record["repeat"] == f"humor-env train {folder}/spec.toml"
    assert record["versions"]["humor-env"] == run_folder.humor_env.__version__
    assert record["parts"] == [
        {"from": now, "versions": record["versions"], "commit": "abc", "inputs": {"prompts": "1"}}
    ]
    assert "resumed" not in record and record["python"] and record["platform"]


def test_a_resumed_run_adds_a_part_and_says_what_changed(tmp_path, monkeypatch):
    said = []
    prepare_folder(spec(), tmp_path, resume=False, inputs={"prompts": "1", "teacher's lines": "1"})
    before = read(tmp_path)
    monkeypatch.setattr(run_folder, "commit", lambda: "def")
    prepare_folder(spec(), tmp_path, resume=True, inputs={"prompts": "2", "teacher's lines": "1"}, say=said.append)
    record = read(tmp_path)
    assert said == [
        "warning: the prompts changed since the run started: from now on it learns from different ones.",
        "warning: the run continues with other versions: the commit was abc, is def.",
    ]
    assert record["started"] == before["started"]
    assert len(record["resumed"]) == 1 and len(record["parts"]) == 2
    assert record["parts"][0] == before["parts"][0] and record["parts"][1]["commit"] == record["commit"] == "def"
    said.clear()
    prepare_folder(spec(), tmp_path, resume=True, inputs={"prompts": "2", "teacher's lines": "1"}, say=said.append)
    assert said == []
    assert len(read(tmp_path)["resumed"]) == 2 and len(read(tmp_path)["parts"]) == 3


def test_changes_are_told_of_the_last_part_and_of_what_both_know():
    part = {"inputs": {"a": "1", "b": "2"}, "versions": {"torch": "2", "numpy": "3", "new": "1"}, "commit": None}
    assert _changes({}, part) == []
    assert _changes({"parts": [{"inputs": {"a": "0"}}, {"inputs": {"a": "1"}}]}, part) == []
    record = {"parts": [{"inputs": {"a": "1"}}, {"inputs": {"a": "0", "b": "0"}}]}
    record |= {"versions": {"torch": "1", "numpy": "3", "old": "1"}}
    assert _changes(record, part) == [
        "the a changed since the run started: from now on it learns from different ones.",
        "the b changed since the run started: from now on it learns from different ones.",
        "the run continues with other versions: torch was 1, is 2.",
    ]
    assert _changes({"commit": "x", "versions": {"torch": "1"}}, part) == [
        "the run continues with other versions: torch was 1, is 2; the commit was x, is None."
    ]


@pytest.mark.parametrize(
    "override",
    [
        "seeds=[3, 4, 5]",
        "learner.steps=9",
        "budget.max_calls=7",
        "monitor.every=3",
        'tracking.with=["trackio"]',
        "critic.0.options.options={concurrency=3}",
    ],
)
def test_some_settings_may_change_on_the_way(tmp_path, override):
    prepare_folder(spec(), tmp_path, resume=False)
    prepare_folder(spec(override), tmp_path, resume=True)
    assert parse_spec((tmp_path / "spec.toml").read_text()) == spec(override)


def test_others_may_not_and_are_told_five_at_most(tmp_path):
    prepare_folder(spec(), tmp_path, resume=False)
    before = read(tmp_path)
    changed = ("learner.siblings=2", "learner.clip=0.3", "env.split=dev", "name=other", "eval.limit=3", "eval.lines=2")
    said = refusal(lambda: prepare_folder(spec(*changed), tmp_path, resume=True), CheckpointError)
    assert said.startswith(f"The run in '{tmp_path}' was started with other settings (name was 'mine', now 'other'; ")
    assert said.count(" was ") == 6 and said.count("; ") == 5  # five settings, and the sentence itself
    assert "learner.siblings was 1, now 2" in said or "eval.limit was None, now 3" in said
    assert f"Resume it with its own ({tmp_path}/spec.toml; budget, monitor, seeds, learner.steps, tracking, " in said
    assert read(tmp_path) == before


# What is read from it


def test_a_file_is_written_whole(tmp_path):
    write_text(tmp_path / "a.txt", "é")
    assert (tmp_path / "a.txt").read_bytes() == "é".encode()
    write_json(tmp_path / "b.json", {"a": [1, None]})
    assert (tmp_path / "b.json").read_text() == '{\n "a": [\n  1,\n  null\n ]\n}\n'
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.txt", "b.json"]
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "b.json", {"a": float("nan")})


@pytest.mark.parametrize(
    ("text", "why"), [("[1]", "it holds a list"), ("{", "Expecting"), ("[" * 9**6, "maximum recursion")]
)
def test_a_record_that_is_none_is_told(tmp_path, text, why):
    path = tmp_path / "run.json"
    path.write_text(text)
    said = refusal(lambda: read_json(path), CheckpointError)
    assert said.startswith(f"'{path}' cannot be read ({why}")
    assert said.endswith(" Start the run again with another --out.")


def test_results_of_a_seed_have_stages_seconds_and_steps(tmp_path):
    path = tmp_path / "results.json"
    whole = {"stages": {"base": {"score": 0.5}}, "seconds": {}, "steps": None}
    path.write_text(json.dumps(whole))
    assert read_results(path) == whole
    for missing in whole:
        path.write_text(json.dumps({k: v for k, v in whole.items() if k != missing}))
        said = refusal(lambda: read_results(path), CheckpointError)
        assert said.startswith(f"'{path}' is damaged (it lacks stages, seconds or steps). Remove it and resume: ")
    for stages in ([], {"base": {}, "ppo": 3}):
        path.write_text(json.dumps(whole | {"stages": stages}))
        assert "is damaged" in refusal(lambda: read_results(path), CheckpointError)
    path.write_text("3")
    assert "is damaged (" in refusal(lambda: read_results(path), CheckpointError)


def test_the_run_of_a_seed_and_of_a_student():
    a_run(Path("r"))
    student = Path("r/seed-0/student")
    (student / "policy").mkdir(parents=True)
    for path in (Path("r"), Path("r/seed-0"), student):
        assert run_of(path) == Path("r")
    assert run_of(student / "policy") is None
    for lacking in ("spec.toml", "run.json"):
        a_run(Path("r"))
        (Path("r") / lacking).unlink()
        assert run_of(Path("r")) is None


def test_the_student_of_a_run_is_the_first_seeds(capsys):
    assert student_folder(Path("r")) == Path("r")
    for seed in ("seed-1", "seed-0"):
        a_run(Path("r") / seed / "student", "student.json")
        last = Path("r") / seed
    assert last == Path("r/seed-0")
    assert student_folder(Path("r")) == Path("r/seed-0/student")
    assert capsys.readouterr().err == "r has 2 students; this is r/seed-0/student.\n"
    for path in (Path("r/seed-1"), Path("r/seed-1/student")):
        assert student_folder(path) == Path("r/seed-1/student")
    assert capsys.readouterr().err == ""


def test_one_seed_says_nothing(capsys):
    a_run(Path("r/seed-7/student"), "student.json")
    assert student_folder(Path("r")) == Path("r/seed-7/student")
    assert capsys.readouterr().err == ""


def test_the_lines_of_a_run_are_its_only_seeds():
    assert jokes_folder(Path("r")) == Path("r")
    a_run(Path("r/seed-1"), "jokes.jsonl")
    assert jokes_folder(Path("r")) == Path("r/seed-1")
    assert jokes_folder(Path("r/seed-1")) == Path("r/seed-1")
    a_run(Path("r/seed-0"), "jokes.jsonl")
    assert refusal(lambda: jokes_folder(Path("r"))) == "'r' has 2 seeds; give one of them, such as r/seed-0."


def test_versions_name_what_is_missing(monkeypatch):
    monkeypatch.setattr(run_folder, "PACKAGES", ("numpy", "no-such-package"))
    found = run_folder.versions()
    assert list(found) == ["humor-env", "numpy", "no-such-package"]
    assert found["no-such-package"] == "not installed" and found["numpy"][0].isdigit()
