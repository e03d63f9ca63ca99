"""What was booked or paid is never forgotten: begun ledgers, accounts that several share, tickets that come back."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from humor_env.experiments.options import ledger_if_used
from humor_env.llm import Budget, Ledger, Reply, Request


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
