"""The retry loop against a real server that misbehaves: what is tried again, what is not, and what stops everything."""

from __future__ import annotations

import asyncio
import logging
import math
import re
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from fake_messages_server import Running, running

from humor_env.errors import BudgetExceeded, CredentialError, InvalidOption, JudgingFailed
from humor_env.llm import Budget, Reply, Request, make_client
from humor_env.llm.clients.failed_calls import from_status, parse_retry_after, redact
from humor_env.llm.clients.retry import Caller, Policy
from humor_env.llm.clients.throttle import Throttle
from humor_env.rewards.scorer import SCHEMA
from humor_env.types import Usage

KEY = "sk-ant-secret-0123456789"
MODEL = "claude-haiku-4-5"


@pytest.fixture(scope="module")
def shared_server() -> Iterator[Running]:
    with running() as server:
        yield server


@pytest.fixture
def server(shared_server: Running) -> Iterator[Running]:
    yield shared_server
    shared_server.script()  # what one test left over must not meet the next


@pytest.fixture(autouse=True)
def key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANTHROPIC_API_KEY", KEY)
    monkeypatch.setenv("OPENAI_API_KEY", KEY)


def requests(count: int) -> list[Request]:
    return [Request("Rate it.", {"line": f"joke {n} {time.time_ns()}"}, SCHEMA) for n in range(count)]


def ask(server: Running, count: int = 1, budget: Budget | None = None, **policy: float) -> list[Reply]:
    quick = {"timeout": 1.0, "deadline": 10.0, "first_wait": 0.01, "longest_wait": 0.05, **policy}
    client = make_client(f"anthropic:{MODEL}@{server.url}", budget=budget, **quick)
    return client(requests(count))


@pytest.mark.parametrize(
    "fault",
    ["429", "429-retry-after", "529", "500", "502", "503", "hang", "reset", "cut-body", "cut-json", "wrong-type"],
)
def test_a_passing_fault_is_tried_again(server: Running, fault: str) -> None:
    server.script(fault)
    before = server.stats()["calls"]
    [reply] = ask(server)
    assert reply.error is None
    assert reply.data is not None
    assert server.stats()["calls"] == before + 2
    assert reply.usage.calls == 2


@pytest.mark.parametrize("fault", ["wrong-type", "out-of-range", "cut-json"])
def test_a_reply_of_the_wrong_form_gets_one_fresh_try_only(server: Running, fault: str) -> None:
    server.script(fault, fault)
    before = server.stats()["calls"]
    [reply] = ask(server)
    assert reply.error == ("cut" if fault == "cut-json" else "invalid")
    assert reply.data is None
    assert server.stats()["calls"] == before + 2


@pytest.mark.parametrize("status", ["413", "422", "400", "404"])
def test_a_rejected_request_is_not_tried_again(server: Running, status: str) -> None:
    server.script(status)
    before = server.stats()["calls"]
    [reply] = ask(server)
    assert reply.error == ("unreachable" if status == "404" else "rejected")
    assert status in reply.detail
    assert server.stats()["calls"] == before + 1


def test_a_refusal_is_counted_and_not_tried_again(server: Running) -> None:
    server.script("refusal")
    before = server.stats()["calls"]
    [reply] = ask(server)
    assert reply.error == "refusal"
    assert server.stats()["calls"] == before + 1


@pytest.mark.parametrize("status", ["400", "404"])
def test_a_mistake_that_concerns_every_call_stops_after_three(server: Running, status: str) -> None:
    server.script(*[status] * 100)
    before = server.stats()["calls"]
    with pytest.raises(JudgingFailed, match="3 calls in a row"):
        ask(server, 50, concurrency=1)
    assert server.stats()["calls"] == before + 3


def test_rejections_between_successes_do_not_stop(server: Running) -> None:
    server.script(*["400", "400", "ok"] * 5)
    replies = ask(server, 15, concurrency=1)
    assert [r.error for r in replies] == ["rejected", "rejected", None] * 5


@pytest.mark.parametrize("status", ["401", "402", "403"])
def test_authentication_and_payment_stop_at_once_without_naming_the_key(server: Running, status: str) -> None:
    server.script(*[status] * 100)
    before = server.stats()["calls"]
    with pytest.raises(CredentialError, match=status) as caught:
        ask(server, 50, concurrency=1)
    assert KEY not in str(caught.value)
    assert server.stats()["calls"] == before + 1


def test_a_deadline_ends_the_tries(server: Running) -> None:
    server.script(*["529"] * 1000)
    client = make_client(
        f"anthropic:{MODEL}@{server.url}", timeout=0.3, deadline=1.0, first_wait=0.01, longest_wait=0.05
    )
    start = time.monotonic()
    [reply] = client(requests(1))
    # Without an end to it the tries would take some 50 s.
    assert time.monotonic() - start < 20
    assert reply.error in ("overloaded", "unreachable")  # on a busy machine the last attempt may be cut short
    assert "attempts" in reply.detail


def test_a_long_retry_after_is_capped() -> None:
    with running("--retry-after", "4000000") as server:
        server.script("429-retry-after")
        start = time.monotonic()
        [reply] = ask(server, longest_retry_after=0.2)
        assert reply.error is None
        assert 0.2 <= time.monotonic() - start < 60


def test_retry_after_is_waited_for() -> None:
    with running("--retry-after", "0.6") as server:
        server.script("429-retry-after")
        start = time.monotonic()
        ask(server)
        assert time.monotonic() - start >= 0.6


@pytest.mark.parametrize(
    ("value", "seconds"), [(None, None), ("", None), ("3", 3.0), ("-1", None), ("nan", None), ("soon", None)]
)
def test_retry_after_values(value: str | None, seconds: float | None) -> None:
    assert parse_retry_after(value) == seconds


def test_retry_after_as_a_date() -> None:
    from email.utils import formatdate

    seconds = parse_retry_after(formatdate(time.time() + 30))
    assert seconds is not None
    assert 27 < seconds <= 30


def test_the_call_limit_is_exact_under_concurrency_and_finished_calls_are_kept(server: Running) -> None:
    before = server.stats()["calls"]
    kept: list[int] = []
    client = make_client(f"anthropic:{MODEL}@{server.url}", budget=Budget(max_calls=17), concurrency=8)
    with pytest.raises(BudgetExceeded, match="17 calls"):
        client(requests(60), lambda index, reply: kept.append(index))
    assert server.stats()["calls"] == before + 17
    assert len(kept) == 17


def test_failed_attempts_count_as_calls(server: Running) -> None:
    server.script("529", "500", "ok", "reset", "ok")
    budget = Budget(max_calls=5)
    before = server.stats()["calls"]
    ask(server, 2, budget, concurrency=1)
    assert server.stats()["calls"] == before + 5
    assert budget.account.calls == 5
    with pytest.raises(BudgetExceeded):
        ask(server, 1, budget)
    assert server.stats()["calls"] == before + 5


def test_the_money_limit_holds_and_is_used_up() -> None:
    """A call really costs $0.000205 here and may at most cost about $0.005: waiting for open calls to settle is what
    lets nearly all the money be used."""
    with running("--latency", "0.02") as server:
        budget = Budget(max_cost=0.02)
        client = make_client(f"anthropic:{MODEL}@{server.url}", budget=budget, concurrency=16)
        with pytest.raises(BudgetExceeded, match="may cost up to"):
            client(requests(200))
        spent = budget.spent.cost
        assert spent is not None
        assert spent <= 0.02
        assert spent > 0.012
        assert budget.account.cost == pytest.approx(spent)
        assert server.stats()["calls"] * 0.000205 == pytest.approx(spent)


def test_a_hanging_call_keeps_its_worst_case_counted(server: Running) -> None:
    server.script("hang", "ok")
    budget = Budget(max_cost=1.0)
    ask(server, 1, budget)
    assert budget.spent.cost == pytest.approx(0.000205)
    assert budget.account.cost > 0.002


def test_a_money_limit_needs_a_price(server: Running) -> None:
    client = make_client(f"anthropic:some-new-model@{server.url}", budget=Budget(max_cost=1.0))
    before = server.stats()["calls"]
    with pytest.raises(InvalidOption, match="price is unknown"):
        client(requests(1))
    assert server.stats()["calls"] == before


def test_an_unknown_price_is_an_unknown_cost(server: Running) -> None:
    client = make_client(f"anthropic:some-new-model@{server.url}")
    [reply] = client(requests(1))
    assert reply.usage.cost is None
    client = make_client(f"anthropic:new@{server.url}", prices={"new": {"input": 1.0, "output": 5.0}})
    [reply] = client(requests(1))
    # 100 plain and 50 cached input tokens at a tenth, 20 output tokens.
    assert reply.usage.cost == pytest.approx((100 + 5) * 1e-6 + 20 * 5e-6)


def test_replies_come_in_order_of_requests_and_are_streamed_as_they_finish(server: Running) -> None:
    server.script("slow")
    seen: list[int] = []
    client = make_client(f"anthropic:{MODEL}@{server.url}", concurrency=4)
    asked = requests(8)
    replies = client(asked, lambda index, reply: seen.append(index))
    assert sorted(seen) == list(range(8))
    assert seen[-1] != 7 or seen != list(range(8))
    again = client(asked)
    assert [r.data for r in replies] == [r.data for r in again]


def test_a_reply_that_cannot_be_stored_ends_the_batch(server: Running) -> None:
    client = make_client(f"anthropic:{MODEL}@{server.url}")
    for problem in (OSError, KeyboardInterrupt, SystemExit):

        def full(index: int, reply: Reply, problem: type[BaseException] = problem) -> None:
            raise problem("the disk is full")

        with pytest.raises(problem, match="disk is full"):
            client(requests(5), full)
        assert client(requests(1))[0].error is None


def test_calling_a_client_from_its_own_callback_is_refused(server: Running) -> None:
    client = make_client(f"anthropic:{MODEL}@{server.url}")
    with pytest.raises(RuntimeError, match="on_reply"):
        client(requests(1), lambda index, reply: client(requests(1)) and None)


def test_a_call_works_inside_a_running_event_loop(server: Running) -> None:
    import asyncio

    async def notebook() -> list[Reply]:
        return ask(server, 2)

    assert [r.error for r in asyncio.run(notebook())] == [None, None]


def test_fewer_calls_in_the_air_after_an_overload_and_more_again() -> None:
    throttle = Throttle(20)
    throttle.overloaded(sent_at=1.0)
    assert throttle.limit == 14
    throttle.overloaded(sent_at=1.0)  # sent before the cut: the same news
    assert throttle.limit == 14
    throttle.overloaded(sent_at=time.monotonic() + 1)
    assert throttle.limit == pytest.approx(9.8)
    for _ in range(10):
        throttle.succeeded()
    assert 10.7 < throttle.limit < 10.9
    for _ in range(2000):
        throttle.succeeded()
    assert throttle.limit == 20
    for _ in range(50):
        throttle.overloaded(sent_at=time.monotonic() + 1)
    assert throttle.limit == 1


@pytest.mark.parametrize(("status", "fewer"), [(429, True), (503, True), (529, True), (500, False), (502, False)])
def test_which_answers_mean_too_many_calls(status: int, fewer: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    news: list[float] = []
    monkeypatch.setattr(Throttle, "overloaded", lambda self, sent_at: news.append(sent_at))
    sent: list[Request] = []

    async def send(request: Request) -> Reply:
        sent.append(request)
        if len(sent) == 1:
            raise from_status("S", status, "no")
        return Reply("yes", usage=Usage(1, 5, 5))

    policy = Policy(timeout=10.0, deadline=20.0, first_wait=0.01, longest_wait=0.01)
    [reply] = Caller(send, policy, Budget(), lambda request: (10, 0.0)).ask([Request("s", {})])
    assert (reply.text, len(sent), len(news)) == ("yes", 2, int(fewer))


def test_after_a_timeout_half_of_what_was_answered_may_be_in_the_air() -> None:
    throttle = Throttle(32)
    throttle.timed_out(sent_at=1.0, answered=10)
    assert throttle.limit == 5
    throttle.timed_out(sent_at=1.0, answered=2)  # sent before the cut: the same news
    assert throttle.limit == 5
    throttle.timed_out(sent_at=time.monotonic() + 1, answered=40)
    assert throttle.limit == 2.5
    throttle.timed_out(sent_at=time.monotonic() + 2, answered=0)
    assert throttle.limit == 1


def test_second_tries_go_before_first_ones() -> None:
    order: list[str] = []

    async def wait(throttle: Throttle, name: str, again: bool) -> None:
        await throttle.enter(again)
        order.append(name)
        await asyncio.sleep(0)
        throttle.leave()

    async def both() -> None:
        throttle = Throttle(1)
        await throttle.enter()
        waiting = [asyncio.create_task(wait(throttle, name, name == "again")) for name in ("a", "b", "again", "c")]
        await asyncio.sleep(0.01)
        waiting[0].cancel()  # whoever gives up does not take a place with it
        await asyncio.sleep(0.01)
        assert (throttle.in_air, order) == (1, []), "nor gives back one that it never had"
        throttle.leave()
        await asyncio.gather(*waiting, return_exceptions=True)

    asyncio.run(both())
    assert order == ["again", "b", "c"]


def test_whoever_gives_up_when_its_turn_has_come_gives_it_back() -> None:
    async def in_air_after() -> int:
        throttle = Throttle(1)
        await throttle.enter()
        waiting = asyncio.create_task(throttle.enter())
        await asyncio.sleep(0)
        throttle.leave()
        waiting.cancel()  # before it could see that its turn has come
        await asyncio.gather(waiting, return_exceptions=True)
        return throttle.in_air

    assert asyncio.run(in_air_after()) == 0


def waiting_behind(first: str, seconds: float) -> list[Reply]:
    """Three questions, one at a time: the first fails at once, and its second try waits behind the next one."""
    seen: list[str] = []

    async def send(request: Request) -> Reply:
        name = request.data["name"]
        seen.append(name)
        if seen.count("a") == 1 and name == "a":
            if first == "invalid":
                return Reply("?", error="invalid", usage=Usage(1, 5, 5))
            raise from_status("S", int(first), "overloaded")
        await asyncio.sleep(seconds)
        return Reply(name, usage=Usage(1, 5, 5))

    policy = Policy(concurrency=1, timeout=10.0, deadline=2.0, first_wait=0.05, longest_wait=0.05)
    caller = Caller(send, policy, Budget(), lambda request: (10, 0.0))
    return caller.ask([Request("s", {"name": name}) for name in "abc"])


def test_a_second_try_that_comes_too_late_says_what_the_service_said() -> None:
    """It was sent with no time left, and ended as "no answer within -0 s": the 529 before it was not to be seen."""
    late, *others = waiting_behind("529", seconds=1.2)
    assert (late.error, late.detail) == ("overloaded", "S answered 529: overloaded")
    assert late.usage.calls == 1, "what has no time left is not sent"
    assert [reply.text for reply in others] == ["b", "c"]


def test_a_second_try_without_an_answer_says_what_the_first_one_got(server: Running) -> None:
    server.script("529", *["hang"] * 9)
    [reply] = ask(server, timeout=0.3, deadline=0.5)
    assert reply.error == "unreachable"
    assert re.fullmatch(r".+ \(after \d attempts\); before: .+ answered 529: .+", reply.detail)


def test_a_reply_of_the_wrong_form_stays_where_a_fresh_try_comes_too_late() -> None:
    assert waiting_behind("invalid", seconds=0.1)[0].text == "a"

    async def send(request: Request) -> Reply:
        await asyncio.sleep(1.2)
        return Reply("?", error="invalid", usage=Usage(1, 5, 5))

    caller = Caller(send, Policy(timeout=10.0, deadline=2.0), Budget(), lambda request: (10, 0.0))
    [reply] = caller.ask([Request("s", {})])
    assert (reply.error, reply.usage.calls) == ("invalid", 1)


def test_no_more_calls_in_the_air_than_allowed() -> None:
    with running("--latency", "0.02") as server:
        ask(server, 40, concurrency=5)
        assert server.stats()["most_open"] <= 5


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("concurrency", 0, "a whole number of at least 1"),
        ("concurrency", "8", "a whole number of at least 1"),
        ("concurrency", 2.5, "a whole number of at least 1"),
        ("concurrency", True, "a whole number of at least 1"),
        ("fresh_tries", -1, "a whole number of at least 0"),
        ("fresh_tries", "2", "a whole number of at least 0"),
        ("garbled_tries", 0, "a whole number of at least 1"),
        ("rejected_in_a_row", 0, "a whole number of at least 1"),
        ("same_rejections", None, "a whole number of at least 1"),
        ("timeout", 0, "a number above 0"),
        ("timeout", "60", "a number above 0"),
        ("deadline", -1, "a number above 0"),
        ("deadline", math.nan, "a number above 0"),
        ("first_wait", -0.5, "a number of at least 0"),
        ("longest_wait", "1", "a number of at least 0"),
        ("longest_retry_after", math.nan, "a number of at least 0"),
        ("absent", [5], "a number of at least 0"),
    ],
)
def test_a_policy_out_of_range_is_refused(name: str, value: object, expected: str) -> None:
    """A number in quotes was a traceback, and a deadline of NaN none at all."""
    with pytest.raises(InvalidOption, match=f"{name} must be {expected}, found {re.escape(repr(value))}"):
        make_client("openai:m@http://127.0.0.1:9/v1", **{name: value})


def test_a_policy_at_its_limits_is_taken() -> None:
    assert Policy(1, 0.1, math.inf, 0, 0, 0, 0, 1, 1, 1, 0).deadline == math.inf


@pytest.mark.parametrize("variable", ["HOME", "ANTHROPIC_CONFIG_DIR"])
def test_no_key_is_said_before_anything_starts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, variable: str) -> None:
    monkeypatch.delenv("ANTHROPIC_API_KEY")
    monkeypatch.delenv("ANTHROPIC_AUTH_TOKEN", raising=False)
    monkeypatch.setenv(variable, str(tmp_path))
    with pytest.raises(CredentialError, match="Set ANTHROPIC_API_KEY"):
        make_client("anthropic:claude-haiku-4-5")
    monkeypatch.delenv("OPENAI_API_KEY")
    with pytest.raises(CredentialError, match="Set OPENAI_API_KEY"):
        make_client("openai:some-model")


def test_keys_are_taken_out_of_what_services_say() -> None:
    assert redact(f"bad key {KEY}!", KEY) == "bad key [key]!"
    assert "abcdef123" not in redact("Incorrect API key provided: sk-proj-abcdef123*********9876.")
    assert "t0ken" not in redact("header Authorization: Bearer t0ken-of-mine")


def test_a_key_that_is_none_garbles_no_message() -> None:
    """With OPENAI_API_KEY=1, as for a server that looks at no key, the address became http://[key]27.0.0.[key]."""
    said = "http://127.0.0.1:8000/v1 answered 404: no such model"
    assert redact(said, "1", "model", "8000/v1", "") == said
    assert redact("for 12345678 and sk-abcdefgh", "12345678") == "for [key] and [key]"


def test_keys_reach_no_log_and_no_representation(server: Running, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    server.script("500", "429")
    client = make_client(f"anthropic:{MODEL}@{server.url}", first_wait=0.01)
    [reply] = client(requests(1))
    assert KEY not in caplog.text
    assert KEY not in repr(client) + repr(reply) + client.name
