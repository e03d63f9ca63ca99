"""Two commands at work on one file or folder: the second is told so. Real processes, really killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from test_run import text, world  # noqa: F401 - fixtures
from typer.testing import CliRunner

from humor_env.experiments.commands.cli import app
from humor_env.types import Joke, Judgement

TESTS = str(Path(__file__).resolve().parent)
ENVIRONMENT = {**os.environ, "PYTHONPATH": TESTS, "OMP_NUM_THREADS": "1"}


SEEN: list[int] = []


def slow(jokes: list[Joke]) -> list[Judgement]:
    """After its first call it waits until the file named by GO is there."""
    SEEN.append(len(jokes))
    while len(SEEN) > 1 and not Path(os.environ.get("GO", ".")).exists():
        time.sleep(0.02)
    return [Judgement("slow", 0.5) for _ in jokes]


def start(*arguments: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "humor_env.experiments.commands.cli", *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT)


def wait_for(what: object, process: subprocess.Popen[str]) -> None:
    for _ in range(1200):
        if what():  # type: ignore[operator]
            return
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    pytest.fail("it never came so far")


def cli(*arguments: object, code: int = 0) -> str:
    found = CliRunner().invoke(app, [str(a) for a in arguments], prog_name="humor-env")
    if found.exception is not None and not isinstance(found.exception, SystemExit):
        raise found.exception
    assert found.exit_code == code, found.output
    return found.output


def jokes(folder: Path, count: int = 40) -> Path:
    rows = [{"prompt": f"Meeting {n}.", "text": f"Moss {n}."} for n in range(count)]
    (folder / "jokes.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder / "jokes.jsonl"


def test_a_second_judge_of_one_output_is_refused_and_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both replaced the file that the other one was writing to: of 300 rows 64 were left, and both said "300 jokes"."""
    arguments = ("judge", jokes(tmp_path), "--critic", "test_one_writer:slow", "--output", tmp_path / "out.jsonl")
    arguments = (*arguments, "--chunk", 2)
    output, go = tmp_path / "out.jsonl", tmp_path / "go"
    monkeypatch.setitem(ENVIRONMENT, "GO", str(go))
    with start(*arguments) as first:
        wait_for(lambda: output.is_file() and output.stat().st_size > 0, first)
        with start(*arguments) as second:
            _, said = second.communicate(timeout=60)
        assert second.returncode == 2
        assert f"'{output}' is being written by another humor-env" in said and len(said.splitlines()) == 1
        go.touch()
        first.communicate(timeout=60)
        assert first.returncode == 0
    assert [json.loads(row)["line"] for row in output.read_text().splitlines()] == list(range(1, 41))
    assert sorted(os.listdir(tmp_path)) == ["go", "jokes.jsonl", "out.jsonl"]


def test_a_judge_that_was_killed_is_in_nobodys_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    output = tmp_path / "out.jsonl"
    arguments = ("judge", jokes(tmp_path, 12), "--critic", "test_one_writer:slow", "--output", output, "--chunk", 2)
    monkeypatch.setitem(ENVIRONMENT, "GO", str(tmp_path / "never"))
    with start(*arguments) as first:
        wait_for(lambda: output.is_file() and output.stat().st_size > 0, first)
        first.send_signal(signal.SIGKILL)
    assert "12 jokes" in cli(*arguments)
    assert [json.loads(row)["line"] for row in output.read_text().splitlines()] == list(range(1, 13))


@pytest.fixture
def spec(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:  # noqa: F811
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.toml").write_text(text.replace("steps = 4", "steps = 400"))
    return tmp_path / "mine.toml"


def test_two_runs_begun_together_take_two_folders_and_a_resume_waits_its_turn(spec: Path, tmp_path: Path) -> None:
    """Both chose runs/tiny, for run.json comes only once the model is loaded, and their steps stood in one file."""
    with start("train", spec) as first:
        wait_for(lambda: Path("runs/tiny").is_dir(), first)
        with start("train", spec) as second:
            wait_for(lambda: Path("runs/tiny-2/run.json").is_file() and Path("runs/tiny/run.json").is_file(), second)
            said = cli("train", "runs/tiny", "--resume", code=2)
            assert "'runs/tiny' is being written by another humor-env" in said
            assert "already holds a run" in cli("train", spec, "--out", "runs/tiny-2", code=2)
            second.send_signal(signal.SIGKILL)
        first.send_signal(signal.SIGKILL)
    # Whoever was killed holds nothing.
    said = cli("train", "runs/tiny", "--resume", "--set", "learner.steps=0", code=0)
    assert "Written to runs/tiny" in said


@pytest.mark.parametrize("name", ["spec.toml", "results.json", "seed-0/notes.txt"])
def test_a_folder_with_files_of_the_users_own_is_not_written_over(spec: Path, tmp_path: Path, name: str) -> None:
    """`--out .` wrote the resolved spec over a spec.toml with its author's comments, and exited with 0."""
    mine = tmp_path / name
    mine.parent.mkdir(exist_ok=True)
    mine.write_text("# my only copy")
    said = cli("train", spec, "--out", ".", "--set", "learner.steps=1", code=2)
    assert "'.' is not a run's folder and holds" in said and name.split("/")[0] in said
    assert mine.read_text() == "# my only copy"
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted({"mine.toml", name.split("/")[0]})


def test_a_refused_command_leaves_nothing_behind(spec: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The ledger was begun before the key was missed."""
    monkeypatch.delenv("ANTHROPIC_API_KEY", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    source = jokes(tmp_path)
    assert "ANTHROPIC_API_KEY" in cli("judge", source, "--critic", "scorer", "--option", "client=anthropic", code=2)
    scorer = "critic.0={critic = 'scorer', options = {client = 'anthropic'}}"
    assert "ANTHROPIC_API_KEY" in cli("train", spec, "--set", scorer, code=2)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["jokes.jsonl", "mine.toml"]


def test_a_runs_folder_without_resume_is_not_begun_again(spec: Path) -> None:
    """It silently ran everything again, in another folder and with another ledger: real money with a paid critic."""
    cli("train", spec, "--set", "learner.steps=1")
    said = cli("train", "runs/tiny", code=2)
    assert "--resume" in said and "humor-env train runs/tiny/spec.toml" in said
    assert not Path("runs/tiny-2").exists()
    cli("train", "runs/tiny", "--out", "again")  # asked for in so many words
