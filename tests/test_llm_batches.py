"""Offline batches: results in any order, half the price, found again after a kill, asked anew where none came back."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from fake_messages_server import Running, running

from humor_env.errors import BudgetExceeded, CredentialError, InvalidOption, JudgingFailed
from humor_env.llm import Budget, Ledger, Reply, Request, make_client
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


def test_errors_of_the_service(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANTHROPIC_API_KEY", "sk-ant-secret-0123456789")
    client = make_client("anthropic-batch:m@http://127.0.0.1:9", poll=0.01)
    with pytest.raises(JudgingFailed, match="could not be reached"):
        client([Request("Rate.", {"line": "x"})])
    with pytest.raises(InvalidOption, match="largest"):
        make_client("anthropic-batch:m", largest=0)
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
