"""What the command line sets before torch is imported: afterwards nobody reads it."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

WATCHED = """
import os, sys

class AtTorch:
    def find_spec(self, name, path=None, target=None):
        if name == "torch":
            print("torch sees", os.environ.get("GOMP_SPINCOUNT"))
            raise SystemExit

sys.meta_path.insert(0, AtTorch())
from humor_env.experiments.commands.cli import app
assert "torch" not in sys.modules
app(["doctor"])
"""


@pytest.mark.parametrize(
    ("given", "seen"), [({}, "300"), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "ACTIVE"}, "None")]
)
def test_waiting_threads_leave_their_core_to_others(given: dict[str, str], seen: str) -> None:
    """They spun: beside one other program a step took ten to a hundred times as long. The user's own choice is kept."""
    plain = {k: v for k, v in os.environ.items() if k not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}
    done = subprocess.run([sys.executable, "-c", WATCHED], env={**plain, **given}, capture_output=True, text=True)
    assert f"torch sees {seen}\n" in done.stdout, done.stderr
