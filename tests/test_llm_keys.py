"""Keys are never written: not to a log, a ledger, an output, a report or a traceback. The whole of it is searched."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from fake_messages_server import running

KEY = "sk-ant-api03-never-to-be-seen-0123456789"
_PROGRAM = """
import logging, pickle, sys, traceback
logging.basicConfig(level=logging.DEBUG, filename=sys.argv[3])
from humor_env.llm import LedgeredClient, Request, make_client
from humor_env.rewards.scorer import SCHEMA, ScorerCritic
from humor_env.types import Joke, Prompt
spec, folder = sys.argv[1], sys.argv[2]
jokes = [Joke(Prompt("p", "Meeting."), f"Moss {n}.") for n in range(30)]
options = {"first_wait": 0.01, "timeout": 1.0, "deadline": 3.0}
critic = ScorerCritic(spec, ledger=folder + "/ledger.sqlite", options=options)
try:
    for judgement in critic(jokes):
        print(judgement)
except Exception:
    traceback.print_exc()
print(critic.ledgered.client, vars(critic.ledgered), critic.ledgered.client.budget.spent)
"""


@pytest.mark.parametrize("service", ["anthropic", "openai"])
@pytest.mark.parametrize("faults", ["429,500,reset,cut-body,413,refusal", "401", "400"])
def test_the_key_is_in_nothing_that_is_written(tmp_path: Path, service: str, faults: str) -> None:
    """The server repeats the authorization header in every error message, as careless ones do."""
    with running("--fail", "0.5" if "," in faults else "1", "--faults", faults) as server:
        spec = f"{service}:claude-haiku-4-5@{server.url}" + ("/v1" if service == "openai" else "")
        log = tmp_path / "debug.log"
        done = subprocess.run(
            [sys.executable, "-c", _PROGRAM, spec, str(tmp_path), str(log)],
            capture_output=True,
            text=True,
            check=True,
            env={
                "ANTHROPIC_API_KEY": KEY,
                "OPENAI_API_KEY": KEY,
                "HUMOR_ENV_ALLOW_KEY_HOSTS": "127.0.0.1",
                "ANTHROPIC_LOG": "debug",
                "OPENAI_LOG": "debug",
                "PATH": "/usr/bin:/bin",
                "HOME": str(tmp_path),
            },
        )
        assert server.stats()["calls"] > 0
    written = {path.name: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    written |= {"stdout": done.stdout.encode(), "stderr": done.stderr.encode()}
    assert {"debug.log", "ledger.sqlite"} <= set(written)
    assert written["debug.log"]
    for name, content in written.items():
        for secret in (KEY, KEY.removeprefix("sk-ant-api03-"), json.dumps(KEY)):
            assert secret.encode() not in content, f"the key is in {name}"
