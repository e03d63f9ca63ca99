"""Two thousand jokes through a server that fails 30 % of calls in twelve ways: nothing lost, nothing judged twice."""

from __future__ import annotations

import json
import random
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
from fake_messages_server import content_number, running

from humor_env.errors import BudgetExceeded
from humor_env.rewards.scorer import MOST, WEIGHTS, ScorerCritic
from humor_env.types import Joke, Prompt

QUICK = {"timeout": 3.0, "deadline": 120.0, "first_wait": 0.02, "longest_wait": 0.2, "concurrency": 64}


@pytest.fixture(autouse=True)
def key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANTHROPIC_API_KEY", "sk-ant-secret-0123456789")


def some_jokes(count: int) -> list[Joke]:
    return [Joke(Prompt(f"p{n}", f"Meeting {n} was slow."), f"In meeting {n} moss overtook us.") for n in range(count)]


def true_score(joke: Joke) -> float:
    """What the server's judge says of a joke, whenever it says anything valid."""
    data = {"task": joke.prompt.task, "input": joke.prompt.text, "line": joke.text}
    text = json.dumps(data, sort_keys=True)
    return sum(w * (content_number(text, part, MOST + 1) / MOST) for part, w in WEIGHTS.items())


def check(jokes: list[Joke], critic: ScorerCritic, fail: float) -> Counter[str]:
    errors: Counter[str] = Counter()
    judgements = critic(jokes)
    assert len(judgements) == len(jokes)
    for joke, judgement in zip(jokes, judgements, strict=True):
        if judgement.error is not None:
            errors[judgement.error.split(":")[0]] += 1
        else:
            assert judgement.score == pytest.approx(true_score(joke), abs=1e-12)
    assert set(errors) <= {"refusal", "invalid", "cut"}
    assert sum(errors.values()) < fail * len(jokes) / 4
    return errors


@pytest.mark.parametrize("count", [200, pytest.param(2000, marks=pytest.mark.slow)])
def test_a_storm_of_failures(tmp_path: Path, count: int) -> None:
    jokes = some_jokes(count)
    with running("--fail", "0.3", "--seed", "7", "--slow", "0.05") as server:
        critic = ScorerCritic(
            f"anthropic:claude-haiku-4-5@{server.url}", ledger=tmp_path / "l.sqlite", options=QUICK, budget={}
        )
        errors = check(jokes, critic, 0.3)
        stats = server.stats()
        # Every failure is counted under its kind, and every call is in the books.
        assert {k: critic.ledgered.counts[k] for k in errors} == dict(errors)
        assert critic.ledgered.usage.calls == critic.ledgered.budget.account.calls == stats["calls"]
        assert len(stats["by_item"]) == count
        # One verdict for each, and who was answered validly was not asked again. (On a machine so busy that an answer
        # comes after the timeout, that call was in vain: it may be one in a hundred.)
        assert len(critic.ledgered.ledger) == count
        assert sum(times - 1 for times in stats["answered"].values()) <= count / 100
        assert errors["refusal"] == stats["by_kind"]["refusal"]
        # And a second time nobody is asked at all, with the same outcome.
        assert check(jokes, critic, 0.3) == errors
        assert server.stats()["calls"] == stats["calls"]
        critic.close()


def test_a_call_limit_in_the_storm_is_exact_across_restarts(tmp_path: Path) -> None:
    jokes = some_jokes(120)
    with running("--fail", "0.3", "--seed", "3", "--faults", "429,529,500,reset,cut-json,refusal") as server:
        limits = (50, 100, 1000)
        for limit in limits:
            critic = ScorerCritic(
                f"anthropic:claude-haiku-4-5@{server.url}",
                ledger=tmp_path / "l.sqlite",
                options=QUICK,
                budget={"max_calls": limit, "scope": "run"},
            )
            if limit != limits[-1]:
                with pytest.raises(BudgetExceeded, match=f"{limit} calls"):
                    critic(jokes)
                assert server.stats()["calls"] == limit
            else:
                check(jokes, critic, 0.6)
            critic.close()
        assert max(server.stats()["answered"].values()) == 1


_PROGRAM = """
import sys
sys.path.insert(0, {tests!r})
from test_llm_storm import QUICK, some_jokes
from humor_env.rewards.scorer import ScorerCritic
critic = ScorerCritic(sys.argv[1], ledger=sys.argv[2], options=QUICK | {{"concurrency": 8}},
                      budget={{"max_calls": 100000, "scope": "run"}})
print("ready", flush=True)
critic(some_jokes(int(sys.argv[3])))
print("done", flush=True)
"""


@pytest.mark.slow
def test_killed_at_random_points_it_pays_again_only_for_calls_in_flight(tmp_path: Path) -> None:
    count, concurrency = 600, 8
    ledger = tmp_path / "l.sqlite"
    program = _PROGRAM.format(tests=str(Path(__file__).parent))
    chance = random.Random(5)
    kills = 0
    with running("--latency", "0.03") as server:
        for attempt in range(30):
            command = [
                sys.executable,
                "-c",
                program,
                f"anthropic:claude-haiku-4-5@{server.url}",
                str(ledger),
                str(count),
            ]
            with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
                assert process.stdout is not None
                assert process.stdout.readline() == "ready\n"
                if attempt < 6:
                    time.sleep(chance.uniform(0.05, 0.4))
                    process.send_signal(signal.SIGKILL)
                if process.stdout.readline() == "done\n":
                    break
                kills += 1
        assert kills >= 4
        stats = server.stats()
        rows = sqlite3.connect(ledger).execute("SELECT count(*), count(DISTINCT key), count(error) FROM replies")
        assert rows.fetchone() == (count, count, 0)
        # Each kill can lose at most the calls that were in the air.
        paid_again = stats["calls"] - count
        assert 0 <= paid_again <= kills * concurrency
        # The account, kept in the ledger, never shows less than what the server saw.
        booked = sqlite3.connect(ledger).execute("SELECT calls FROM accounts").fetchone()[0]
        assert stats["calls"] <= booked <= stats["calls"] + kills * concurrency
        critic = ScorerCritic(f"anthropic:claude-haiku-4-5@{server.url}", ledger=ledger)
        assert all(
            j.score == pytest.approx(true_score(joke))
            for joke, j in zip(some_jokes(count), critic(some_jokes(count)), strict=True)
        )
        assert server.stats()["calls"] == stats["calls"]
