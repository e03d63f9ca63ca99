"""Learners, critics and their training on a second device that this machine only pretends to have.

The cases are in other_device_cases.py. They run in a process of their own: autograd counts the devices once, at the
first backward of a process, and another test may have made it before the device is there.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

CASES = Path(__file__).with_name("other_device_cases.py")


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_everything_that_learns_also_learns_on_another_device():
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_XDIST")}
    command = [sys.executable, "-m", "pytest", "-p", "no:xdist", "-rs", "--timeout", "600", str(CASES)]
    done = subprocess.run(
        command, capture_output=True, text=True, env=environment, cwd=CASES.parent.parent, check=False
    )
    if " skipped" in done.stdout and " passed" not in done.stdout:
        pytest.skip(done.stdout.strip().splitlines()[-1])
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
    assert " passed" in done.stdout.splitlines()[-1] or " passed" in done.stdout, done.stdout[-2000:]
