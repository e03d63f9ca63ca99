"""OpenAI-compatible servers: what is sent, what is read, and where the probability of the answer stands."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
from fake_messages_server import Running, running

from humor_env.errors import CredentialError, InvalidOption
from humor_env.llm import Ledger, LedgeredClient, Reply, Request, make_client
from humor_env.llm.clients.openai import OpenAIClient, answer_probabilities
from humor_env.llm.ledger_rows import request_key
from humor_env.rewards.multiple_choice import MultipleChoiceJudge
from humor_env.rewards.scorer import SCHEMA, ScorerCritic, symbol_schema
from humor_env.types import Joke, Prompt, Usage

PROMPT = Prompt("p", "The meeting was slow.")
JOKES = [Joke(PROMPT, f"Moss {n}.") for n in range(5)]


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    with running("--keep-bodies", "--judge", "always-1") as server:
        yield server


def test_it_scores_through_a_server_without_a_key(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    critic = ScorerCritic(f"openai:m@{server.url}/v1", options={"prices": {"m": {"input": 1.0, "output": 2.0}}})
    judgements = critic(JOKES)
    assert not any(j.failed for j in judgements)
    assert judgements[0].usage.cost == pytest.approx(100e-6 + 2 * 20e-6)
    body = server.bodies()[-1]["body"]
    assert [m["role"] for m in body["messages"]] == ["system", "user"]
    assert body["max_tokens"] == 300
    assert body["response_format"]["json_schema"]["schema"] == SCHEMA
    assert "temperature" not in body
    assert "logprobs" not in body


def test_it_reads_the_probability_of_the_answer(server: Running) -> None:
    judge = MultipleChoiceJudge(f"openai:m@{server.url}/v1", options={"probabilities": True})
    [verdict] = judge([(JOKES[0], JOKES[1])])
    # The server says "1" with 0.8 and "2" with 0.1, in both orders: 8/9 each, and so a half.
    assert verdict.probability == 0.5
    assert judge.flip_rate == 1.0
    [request] = judge.requests((JOKES[0], JOKES[1]))
    [reply] = judge.ledgered.client([request])
    assert reply.probabilities == pytest.approx({"1": 8 / 9, "2": 1 / 9})
    assert server.bodies()[-1]["body"]["top_logprobs"] == 20


@pytest.mark.parametrize("fault", ["429", "500", "reset", "cut-body", "hang"])
def test_faults_are_tried_again(server: Running, fault: str) -> None:
    server.script(fault)
    client = make_client(f"openai:m@{server.url}/v1", timeout=0.5, first_wait=0.01)
    [reply] = client([Request("s", {"line": fault}, SCHEMA)])
    assert reply.error is None
    assert reply.usage.calls == 2


def test_a_refused_key_stops(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_KEY", "my-own-secret-42")
    server.script("401")
    monkeypatch.setenv("HUMOR_ENV_ALLOW_KEY_HOSTS", "127.0.0.1")
    client = make_client(f"openai:m@{server.url}/v1", key_variable="MY_KEY")
    with pytest.raises(CredentialError, match="401") as caught:
        client([Request("s", {"line": "x"}, SCHEMA)])
    assert "my-own-secret-42" not in str(caught.value)


def answer(**changes: Any) -> Any:
    message = SimpleNamespace(content='{"answer": "1"}', refusal=None, **changes.pop("message", {}))
    choice = SimpleNamespace(message=message, finish_reason="stop", logprobs=None)
    for name, value in changes.items():
        setattr(message if name in ("content", "refusal") else choice, name, value)
    return SimpleNamespace(choices=[choice], usage=SimpleNamespace(prompt_tokens=10, completion_tokens=3))


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({}, None),
        ({"refusal": "no"}, "refusal"),
        ({"finish_reason": "content_filter"}, "refusal"),
        ({"finish_reason": "length"}, "cut"),
        ({"finish_reason": "tool_calls"}, "invalid"),
        ({"finish_reason": None}, "invalid"),
        ({"content": None}, "invalid"),
        ({"content": '{"answer": "3"}'}, "invalid"),
        ({"content": 7}, "invalid"),
    ],
)
def test_what_counts_as_an_answer(changes: dict[str, Any], error: str | None) -> None:
    client = OpenAIClient("m", base_url="http://127.0.0.1:1/v1")
    reply = client._read(answer(**changes), Request("s", {}, symbol_schema(("1", "2"))))
    assert reply.error == error
    assert (reply.data is None) == (error is not None)
    assert reply.usage.input_tokens == 10


@pytest.mark.parametrize("odd", [None, -1, True, 7.0, "7", 2**63, 10**400])
@pytest.mark.parametrize("name", ["prompt_tokens", "completion_tokens"])
def test_a_count_that_makes_no_sense_is_the_most_that_was_possible(odd: Any, name: str) -> None:
    client = OpenAIClient("m", base_url="http://127.0.0.1:1/v1", prices={"m": {"input": 1.0, "output": 2.0}})
    asked = Request("s", {}, symbol_schema(("1", "2")), 50)
    most = client.worst_case(asked)[0] - 50
    broken = answer()
    setattr(broken.usage, name, odd)
    usage = client._read(broken, asked).usage
    expected = (most, 3) if name == "prompt_tokens" else (10, 50)
    assert (usage.input_tokens, usage.output_tokens) == expected
    assert usage.cost == pytest.approx((expected[0] + 2 * expected[1]) / 1e6)


def tokens(*rows: tuple[str, dict[str, float]]) -> Any:
    def alternatives(shares: dict[str, float]) -> list[Any]:
        return [SimpleNamespace(token=t, logprob=math.log(p)) for t, p in shares.items()]

    return SimpleNamespace(content=[SimpleNamespace(token=t, top_logprobs=alternatives(s)) for t, s in rows])


def test_where_the_answer_stands_among_the_tokens() -> None:
    text = '{"reason": "say \\"answer\\": \\"2\\"", "answer": "1"}'
    head = text[: text.rindex("1")]
    whole = tokens((head, {}), ("1", {"1": 0.6, "2": 0.2, "x": 0.2}), ('"}', {}))
    assert answer_probabilities(text, whole, ("1", "2")) == pytest.approx({"1": 0.75, "2": 0.25})
    joined = tokens((head[:-2], {}), (' "1"', {' "1"': 0.3, ' "2': 0.1, '"2': 0.5, " 2": 0.1}), ("}", {}))
    assert answer_probabilities(text, joined, ("1", "2")) == pytest.approx({"1": 0.75, "2": 0.25})
    elsewhere = tokens((head, {}), ("1", {"x": 1.0}), ('"}', {}))
    assert answer_probabilities(text, elsewhere, ("1", "2")) == {}
    assert answer_probabilities(text, tokens(("other text", {})), ("1", "2")) == {}
    assert answer_probabilities(text, None, ("1", "2")) == {}


@pytest.mark.parametrize("logprob", [math.inf, math.nan, 709.5, 1000.0, 10**400, "-1", None])
def test_log_probabilities_that_are_none_are_not_read(logprob: Any) -> None:
    """Infinity, which servers write although JSON has none, gave the answer "1" the probability NaN."""
    text = '{"answer": "1"}'
    alternatives = [SimpleNamespace(token="1", logprob=logprob), SimpleNamespace(token="2", logprob=709.0)]
    content = [SimpleNamespace(token=c, top_logprobs=alternatives if c == "1" else []) for c in text]
    assert answer_probabilities(text, SimpleNamespace(content=content), ("1", "2")) == {}


@pytest.mark.parametrize("url", [None, "https://api.openai.com/v1", "https://API.openai.com", "https://x.test/v1"])
@pytest.mark.parametrize("by_variable", [False, True])
def test_openais_own_models_get_the_name_of_the_limit_that_they_know(
    url: str | None, by_variable: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the address written out, all calls were rejected: `max_tokens` is not known there."""
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    if by_variable and url:
        monkeypatch.setenv("OPENAI_BASE_URL", url)
    client = OpenAIClient("gpt-5", base_url=None if by_variable else url, must_have_key=False)
    sent = client.parameters(Request("s", {}))
    known = "max_tokens" if url == "https://x.test/v1" else "max_completion_tokens"
    assert {name: value for name, value in sent.items() if "max" in name} == {known: 300}


CHOICE = Request("Which?", {"1": "a", "2": "b"}, symbol_schema(("1", "2")), 16, ("1", "2"))


def test_probabilities_are_asked_for_where_the_ledger_has_bare_votes(server: Running) -> None:
    """With `probabilities = true` a ledger that was filled without it gave its bare votes."""
    spec, ledger = f"openai:m@{server.url}/v1", Ledger()
    plain = LedgeredClient("p", spec, ledger=ledger)
    assert plain.ask([CHOICE])[0].probabilities == {}
    exact = LedgeredClient("p", spec, ledger=ledger, options={"probabilities": True})
    [reply] = exact.ask([CHOICE])
    assert reply.probabilities == pytest.approx({"1": 8 / 9, "2": 1 / 9})
    assert (reply.replayed, exact.ask([CHOICE])[0].replayed, plain.ask([CHOICE])[0].replayed) == (False, True, True)
    assert plain.ask([CHOICE])[0].probabilities == {}


@pytest.mark.parametrize("options", [{}, {"probabilities": True}])
def test_ledgers_from_before_still_replay(server: Running, options: dict[str, Any]) -> None:
    """They name the client without a word of probabilities; what has them was asked for them."""
    ledger = Ledger()
    client = LedgeredClient("p", f"openai:m@{server.url}/v1", ledger=ledger, options=options)
    before = f"openai:m@{server.url.removeprefix('http://')}"
    shares = {"1": 1.0} if options else {}
    stored = Reply('{"answer": "1"}', {"answer": "1"}, usage=Usage(1, 5, 5), probabilities=shares)
    ledger.put(request_key("p", before, CHOICE), "p", before, CHOICE, stored)
    free = Request("Say.", {"line": "free text"})
    ledger.put(request_key("p", before, free), "p", before, free, Reply("said", usage=Usage(1, 5, 5)))
    assert client.estimate([CHOICE, free]).calls == 0
    assert [(r.text, r.replayed) for r in client.ask([CHOICE, free])] == [('{"answer": "1"}', True), ("said", True)]


def test_what_a_server_says_without_the_schema_is_not_replayed_with_it(server: Running) -> None:
    """Prose that was invalid without the schema was replayed for ever after `structured` was set to true."""
    spec, ledger, options = f"openai:m@{server.url}/v1", Ledger(), {"structured": False}
    loose = LedgeredClient("p", spec, ledger=ledger, options=options)
    free = Request("Say.", {"line": "free text"})
    for request in (CHOICE, free):  # a schema that is not asked for changes nothing
        failed = Reply("I prefer the first.", error="invalid", detail="not JSON", usage=Usage(1, 5, 5))
        ledger.put(loose.key(request), "p", loose.client.name, request, failed)
    strict = LedgeredClient("p", spec, ledger=ledger)
    assert [reply.replayed for reply in loose.ask([CHOICE, free])] == [True, True]
    assert [(reply.replayed, reply.error) for reply in strict.ask([CHOICE, free])] == [(False, None), (True, "invalid")]
    assert loose.client.name == strict.client.name  # of a teacher's lines, say


def test_ledgers_that_did_not_say_whether_a_schema_was_sent_give_their_valid_replies(server: Running) -> None:
    ledger, name = Ledger(), f"openai:m@{server.url.removeprefix('http://')}"
    good = Reply('{"answer": "1"}', {"answer": "1"}, usage=Usage(1, 5, 5), probabilities={"1": 1.0})
    bad = Reply("Hm.", error="invalid", detail="not JSON", usage=Usage(1, 5, 5))
    other = replace(CHOICE, sample=1)
    for former in (name, f"{name} probabilities=true"):
        ledger.put(request_key("p", former, CHOICE), "p", former, CHOICE, good)
        ledger.put(request_key("p", former, other), "p", former, other, bad)
    for options in ({"structured": False}, {"structured": False, "probabilities": True}):
        client = LedgeredClient("p", f"openai:m@{server.url}/v1", ledger=ledger, options=options)
        assert [reply.replayed for reply in client.ask([CHOICE, other])] == [True, False]


def test_replies_without_the_address_that_gave_them_are_told_once_and_asked_anew(server: Running) -> None:
    """Ledgers of version 0.1: "openai:m" may have been any server."""
    ledger, former = Ledger(), "openai:m"
    questions = [Request("Say.", {"line": f"free text {n}"}) for n in range(3)]
    for each in questions:
        ledger.put(request_key("p", former, each), "p", former, each, Reply("said", usage=Usage(1, 5, 5)))
    client = LedgeredClient("p", f"openai:m@{server.url}/v1", ledger=ledger)
    with pytest.warns(UserWarning, match="has 2 of these replies without the address") as warned:
        replies = client.ask(questions[:2]) + client.ask(questions[2:])
    told = [each for each in warned if issubclass(each.category, UserWarning)]  # not what other tests left unclosed
    assert len(told) == 1 and not any(reply.replayed or reply.text == "said" for reply in replies)
    own = LedgeredClient("p", f"openai:m@{server.url}/v1", ledger=ledger, options={"called": ""})
    assert [reply.text for reply in own.ask(questions)] == ["said"] * 3


def test_names_and_options(monkeypatch: pytest.MonkeyPatch) -> None:
    first = make_client("openai:m@http://127.0.0.1:1/v1", temperature=0.8)
    assert first.name == "openai:m@127.0.0.1:1 temperature=0.8"
    assert make_client("openai:org/m:tag@http://127.0.0.1:2/v1").name == "openai:org/m:tag@127.0.0.1:2"
    with pytest.raises(InvalidOption, match="needs a model"):
        make_client("openai:@http://127.0.0.1:1/v1")
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret-0123456789")
    service = OpenAIClient("m")
    assert service.parameters(Request("s", {}))["max_completion_tokens"] == 300
    assert "secret" not in repr(service)
