"""What was booked or paid is never forgotten: begun ledgers, accounts that several share, tickets that come back."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest

from humor_env.errors import BudgetExceeded
from humor_env.experiments.options import ledger_if_used
from humor_env.llm import Budget, Ledger, Reply, Request
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
