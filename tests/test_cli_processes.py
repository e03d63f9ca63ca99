"""The command line as real processes: Ctrl-C, full disks, a reader that leaves, the installed script."""

# ruff: noqa: F811

import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from command_line import COMMAND, TESTS, cli, spec, start, without_card_warning  # noqa: F401
from test_run import text, world  # noqa: F401 - fixtures

from humor_env.agents.student import Student


@pytest.mark.slow
def test_ctrl_c_saves_and_says_how_to_go_on(spec, tmp_path):
    long = ("--set", "learner.steps=100000", "--set", "learner.checkpoint_every=100000")
    process = start("train", "mine.toml", *long, stdout=subprocess.DEVNULL)
    metrics = tmp_path / "runs" / "tiny" / "seed-0" / "metrics.jsonl"
    deadline = time.monotonic() + 240
    while not metrics.exists() and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=240)
    assert process.returncode == 130, said
    steps = len(metrics.read_text().splitlines())
    assert (
        without_card_warning(said) == f"Stopped after step {steps}. To continue: humor-env train runs/tiny --resume\n"
    )
    assert [p.name for p in (metrics.parent / "checkpoints").iterdir()] == [f"step-{steps:08d}"]
    assert "Written to runs/tiny" in cli("train", "runs/tiny", "--resume", "--set", f"learner.steps={steps + 1}")
    assert len(metrics.read_text().splitlines()) == steps + 1
    assert Student.load(metrics.parent / "student")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no full device here")
def test_a_full_disk_is_a_sentence():
    with open("/dev/full", "w") as full:
        process = start("critics", stdout=full)
        _, said = process.communicate(timeout=240)
    assert process.returncode == 1, said
    assert said.startswith("Cannot write to the disk: No space left on device. Free some space")
    assert len(said.splitlines()) == 1


@pytest.mark.slow
def test_a_disk_that_fills_up_while_training_is_a_sentence(spec, tmp_path):
    """No file may grow past what the spec takes: the first checkpoint does not fit."""

    def small():
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))

    process = start("train", "mine.toml", stdout=subprocess.DEVNULL, preexec_fn=small)
    _, said = process.communicate(timeout=240)
    assert process.returncode == 1, said
    assert "could not be saved" in said
    assert "Free some space" in said
    assert len(without_card_warning(said).splitlines()) == 1
    assert "Written to runs/tiny" in cli("train", "mine.toml", "--resume")


@pytest.mark.slow
def test_a_disk_that_is_full_when_the_student_is_saved_is_a_sentence(spec):
    """safetensors raises an error of its own for it, which was shown with a traceback."""
    code = """
import resource
from humor_env.agents.student import Student
from humor_env.experiments.commands.cli import app
saves = Student.save_pretrained

def full(self, *arguments, **options):
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
    saves(self, *arguments, **options)

Student.save_pretrained = full
app(["train", "mine.toml"])
"""
    here = {**os.environ, "PYTHONPATH": TESTS}
    done = subprocess.run([sys.executable, "-c", code], env=here, capture_output=True, text=True, timeout=240)
    assert done.returncode == 1, done.stderr
    told = without_card_warning(done.stderr).splitlines()[-1]
    assert told.startswith("Cannot write to the disk: File too large. Free some space"), done.stderr
    assert "Traceback" not in done.stderr
    assert "Written to runs/tiny" in cli("train", "mine.toml", "--resume")


def test_a_reader_that_leaves_is_no_traceback():
    read, write = os.pipe()
    os.close(read)
    process = start("critics", stdout=write)
    os.close(write)
    _, said = process.communicate(timeout=120)
    assert said == ""
    assert process.returncode in (0, 1)


def test_the_console_script_is_installed_under_its_name():
    import configparser

    setup = configparser.ConfigParser()
    setup.read(Path(TESTS).parent / "setup.cfg")
    assert (
        setup["options.entry_points"]["console_scripts"].strip()
        == "humor-env = humor_env.experiments.commands.cli:main"
    )
    from humor_env.experiments.commands.cli import main

    assert callable(main)
