"""Offline batches: results in any order, half the price, found again after a kill, asked anew where none came back."""

from __future__ import annotations

import contextlib
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from fake_messages_server import Running, running

from humor_env.errors import BudgetExceeded, CredentialError, InvalidOption, JudgingFailed
from humor_env.llm import Budget, Ledger, LedgeredClient, Reply, Request, make_client
from humor_env.llm.budget import Account, LedgerBusy
from humor_env.llm.clients.batches import AnthropicBatchClient
from humor_env.rewards.scorer import SCHEMA, ScorerCritic
from humor_env.types import Joke, Prompt

JOKES = [Joke(Prompt(f"p{n}", f"Meeting {n}."), f"Moss {n}.") for n in range(7)]
QUICK = {"poll": 0.01, "largest": 3}
MODEL = "claude-haiku-4-5"


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Running]:
    monkeypatch.setenv("ANTHROPIC_API_KEY", "sk-ant-secret-0123456789")
    with running() as server:
        yield server


def test_a_batch_gives_what_single_calls_give_for_half_the_price(server: Running) -> None:
    single = ScorerCritic(f"anthropic:{MODEL}@{server.url}")(JOKES)
    budget = Budget(max_cost=1.0)
    critic = ScorerCritic(f"anthropic-batch:{MODEL}@{server.url}", options=QUICK, budget=budget)
    batch = critic(JOKES)
    assert [(j.score, j.parts) for j in batch] == [(j.score, j.parts) for j in single]
    assert [j.usage.cost for j in batch] == pytest.approx([(j.usage.cost or 0) / 2 for j in single])
    assert budget.account.cost == pytest.approx(sum(j.usage.cost or 0 for j in batch))
    assert budget.account.calls == 7


def test_a_process_that_dies_while_it_waits_finds_its_batches_again(server: Running, tmp_path: Path) -> None:
    path = tmp_path / "l.sqlite"

    class Dying(AnthropicBatchClient):
        async def _collect(self, *_: object) -> None:
            raise KeyboardInterrupt

    requests = [Request("Rate.", {"line": j.text}, SCHEMA) for j in JOKES]
    dying = Dying(MODEL, base_url=server.url, ledger=Ledger(path), **QUICK)
    with pytest.raises(KeyboardInterrupt):
        dying(requests)
    assert server.stats()["calls"] == 7
    again = AnthropicBatchClient(MODEL, base_url=server.url, ledger=Ledger(path), **QUICK)
    extra = Request("Rate.", {"line": "new"}, SCHEMA)
    seen: dict[int, Reply] = {}
    replies = again([*requests, extra, requests[0]], lambda index, reply: seen.update({index: reply}))
    assert server.stats()["calls"] == 8
    assert [r.error for r in replies] == [None] * 9
    assert replies[8].data == replies[0].data
    assert (replies[0].replayed, replies[8].replayed) == (False, True)
    assert [seen[n] for n in range(9)] == replies


def test_what_expired_is_a_failure_and_is_sent_anew_next_time(server: Running) -> None:
    ledger = Ledger()
    client = AnthropicBatchClient(MODEL, base_url=server.url, ledger=ledger, **QUICK)
    requests = [Request("Rate.", {"line": text}, SCHEMA) for text in ("fine", "expire me")]
    good, bad = client(requests)
    assert good.error is None
    assert (bad.error, bad.data) == ("unreachable", None)
    client(requests)
    assert server.stats()["calls"] == 3


def test_a_batch_that_the_service_forgot_is_said_and_forgotten(server: Running) -> None:
    ledger = Ledger()
    client = AnthropicBatchClient(MODEL, base_url=server.url, ledger=ledger, **QUICK)
    request = Request("Rate.", {"line": "x"}, SCHEMA)
    [key] = _keys(client, [request])
    ledger.record_batch("msgbatch_999", [key])
    with pytest.raises(JudgingFailed, match="404"):
        client([request])
    assert client([request])[0].error is None


def _keys(client: AnthropicBatchClient, requests: list[Request]) -> list[str]:
    from humor_env.llm.ledger_rows import request_key

    return [request_key("batch", client.name, request) for request in requests]


def test_a_batch_is_booked_as_a_whole_or_not_at_all(server: Running) -> None:
    requests = [Request("Rate.", {"line": j.text}, SCHEMA) for j in JOKES]
    budget = Budget(max_calls=6)
    client = make_client(f"anthropic-batch:{MODEL}@{server.url}", budget=budget, poll=0.01, largest=10)
    with pytest.raises(BudgetExceeded):
        client(requests)
    assert server.stats()["calls"] == 0
    assert budget.account.calls == 0
    assert client(requests[:6])[5].error is None


@pytest.mark.parametrize("status", ["400", "401", "404", "413", "429", "529"])
def test_a_batch_that_was_refused_takes_nothing_from_the_limits(server: Running, tmp_path: Path, status: str) -> None:
    """One 429 and the whole budget was booked for ever, in the ledger too."""
    requests = [Request("Rate.", {"line": j.text}, SCHEMA) for j in JOKES]
    budget = Budget(max_calls=7, ledger=Ledger(tmp_path / "l.sqlite"), scope="run")
    client = make_client(f"anthropic-batch:{MODEL}@{server.url}", budget=budget, poll=0.01, largest=10)
    server.script(status)
    with pytest.raises((JudgingFailed, CredentialError), match=status):
        client(requests)
    assert budget.account == Account(0, 0, pytest.approx(0.0, abs=1e-12))  # type: ignore[arg-type]
    assert [reply.error for reply in client(requests)] == [None] * 7
    assert budget.account.calls == 7


@pytest.mark.parametrize("status", ["500", "502"])
def test_a_batch_that_may_have_been_taken_stays_booked(server: Running, status: str) -> None:
    requests = [Request("Rate.", {"line": j.text}, SCHEMA) for j in JOKES]
    budget = Budget(max_calls=7)
    client = make_client(f"anthropic-batch:{MODEL}@{server.url}", budget=budget, poll=0.01, largest=10)
    server.script(status)
    with pytest.raises(JudgingFailed, match=status):
        client(requests)
    assert budget.account.calls == 7


def test_a_batch_does_not_wait_long_for_a_locked_ledger(server: Running, tmp_path: Path) -> None:
    """It would hold up the calls of all other clients, which share its event loop."""
    import anthropic  # noqa: F401 - which takes seconds itself

    budget = Budget(max_calls=9, ledger=Ledger(tmp_path / "l.sqlite"), scope="run")
    client = make_client(f"anthropic-batch:{MODEL}@{server.url}", budget=budget, poll=0.01)
    lock = sqlite3.connect(tmp_path / "l.sqlite", isolation_level=None)
    lock.execute("BEGIN IMMEDIATE")
    begin = time.monotonic()
    with pytest.raises(LedgerBusy):
        client([Request("Rate.", {"line": "x"}, SCHEMA)])
    assert time.monotonic() - begin < 30  # a minute if it waited as others do
    lock.close()
    assert server.stats()["calls"] == 0


def test_what_was_taken_before_a_refusal_is_settled_by_the_next_call(server: Running) -> None:
    """The first of two batches was booked at its worst case for ever."""
    requests = [Request("Rate.", {"line": j.text}, SCHEMA) for j in JOKES[:6]]
    budget = Budget()
    client = make_client(f"anthropic-batch:{MODEL}@{server.url}", budget=budget, **QUICK)
    server.script("taken", "429")
    with pytest.raises(JudgingFailed, match="429"):
        client(requests)
    assert budget.account.calls == 3
    replies = client(requests)
    assert budget.account.calls == 6
    assert budget.account.tokens == sum(r.usage.input_tokens + r.usage.output_tokens for r in replies)
    assert server.stats()["calls"] == 6


def test_a_server_that_is_not_there_takes_nothing_from_the_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANTHROPIC_API_KEY", "sk-ant-secret-0123456789")
    budget = Budget(max_calls=1)
    client = make_client("anthropic-batch:m@http://127.0.0.1:9", budget=budget, poll=0.01)
    with pytest.raises(JudgingFailed, match="could not be reached"):
        client([Request("Rate.", {"line": "x"})])
    assert budget.account == Account()


@pytest.mark.parametrize("version", ["this", "before"])
def test_a_reply_of_the_wrong_form_is_asked_anew_where_that_is_wanted(
    server: Running, tmp_path: Path, version: str
) -> None:
    """`ask_again = ["invalid"]` read the same batch for ever, and booked what it had cost each time."""
    requests = [Request("Rate.", {"line": text}, SCHEMA) for text in ("a", "b")]
    spec, path = f"anthropic-batch:{MODEL}@{server.url}", tmp_path / "l.sqlite"
    server.script("no-json")
    with Ledger(path) as ledger:
        client = LedgeredClient("p", spec, ledger=ledger, options=QUICK)
        assert [reply.error for reply in client.ask(requests)] == ["invalid"] * 2
        cost = client.usage.cost
        if version == "before":  # which remembered the batch, and did not note how far it was
            ledger.record_batch("msgbatch_1", _keys(client.client, requests))  # type: ignore[arg-type]
            with contextlib.closing(sqlite3.connect(path)) as db, db:
                db.execute("DELETE FROM batch_items WHERE key LIKE 'state of %'")
    assert server.stats()["calls"] == 2
    with Ledger(path) as ledger:
        again = LedgeredClient("p", spec, ledger=ledger, options={**QUICK, "ask_again": ["invalid"]})
        assert [reply.error for reply in again.ask(requests)] == [None] * 2
        assert server.stats()["calls"] == 4
        assert again.usage.cost == pytest.approx(cost)
        assert ledger.spent().cost == pytest.approx(2 * cost)  # type: ignore[operator]
        assert ledger.spent().calls == 4


def test_a_batch_on_its_way_is_not_sent_twice_by_asking_anew(server: Running, tmp_path: Path) -> None:
    request = Request("Rate.", {"line": "a"}, SCHEMA)
    spec, ledger = f"anthropic-batch:{MODEL}@{server.url}", Ledger(tmp_path / "l.sqlite")
    server.script("no-json")
    assert LedgeredClient("p", spec, ledger=ledger, options=QUICK).ask([request])[0].error == "invalid"

    class Dying(AnthropicBatchClient):
        async def _collect(self, *_: object) -> None:
            raise KeyboardInterrupt

    dying = Dying(MODEL, base_url=server.url, ledger=ledger, **QUICK)
    with pytest.raises(KeyboardInterrupt):
        dying([request])  # sent, and killed while it waits
    again = LedgeredClient("p", spec, ledger=ledger, options={**QUICK, "ask_again": "invalid"})
    assert again.ask([request])[0].error is None
    assert server.stats()["calls"] == 2
    assert again.usage.calls == 1


def test_a_reply_is_billed_once_however_often_its_batch_is_read(server: Running) -> None:
    """A second critic that asks the same finds the first one's batch: it had cost nothing, and was billed."""
    request, ledger = Request("Rate.", {"line": "a"}, SCHEMA), Ledger()
    spec = f"anthropic-batch:{MODEL}@{server.url}"
    first = LedgeredClient("p", spec, ledger=ledger, options=QUICK)
    [reply] = first.ask([request])
    second = LedgeredClient("q", spec, ledger=ledger, options=QUICK)
    [same] = second.ask([request])
    assert same.data == reply.data
    assert server.stats()["calls"] == 1
    assert (first.usage.calls, second.usage.calls) == (1, 0)
    assert ledger.spent() == reply.usage


def test_errors_of_the_service(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANTHROPIC_API_KEY", "sk-ant-secret-0123456789")
    client = make_client("anthropic-batch:m@http://127.0.0.1:9", poll=0.01)
    with pytest.raises(JudgingFailed, match="could not be reached"):
        client([Request("Rate.", {"line": "x"})])
    with pytest.raises(InvalidOption, match="largest"):
        make_client("anthropic-batch:m", largest=0)
    for bad in ({"largest": "3"}, {"largest": 2.5}, {"poll": "30"}, {"poll": float("nan")}):
        [[name, value]] = bad.items()
        with pytest.raises(InvalidOption, match=f"{name} must be a .*, found {value!r}"):
            make_client("anthropic-batch:m", **bad)
    monkeypatch.delenv("ANTHROPIC_API_KEY")
    monkeypatch.setenv("HOME", "/nonexistent")
    with pytest.raises(CredentialError):
        make_client("anthropic-batch:m")


def test_closing_a_client_closes_the_ledger_that_it_opened_and_no_other(server: Running, tmp_path: Path) -> None:
    own = Ledger(tmp_path / "own.sqlite")
    AnthropicBatchClient(MODEL, base_url=server.url, ledger=own, **QUICK).close()
    made = AnthropicBatchClient(MODEL, base_url=server.url, ledger=tmp_path / "made.sqlite", **QUICK)
    made.close()
    assert (own._closed, made.memory._closed) == (False, True)
    own.close()
