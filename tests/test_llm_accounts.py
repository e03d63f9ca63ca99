"""What was booked or paid is never forgotten: begun ledgers, accounts that several share, tickets that come back."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from fake_messages_server import Running, running
from typer.testing import CliRunner

from humor_env.errors import BudgetExceeded, InvalidOption
from humor_env.experiments.commands import critics as critics_commands
from humor_env.experiments.commands.cli import app
from humor_env.experiments.options import OVER_BUDGET, ledger_if_used
from humor_env.llm import Budget, Ledger, Reply, Request
from humor_env.llm.budget import Account, LedgerBusy
from humor_env.types import Usage


def nothing(ledger: Ledger) -> None:
    pass


def a_call_that_was_not_made(ledger: Ledger) -> None:
    budget = Budget(ledger=ledger, scope="run")
    ticket = budget.reserve(10, 0.1)
    assert ticket is not None
    budget.release(ticket)


def a_call_in_the_air(ledger: Ledger) -> None:
    Budget(ledger=ledger, scope="run").reserve(10, 0.1)


def a_batch(ledger: Ledger) -> None:
    ledger.record_batch("msgbatch_1", ["k1", "k2"])


def a_reply(ledger: Ledger) -> None:
    ledger.put("k1", "p", "m", Request("s", {}), Reply("x"))


@pytest.mark.parametrize(
    ("leaves", "kept"),
    [(nothing, False), (a_call_that_was_not_made, False), (a_call_in_the_air, True), (a_batch, True), (a_reply, True)],
)
def test_ctrl_c_leaves_a_ledger_in_which_anything_was_booked(
    tmp_path: Path, leaves: Callable[[Ledger], None], kept: bool
) -> None:
    """Batches that were paid for, and the account with them, were deleted because no reply was there yet."""
    path = tmp_path / "l.sqlite"

    def stopped() -> None:
        with ledger_if_used(path), Ledger(path) as ledger:
            leaves(ledger)
            assert ledger.is_blank() is not kept
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stopped()
    assert [p.name for p in tmp_path.iterdir()] == (["l.sqlite"] if kept else [])


def test_what_stopped_a_run_is_said_where_its_ledger_cannot_be_looked_into(tmp_path: Path) -> None:
    """The ledger's complaint took the place of the Ctrl-C, or of the error, that had stopped the command."""
    path = tmp_path / "l.sqlite"

    def stopped() -> None:
        with ledger_if_used(path):
            path.write_text("no ledger at all" * 100)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stopped()
    assert path.exists()


def test_a_limit_waits_for_calls_of_others_on_the_same_account(tmp_path: Path) -> None:
    """A critic and a judge of one run: the second was stopped while the first one's open call ended far cheaper."""
    path = tmp_path / "l.sqlite"
    critic, judge = (Budget(max_cost=1.0, ledger=Ledger(path), scope="run") for _ in range(2))
    elsewhere = Budget(max_cost=1.0, ledger=Ledger(path), scope="other")
    ticket = critic.reserve(10, 0.6)
    assert ticket is not None
    assert judge.reserve(10, 0.6) is None, "it may fit once the other's call is settled"
    assert elsewhere.reserve(10, 0.6) is not None
    critic.settle(ticket, Usage(1, 1, 1, 0, 0.01))
    assert judge.reserve(10, 0.6) is not None
    with pytest.raises(BudgetExceeded, match="max_cost"):
        Budget(max_cost=0.5, ledger=Ledger(tmp_path / "m.sqlite"), scope="run").reserve(10, 0.6)


def test_calls_of_others_are_not_waited_for_without_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A batch may take a day, and a client that asks another one from within would wait for itself."""
    ledger = Ledger(tmp_path / "l.sqlite")
    first, second = (Budget(max_tokens=100, ledger=ledger, scope="run") for _ in range(2))
    monkeypatch.setattr("humor_env.llm.budget.OTHERS_PATIENCE", 0.2)
    assert first.reserve(60, None) is not None
    begin = time.monotonic()
    with pytest.raises(BudgetExceeded, match="60 of at most 100 tokens"):
        list(second.portions([(60, None)]))
    assert 0.15 < time.monotonic() - begin < 5.0
    del first
    with pytest.raises(BudgetExceeded):
        Budget(max_tokens=100, ledger=ledger, scope="run").reserve(60, None)


def test_what_stops_half_way_gives_back_what_was_booked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A price that is unknown, or a ledger that is locked, left the calls before it booked for ever."""
    budget = Budget(max_cost=1.0)
    with pytest.raises(InvalidOption, match="price is unknown"):
        list(budget.portions([(10, 0.1), (10, 0.1), (10, None)]))
    assert budget.account == Account(0, 0, pytest.approx(0.0, abs=1e-12))  # type: ignore[arg-type]

    path = tmp_path / "l.sqlite"
    locked = Budget(ledger=Ledger(path), scope="run")
    monkeypatch.setattr(locked, "reserve", partial(locked.reserve, patience=0.0))
    lock = sqlite3.connect(path, isolation_level=None)

    def worst() -> Iterator[tuple[int, None]]:
        yield from [(10, None)] * 2
        lock.execute("BEGIN IMMEDIATE")
        yield (10, None)

    with pytest.raises(LedgerBusy):
        list(locked.portions(worst()))  # type: ignore[arg-type]
    lock.close()
    assert locked.account == Account()
    locked.write_down()
    assert Budget(ledger=Ledger(path), scope="run").account == Account()


def answer(text: str, error: Any = None) -> Reply:
    return Reply(text, error=error, usage=Usage(1, 10, 10, 0, 0.25))


def test_two_replies_to_one_question_wait_for_a_locked_ledger(tmp_path: Path) -> None:
    """Two clients of one ledger asked the same: the second reply took the place of the first, that was in use."""
    path, asked = tmp_path / "l.sqlite", Request("s", {"line": "x"})
    with Ledger(path) as ledger:
        lock = sqlite3.connect(path, isolation_level=None)
        lock.execute("BEGIN IMMEDIATE")
        assert ledger.put("k", "p", "m", asked, answer("first")).text == "first"
        assert ledger.put("k", "p", "m", asked, answer("second")).text == "first"
        assert ledger.put("f", "p", "m", asked, answer("", "overloaded")).error == "overloaded"
        assert ledger.put("f", "p", "m", asked, answer("better")).text == "better"
        assert ledger.put("f", "p", "m", asked, answer("late")).text == "better"
        assert ledger.put("o", "p", "m", asked, answer("old")).text == "old"
        assert ledger.put("o", "p", "m", asked, answer("new"), over=True).text == "new"
        told = {key: reply.text for key, reply in ledger.find(["k", "f", "o"]).items()}
        assert told == {"k": "first", "f": "better", "o": "new"}
        assert len(ledger) == 3
        lock.execute("ROLLBACK")
        lock.close()
        ledger.write_down()
        assert {key: reply.text for key, reply in ledger.find(["k", "f", "o"]).items()} == told
        assert ledger.find(["f"])["f"].usage.cost == 0.5
        assert ledger.find(["o"])["o"].usage.cost == 0.5
    with Ledger(path) as again:
        assert {key: reply.text for key, reply in again.find(["k", "f", "o"]).items()} == told


def test_each_audit_has_its_own_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second audit of a critic in one folder, on another set, began with what the first had spent."""
    monkeypatch.chdir(tmp_path)
    for name in ("one", "two"):
        rows = [f"Moss {name} {n}.,Glaciers {name} {n}.,a" for n in range(12)]
        (tmp_path / f"{name}.csv").write_text("\n".join(["a,b,label", *rows]) + "\n")

    def audit(server: Running, name: str, model: str = "m", calls: int = 24) -> int:
        client = f"client=openai:{model}@{server.url}/v1"
        asked = ["audit", "--critic", "multiple-choice", "--option", client, "--data", "pairs", "--file", f"{name}.csv"]
        done = CliRunner().invoke(app, [*asked, "--surprisal", "none", "--max-calls", str(calls)])
        return done.exit_code

    with running() as server:
        assert audit(server, "one", calls=20) == OVER_BUDGET
        assert audit(server, "one", calls=20) == OVER_BUDGET, "the same audit continues with what it has spent"
        assert server.stats()["calls"] == 20
        assert [audit(server, "one"), audit(server, "two"), audit(server, "two", model="n")] == [0, 0, 0]
        assert server.stats()["calls"] == 72


def test_a_card_and_probes_have_their_own_limits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scopes = set()
    monkeypatch.setattr(critics_commands, "fill", lambda *_, scope, **__: scopes.add(scope) or {})
    for command in (
        ["card", "rules"],
        ["probes", "--critic", "rules"],
        ["probes", "--critic", "rules", "--prompts", "everyday"],
        ["audit", "--critic", "rules", "--data", "everyday-grades", "--limit", "9", "--surprisal", "none"],
    ):
        assert CliRunner().invoke(app, command).exit_code == 0
    assert scopes == {"card", "probes pocket", "probes everyday", "audit everyday-grades"}
