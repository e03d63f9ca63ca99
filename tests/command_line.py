"""The command line for tests: in this process, or in a real one."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from test_run import text, world  # noqa: F401 - fixtures
from typer.testing import CliRunner

from humor_env.experiments.commands.cli import app

COMMAND = [sys.executable, "-m", "humor_env.experiments.commands.cli"]

PROGRESS = re.compile(r"(imitation|ppo) \d+|seed \d+, |step \d+, ")

TESTS = str(Path(__file__).resolve().parent)


def cli(*arguments, code=0, typed=None, **environment):
    """Run in this process. Prints of standard output; on a mistake those of standard error."""
    found = CliRunner().invoke(app, [str(a) for a in arguments], input=typed, env=environment, prog_name="humor-env")
    if found.exception is not None and not isinstance(found.exception, SystemExit):
        raise found.exception
    assert found.exit_code == code, found.output
    assert "Traceback" not in found.output
    return found.stdout if code == 0 else found.stderr


@pytest.fixture
def spec(text, tmp_path, monkeypatch):  # noqa: F811
    """A tiny spec in a folder of its own, which is the current one."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.toml").write_text(text.replace("steps = 4", "steps = 2"))
    return tmp_path / "mine.toml"


def without_card_warning(said):
    """A run first says where it is written, that its critic has no card, and its progress; the rest is returned."""
    first, warning, rest = said.split("\n", 2)
    assert first.startswith("Run '"), "the first line is not a warning"
    assert warning.startswith("warning: The critic ") and " card " in warning
    return "".join(line for line in rest.splitlines(keepends=True) if not PROGRESS.match(line))


def start(*arguments, **more):
    environment = {**os.environ, "PYTHONPATH": TESTS}
    return subprocess.Popen(
        [*COMMAND, *map(str, arguments)], env=environment, stderr=subprocess.PIPE, text=True, **more
    )
