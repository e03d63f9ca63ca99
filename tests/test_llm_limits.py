"""One contract for every client: limits hold whatever a reply says, and what is no message is never a verdict."""

from __future__ import annotations

import gzip
import json
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
from fake_messages_server import running
from odd_server import JSON, Answer, answering, message
from test_llm_local import save_tokenizer

from humor_env.errors import BudgetExceeded, CredentialError, HumorEnvError, InvalidOption, JudgingFailed
from humor_env.llm import Budget, Client, Ledger, LedgeredClient, Reply, Request, make_client
from humor_env.llm.budget import most_tokens
from humor_env.llm.clients import address, background
from humor_env.llm.clients.address import allow_key_hosts, label, may_have_key
from humor_env.llm.clients.sdk_client import SdkClient
from humor_env.llm.ledgered_client import Progress
from humor_env.llm.protocol import OnReply
from humor_env.rewards.scorer import symbol_schema
from humor_env.types import Usage

ANSWER = symbol_schema(("1", "2"))
QUICK = {"first_wait": 0.01, "longest_wait": 0.02, "timeout": 2.0, "deadline": 4.0}
PRICES = {"prices": {"m": {"input": 1.0, "output": 5.0}}}
OWN = f"{__name__}:OwnClient"
SERVICES = ("anthropic", "anthropic-batch", "openai", "local", OWN)


class OwnClient:
    """A client as a user writes it: it knows nothing of limits."""

    name, probabilities = "own", False

    def __init__(self, answer: str = "1") -> None:
        self.answer, self.asked, self.open = answer, 0, True

    def __call__(self, requests: Sequence[Request], on_reply: OnReply | None = None) -> list[Reply]:
        replies = []
        for index, _ in enumerate(requests):
            self.asked += 1
            replies.append(Reply(self.answer, {"answer": self.answer}, usage=Usage(1, 50, 10, 0, 0.25)))
            if on_reply is not None:
                on_reply(index, replies[-1])
        return replies

    def close(self) -> None:
        self.open = False


class FrugalClient(OwnClient):
    """Another, which keeps its limits itself."""

    def __init__(self, budget: Budget | None = None) -> None:
        super().__init__()
        self.budget = budget


def test_a_client_of_ones_own_is_limited_from_outside_or_keeps_the_limits_itself() -> None:
    """`--max-calls 2` with `package.module:name` made all calls: the limits were dropped on the way."""
    budget = Budget(max_calls=3)
    client = make_client(OWN, budget=budget, answer="2")
    assert (client.name, client.probabilities) == ("own", False)
    assert [reply.text for reply in client(asked(2))] == ["2", "2"]
    got: dict[int, Reply] = {}
    with pytest.raises(BudgetExceeded, match="max_calls"):
        client(asked(2), got.__setitem__)
    assert list(got) == [0]
    assert (client.asked, budget.spent) == (3, Usage(3, 150, 30, 0, 0.75))  # type: ignore[attr-defined]
    client.close()
    assert not client.open  # type: ignore[attr-defined]
    frugal = make_client(f"{__name__}:FrugalClient", budget=budget)
    assert isinstance(frugal, FrugalClient) and frugal.budget is budget
    # What it costs at most nobody has said.
    with pytest.raises(InvalidOption, match="price is unknown"):
        make_client(OWN, budget=Budget(max_cost=1.0))(asked(1))


def test_a_client_of_ones_own_that_fails_leaves_its_worst_case_counted() -> None:
    budget = Budget(max_calls=3)
    client = make_client(OWN, budget=budget)
    with pytest.raises(RuntimeError, match="stop"):
        client(asked(2), lambda index, reply: (_ for _ in ()).throw(RuntimeError("stop")))
    assert budget.account.calls == 2


class SilentClient(OwnClient):
    """It does not say what it used; a question with "fail" in it fails."""

    def __call__(self, requests: Sequence[Request], on_reply: OnReply | None = None) -> list[Reply]:
        self.asked += len(requests)
        return [Reply(error="overloaded") if "fail" in request.user_text else Reply("1") for request in requests]


def test_a_client_of_ones_own_that_reports_no_usage_is_held_to_its_limit_in_tokens() -> None:
    """Under max_tokens it made as many calls as it liked: none of them was counted with a token."""
    most = most_tokens(asked(1)[0]) + 16
    budget = Budget(max_tokens=3 * most)
    client = make_client(f"{__name__}:SilentClient", budget=budget)
    client([Request("Which?", {"line": "fail"}, ANSWER, 16)] * 10)
    assert budget.account.tokens == 0, "no answer, no tokens"
    with pytest.raises(BudgetExceeded, match="max_tokens"):
        client(asked(10))
    assert client.asked == 10 + 3  # type: ignore[attr-defined]
    assert budget.account.tokens == 3 * most
    assert budget.spent.calls == 13


@pytest.fixture(scope="module")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> str:
    from transformers import GPT2Config, GPT2LMHeadModel

    folder = tmp_path_factory.mktemp("tiny")
    size = save_tokenizer(folder, [])
    config = GPT2Config(vocab_size=size, n_positions=1024, n_embd=8, n_layer=1, n_head=1, eos_token_id=size - 1,
                        bos_token_id=size - 1)  # fmt: skip
    GPT2LMHeadModel(config).save_pretrained(folder)
    return str(folder)


@pytest.fixture(autouse=True)
def no_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("ANTHROPIC_API_KEY", "OPENAI_API_KEY", "HUMOR_ENV_ALLOW_KEY_HOSTS"):
        monkeypatch.delenv(name, raising=False)


def asked(count: int) -> list[Request]:
    return [Request("Which?", {"line": f"joke {n}"}, ANSWER, 16, ("1", "2")) for n in range(count)]


@contextmanager
def a_client(service: str, model: str, budget: Budget | None = None, **options: Any) -> Iterator[Client]:
    with ExitStack() as stack:
        if service == "local":
            yield make_client(f"local:{model}", budget=budget, batch_size=3)
            return
        if service == OWN:
            yield make_client(service, budget=budget)
            return
        server = stack.enter_context(running("--judge", "always-1"))
        path = "/v1" if service == "openai" else ""
        quick = {"poll": 0.01, "largest": 2} if service == "anthropic-batch" else QUICK
        yield make_client(f"{service}:m@{server.url}{path}", budget=budget, **PRICES, **quick, **options)


@pytest.mark.parametrize("service", SERVICES)
def test_a_limit_in_calls_holds_for_every_client(tiny_model: str, service: str) -> None:
    """`local:` made 16 calls where `--max-calls 2` was given."""
    budget, got = Budget(max_calls=2), []
    with a_client(service, tiny_model, budget) as client, pytest.raises(BudgetExceeded, match="max_calls"):
        client(asked(5), lambda index, reply: got.append(reply))
    assert budget.account.calls == 2 or service == "anthropic-batch"  # whose batches go whole or not at all
    assert budget.account.calls <= 2
    assert sum(reply.usage.calls for reply in got) <= 2


@pytest.mark.parametrize("service", SERVICES)
def test_a_limit_in_tokens_holds_for_every_client(tiny_model: str, service: str) -> None:
    budget = Budget(max_tokens=2000)  # a call may take about 1,100, and takes about 60 or 120
    with a_client(service, tiny_model, budget) as client, pytest.raises(BudgetExceeded, match=r"max_tokens|whole"):
        client(asked(40))
    assert budget.account.tokens <= 2000


@pytest.mark.parametrize("service", SERVICES)
def test_a_limit_holds_over_restarts_of_every_client(tiny_model: str, service: str, tmp_path: Path) -> None:
    made = 0
    for _ in range(2):
        ledger = Ledger(tmp_path / "l.sqlite")
        budget = Budget(max_calls=4, ledger=ledger, scope="run")
        with a_client(service, tiny_model, budget) as client:
            try:
                made += sum(r.usage.calls for r in client(asked(3)))
            except BudgetExceeded:
                made = ledger.account("run").calls
        ledger.close()
    assert made <= 4
    with Ledger(tmp_path / "l.sqlite") as ledger:
        assert ledger.account("run").calls in (3, 4)  # a batch goes whole or not at all


@pytest.mark.parametrize(
    "usage",
    [
        None,
        {},
        {"input_tokens": -(10**9), "output_tokens": -(10**9), "prompt_tokens": -(10**9), "completion_tokens": -(10**9)},
        {"input_tokens": 2**64 - 1, "output_tokens": 10**400, "prompt_tokens": 2**64 - 1, "completion_tokens": 10**400},
        {"input_tokens": True, "output_tokens": True, "prompt_tokens": True, "completion_tokens": True},
        {"input_tokens": "1", "output_tokens": 1.5, "prompt_tokens": "1", "completion_tokens": 1.5},
        {"input_tokens": 1, "output_tokens": 0, "prompt_tokens": 1, "completion_tokens": 0,
         "cache_creation": {"ephemeral_1h_input_tokens": -(10**9)}},
        "much",
    ],
)  # fmt: skip
@pytest.mark.parametrize("service", ["anthropic", "openai"])
def test_a_limit_in_money_holds_whatever_the_usage_says(service: str, usage: Any) -> None:
    """A negative count in a reply turned the account to -$374,999, and all 500 calls were made."""
    budget = Budget(max_cost=0.05)
    with answering(lambda body: message(body, usage)) as server:
        path = "/v1" if service == "openai" else ""
        client = make_client(
            f"{service}:m@{server.url}{path}", budget=budget, **PRICES, **(QUICK | {"timeout": 30.0, "deadline": 60.0})
        )
        most = client.worst_case(asked(1)[0])[1]  # type: ignore[attr-defined]
        with pytest.raises(BudgetExceeded, match="max_cost"):
            client(asked(800))
    assert 0.0 < budget.account.cost <= 0.05
    if not isinstance(usage, dict) or usage.get("output_tokens") != 0:
        assert server.calls == int(0.05 / most)


@pytest.mark.parametrize("service", ["anthropic", "openai"])
def test_concurrency_is_the_clients_over_all_threads(service: str) -> None:
    """8 threads with a concurrency of 4 had 32 calls in the air."""

    def slow(body: dict[str, Any]) -> Answer:
        time.sleep(0.03)
        return message(body)

    with answering(slow) as server:
        path = "/v1" if service == "openai" else ""
        client = make_client(f"{service}:m@{server.url}{path}", concurrency=4)
        threads = [threading.Thread(target=client, args=(asked(6),)) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert server.calls == 48
        assert server.most_in_air <= 4


@pytest.mark.parametrize("service", ["openai", "local"])
def test_threads_that_ask_the_same_pay_once(tiny_model: str, service: str) -> None:
    """8 threads asked one critic about the same 50 jokes: 400 calls."""
    budget = Budget()
    with a_client(service, tiny_model, budget) as client:
        ledgered = LedgeredClient("p", client)
        got: list[Any] = []
        threads = [threading.Thread(target=lambda: got.append(ledgered.ask(asked(50)))) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert budget.account.calls == ledgered.usage.calls == 50
    assert len(got) == 8
    assert all([r.data for r in replies] == [r.data for r in got[0]] for replies in got)


HTML = (200, {"content-type": "text/html"}, b"<html>Please log in</html>")
ODD: dict[str, Answer] = {
    "a web page": HTML,
    "a web page that says it is JSON": (200, JSON, b"<html>"),
    "an error as 200": (200, JSON, b'{"error": {"message": "upstream is away"}}'),
    "an error with empty fields": (200, JSON, b'{"type": "error", "error": {}, "content": [], "choices": []}'),
    "an error within": (
        200, JSON, b'{"type": "error", "content": [], "choices": [{"finish_reason": "error", "error": {"code": 502}, '
        b'"message": {"role": "assistant", "content": ""}}]}',
    ),
    "nothing": (200, JSON, b""),
    "204": (204, {}, b""),
    "null": (200, JSON, b"null"),
    "a list": (200, JSON, b"[]"),
    "cut gzip": (200, {**JSON, "content-encoding": "gzip"}, gzip.compress(b'{"a": 1}' * 99)[:-20]),
    "no gzip": (200, {**JSON, "content-encoding": "gzip"}, b"plain"),
    "an unknown packing": (200, {**JSON, "content-encoding": "sdch"}, b"plain"),
    "no content": (200, JSON, b'{"id": "x", "type": "message", "choices": []}'),
    "deep JSON": (200, JSON, b"[" * 200_000),
    "a number of 5,000 digits": (200, JSON, b'{"content": ' + b"9" * 5000 + b"}"),
    "a bomb": (200, {**JSON, "content-encoding": "gzip"}, gzip.compress(b" " * 40_000_000)),
}  # fmt: skip


@pytest.mark.parametrize("what", ODD)
@pytest.mark.parametrize("service", ["anthropic", "openai"])
def test_what_is_no_message_is_never_a_verdict(service: str, what: str, tmp_path: Path) -> None:
    """A gateway's 200 page was stored as `invalid`, and never asked again; deep JSON ended the batch."""
    healthy = False
    with answering(lambda body: message(body) if healthy or "joke 0" not in str(body) else ODD[what]) as server:
        spec = f"{service}:m@{server.url}" + ("/v1" if service == "openai" else "")
        for _ in range(2):
            ledgered = LedgeredClient("p", spec, ledger=tmp_path / "l.sqlite", options={**QUICK, "concurrency": 1})
            replies = ledgered.ask(asked(3))
            assert [r.error for r in replies] == [None if healthy else "unreachable", None, None]
            ledgered.close()
            assert server.calls == (7 if healthy else 6)  # four tries, and two that went well; then one more
            healthy = True


@pytest.mark.parametrize(
    "header", ["Mon, 01 Jan 99999999999999999999 00:00:00 GMT", "Mon, 01 Jan 2026 00:00:00 +99999999", "1e400"]
)
def test_an_absurd_retry_after_fails_nothing(header: str) -> None:
    answers = iter([(429, {**JSON, "retry-after": header}, b"{}")])
    with answering(lambda body: next(answers, None) or message(body)) as server:
        client = make_client(f"openai:m@{server.url}/v1", **QUICK, longest_retry_after=0.05)
        assert client(asked(1))[0].error is None


def test_an_answer_may_be_as_long_as_the_limit_says(monkeypatch: pytest.MonkeyPatch) -> None:
    """Packed or not, what counts is what must be kept in memory."""
    status, headers, content = message({"messages": []})
    packed = status, headers | {"content-encoding": "gzip"}, gzip.compress(content)
    for answer in ((status, headers, content), packed):
        with answering(lambda body, answer=answer: answer) as server:
            client = make_client(f"openai:m@{server.url}/v1", **QUICK, garbled_tries=1)
            monkeypatch.setattr(address, "LARGEST_ANSWER", len(content))
            assert client(asked(1))[0].error is None
            monkeypatch.setattr(address, "LARGEST_ANSWER", len(content) - 1)
            [reply] = client(asked(1))
            assert "the answer is no message (AnswerTooLarge)" in reply.detail


def test_an_address_that_answers_with_pages_is_told(tmp_path: Path) -> None:
    with answering(lambda body: HTML) as server:
        client = make_client(f"openai:m@{server.url}/v1", **QUICK, concurrency=2)
        with pytest.raises(JudgingFailed, match="No call has got a valid message"):
            client(asked(100))
        assert server.calls < 40


@pytest.mark.parametrize("service", ["anthropic", "openai"])
def test_a_server_that_is_not_there_is_told_soon_with_its_address(service: str) -> None:
    """A dead server was five silent minutes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
    said: list[Progress] = []
    ledgered = LedgeredClient("p", f"{service}:m@{url}", on_progress=said.append)
    start = time.monotonic()
    with pytest.raises(
        JudgingFailed, match=f"No server answers at {url}.*[Ss]tart it|No server answers at {url}.*address"
    ):
        ledgered.ask(asked(4))
    assert 1 < time.monotonic() - start < 40
    assert any(url in progress.waiting and "again in" in progress.waiting for progress in said)


def test_a_server_that_starts_late_is_waited_for() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    client = make_client(f"openai:m@http://127.0.0.1:{port}/v1", first_wait=0.1)
    got: list[Any] = []
    asking = threading.Thread(target=lambda: got.extend(client(asked(2))))
    asking.start()
    time.sleep(0.5)
    with answering(message, port):
        asking.join()
    assert [reply.error for reply in got] == [None, None]


def test_timeouts_lower_the_concurrency() -> None:
    """A server with one slot and 32 calls in the air: 92 of 100 jokes failed, though it computed 147 answers."""
    slot = threading.Lock()

    def one_at_a_time(body: dict[str, Any]) -> Answer:
        with slot:
            time.sleep(0.1)
        return message(body)

    with answering(one_at_a_time) as server:
        client = make_client(f"openai:m@{server.url}/v1", timeout=1.0, deadline=60.0, first_wait=0.01)
        replies = client(asked(48))
    assert sum(reply.failed for reply in replies) <= 12  # 3 as measured; 42 before


def rejection(body: dict[str, Any], share: int = 4) -> Answer:
    filtered = int(json.loads(body["messages"][-1]["content"])["line"].split()[1]) % share == 0
    said = json.dumps({"error": {"message": "filtered by the content policy"}}).encode()
    return (400, JSON, said) if filtered else message(body)


def test_refusals_of_content_do_not_end_a_batch() -> None:
    """10 % of jokes answered with 400 by a content filter ended two thousand."""

    def slow(body: dict[str, Any]) -> Answer:
        if rejection(body)[0] == 200:
            time.sleep(0.2)  # a filter is quicker than a model
        return rejection(body)

    with answering(slow) as server:
        replies = make_client(f"openai:m@{server.url}/v1")(asked(200))
    assert sum(reply.error == "rejected" for reply in replies) == 50
    assert sum(reply.error is None for reply in replies) == 150


def test_a_mistake_that_comes_later_stops_too() -> None:
    answered = iter(range(10**6))
    credit = (400, JSON, b'{"error": {"message": "the credit balance is too low, request 17"}}')
    with answering(lambda body: message(body) if next(answered) < 5 else credit) as server:
        with pytest.raises(JudgingFailed, match="20 calls in a row"):
            make_client(f"openai:m@{server.url}/v1", concurrency=1)(asked(100))
        assert server.calls == 25


def test_two_servers_are_two_critics(tmp_path: Path) -> None:
    """A jury of two servers, or a held-out critic, replayed the other one's replies: it was never asked."""
    two = json.dumps({"answer": "2"})
    with answering(message) as a, answering(lambda body: message(body, text=two)) as b:
        clients = [LedgeredClient("p", f"openai:default@{s.url}/v1", ledger=tmp_path / "l.sqlite") for s in (a, b)]
        said = [ledgered.ask(asked(1))[0].data["answer"] for ledgered in clients]  # type: ignore[index]
        assert (said, a.calls, b.calls) == (["1", "2"], 1, 1)
        assert clients[0].client.name == f"openai:default@{a.url.removeprefix('http://')}"
        former = make_client(f"openai:default@{a.url}/v1", called="")
        LedgeredClient("q", former, ledger=clients[0].ledger).ask(asked(1))
        with pytest.warns(UserWarning, match="called = ''"):
            LedgeredClient("q", f"openai:default@{a.url}/v1", ledger=tmp_path / "l.sqlite").ask(asked(1))


@pytest.mark.parametrize(
    ("url", "called"),
    [
        ("http://me:pw@LOCALHOST:80/v1/?key=1", "localhost"),
        ("https://x.org:443", "x.org"),
        ("http://[::1]:8000/v1", "[::1]:8000"),
        ("https://gate.org/team-a/v1", "gate.org/team-a"),
    ],
)
def test_what_an_address_is_called(url: str, called: str) -> None:
    assert label(url) == called


def test_no_address_is_a_sentence() -> None:
    for bad in ("127.0.0.1:8000", "http://", "ftp://x", "http://x:99999"):
        with pytest.raises(InvalidOption, match="is not an address"):
            make_client(f"openai:m@{bad}")


def keys_seen(headers: list[dict[str, str]]) -> set[str]:
    return {f"{h.get('authorization', '')}{h.get('x-api-key', '')}" for h in headers}


@pytest.mark.parametrize(("service", "variable"), [("anthropic", "ANTHROPIC_API_KEY"), ("openai", "OPENAI_API_KEY")])
def test_a_key_goes_only_where_the_user_said(service: str, variable: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A spec that named an address got the user's key."""
    monkeypatch.setenv(variable, "sk-mine-0123456789")
    monkeypatch.setenv("ANTHROPIC_AUTH_TOKEN", "token-mine-0123456789")
    with answering(message) as server:
        host = server.url.removeprefix("http://")
        spec = f"{service}:m@{server.url}" + ("/v1" if service == "openai" else "")
        make_client(spec)(asked(1))
        assert "mine" not in str(keys_seen(server.headers))
        monkeypatch.setenv("HUMOR_ENV_ALLOW_KEY_HOSTS", f"other.org, {host}")
        make_client(spec)(asked(1))
        assert "sk-mine-0123456789" in str(keys_seen(server.headers[-1:]))


def test_a_spec_cannot_post_a_variable_of_its_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    """key_variable = "AWS_SECRET_ACCESS_KEY" sent that."""
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret99")
    with answering(lambda body: (401, JSON, b"{}")) as server:
        client = make_client(f"openai:m@{server.url}/v1", key_variable="AWS_SECRET_ACCESS_KEY")
        with pytest.raises(CredentialError, match=r"No key was sent.*HUMOR_ENV_ALLOW_KEY_HOSTS=127\.0"):
            client(asked(1))
        assert "secret99" not in str(server.headers)
    with pytest.raises(CredentialError, match="only to hosts that you allow"):
        make_client("openai:m", key_variable="AWS_SECRET_ACCESS_KEY")


@pytest.mark.parametrize(
    ("service", "host", "variable"),
    [("anthropic", "api.anthropic.com", "ANTHROPIC_API_KEY"), ("openai", "api.openai.com/v1", "OPENAI_API_KEY")],
)
def test_a_key_is_not_sent_unencrypted_to_its_own_service(
    service: str, host: str, variable: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A spec that named http://api.openai.com had the key sent for anyone on the way to read."""
    monkeypatch.setenv(variable, "sk-mine-0123456789")
    for scheme, sends in (("http", False), ("https", True)):
        client = make_client(f"{service}:m@{scheme}://{host}")
        assert (client._connect().api_key == "sk-mine-0123456789") is sends


def test_a_command_line_can_allow_a_host(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("humor_env.llm.clients.address._allowed", set())
    assert not may_have_key("https://Openrouter.ai/api/v1")
    allow_key_hosts("openrouter.ai")
    assert may_have_key("https://Openrouter.ai/api/v1")
    assert not may_have_key("https://openrouter.ai.evil.org/api/v1")


@pytest.mark.parametrize("service", ["anthropic", "openai"])
def test_a_redirect_takes_no_joke_to_another_host(service: str) -> None:
    with answering(message) as other:
        with answering(lambda body: (307, {"location": other.url + "/v1/x"}, b"")) as server:
            spec = f"{service}:m@{server.url}" + ("/v1" if service == "openai" else "")
            [reply] = make_client(spec, **QUICK)(asked(1))
        assert reply.error == "unreachable"
        assert "Redirects are not followed" in reply.detail
        assert other.calls == 0


@pytest.mark.parametrize(("status", "lasts"), [(302, False), (404, False), (405, False), (413, True), (400, True)])
@pytest.mark.parametrize("service", ["anthropic", "openai"])
def test_a_gateways_refusal_is_no_lasting_verdict(service: str, status: int, lasts: bool, tmp_path: Path) -> None:
    """A gateway that sent two calls to a log-in page failed these jokes for ever."""
    broken = True

    def answer(body: dict[str, Any]) -> Answer:
        return (status, {"location": "https://portal.example/"}, b"<html>") if broken else message(body)

    with answering(answer) as server:
        spec = f"{service}:m@{server.url}" + ("/v1" if service == "openai" else "")
        ledger = Ledger(tmp_path / "l.sqlite")
        assert LedgeredClient("p", spec, ledger=ledger).ask(asked(1))[0].error == (
            "rejected" if lasts else "unreachable"
        )
        assert server.calls == 1  # not tried again at once, whatever it was
        broken = False
        assert LedgeredClient("p", spec, ledger=ledger).ask(asked(1))[0].error == ("rejected" if lasts else None)
        assert server.calls == 2 - lasts


def test_stored_failures_can_be_asked_anew(tmp_path: Path) -> None:
    wrong = True
    with answering(lambda body: message(body, text="{}" if wrong else '{"answer": "1"}')) as server:
        spec = f"openai:m@{server.url}/v1"
        ledger = Ledger(tmp_path / "l.sqlite")
        assert LedgeredClient("p", spec, ledger=ledger).ask(asked(1))[0].error == "invalid"
        wrong = False
        assert LedgeredClient("p", spec, ledger=ledger).ask(asked(1))[0].error == "invalid"
        again = LedgeredClient("p", spec, ledger=ledger, options={"ask_again": "invalid"})
        assert again.ask(asked(1))[0].error is None
        assert LedgeredClient("p", spec, ledger=ledger).ask(asked(1))[0].error is None
        assert server.calls == 3
    with pytest.raises(InvalidOption, match="not a kind of failure"):
        LedgeredClient("p", spec, options={"ask_again": ["wrong"]})


@pytest.mark.parametrize("service", ["anthropic", "openai"])
def test_a_client_keeps_its_connection_until_it_is_closed(service: str) -> None:
    with answering(message) as server:
        client = make_client(f"{service}:m@{server.url}", **QUICK)
        for _ in range(3):
            assert client(asked(1))[0].error is None
        assert (server.connections, server.connected) == (1, 1)
        client.close()
        until = time.monotonic() + 20
        while server.connected and time.monotonic() < until:
            time.sleep(0.01)
        assert server.connected == 0


def test_closing_a_client_leaves_what_it_was_handed() -> None:
    """A second critic on the same ledger raised sqlite3.ProgrammingError."""
    with answering(message) as server:
        ledger = Ledger()
        LedgeredClient("p", f"openai:m@{server.url}/v1", ledger=ledger).close()
        assert LedgeredClient("q", f"openai:m@{server.url}/v1", ledger=ledger).ask(asked(1))[0].error is None
    ledger.close()
    with pytest.raises(HumorEnvError, match="is closed"):
        ledger.find(["a"])


def test_a_client_of_a_loop_that_is_gone_is_not_closed_on_the_next_one() -> None:
    """After a fork the loop is another, and what belongs to the old one cannot be waited for there."""
    closed: list[object] = []

    class Sdk:
        async def close(self) -> None:
            closed.append(self)

    for at_home in (False, True):
        client = SdkClient(None, None)
        client._sdk, client._sdk_loop = Sdk(), background.loop() if at_home else None
        client.close()
        assert (len(closed), client._sdk) == (int(at_home), None)
        client.close()
        assert len(closed) == int(at_home)
