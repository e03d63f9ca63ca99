"""The Messages API: the body that is sent, and what a message cost, by hand."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from humor_env.errors import InvalidOption
from humor_env.llm import Request
from humor_env.llm.clients.anthropic import AnthropicClient, read_message
from humor_env.llm.prices import Price, price_of
from humor_env.llm.replies import ReplyError, check
from humor_env.rewards.scorer import SCHEMA
from humor_env.types import Usage

REQUEST = Request("Rate it.", {"line": "Moss."}, SCHEMA, 77)


def client(**options: Any) -> AnthropicClient:
    return AnthropicClient("claude-haiku-4-5", must_have_key=False, **options)


def test_the_body_to_the_letter() -> None:
    body = client(effort="low", thinking="disabled").parameters(REQUEST)
    assert body == {
        "model": "claude-haiku-4-5",
        "max_tokens": 77,
        "system": [{"type": "text", "text": "Rate it.", "cache_control": {"type": "ephemeral", "ttl": "1h"}}],
        "messages": [{"role": "user", "content": '{"line": "Moss."}'}],
        "output_config": {"effort": "low", "format": {"type": "json_schema", "schema": SCHEMA}},
        "thinking": {"type": "disabled"},
    }
    plain = client(cache_ttl="5m").parameters(Request("Write.", {}))
    assert set(plain) == {"model", "max_tokens", "system", "messages"}
    assert plain["system"][0]["cache_control"]["ttl"] == "5m"


def test_every_field_is_one_that_the_sdk_takes() -> None:
    import inspect

    from anthropic.resources.messages import AsyncMessages

    known = inspect.signature(AsyncMessages.create).parameters
    assert set(client(effort="low", thinking="disabled").parameters(REQUEST)) <= set(known)


def test_usage_and_cost_by_hand() -> None:
    """Haiku 4.5: $1 in, $5 out per million. 1000 plain, 2000 read from the cache at a tenth, 400 written for an hour
    at double and 100 for five minutes at 1.25, 300 out: 1000 + 200 + 800 + 125 + 1500 = 3625 millionths."""
    written = SimpleNamespace(ephemeral_1h_input_tokens=400, ephemeral_5m_input_tokens=100)
    used = SimpleNamespace(
        input_tokens=1000,
        cache_read_input_tokens=2000,
        cache_creation_input_tokens=500,
        cache_creation=written,
        output_tokens=300,
    )
    usage = client().usage(SimpleNamespace(usage=used), REQUEST)
    assert usage == Usage(1, 3500, 300, 2000, pytest.approx(3625e-6))  # type: ignore[arg-type]
    assert client().usage(SimpleNamespace(usage=used), REQUEST, batch=True).cost == pytest.approx(3625e-6 / 2)
    # Without the breakdown, all that was written counts at the price of what was asked for: one hour.
    used.cache_creation = None
    assert client().usage(SimpleNamespace(usage=used), REQUEST).cost == pytest.approx(3700e-6)
    assert AnthropicClient("new-model", must_have_key=False).usage(SimpleNamespace(usage=used), REQUEST).cost is None


BIG = 2**63
WORST = client().worst_case(REQUEST)


@pytest.mark.parametrize(
    "changes",
    [
        {"input_tokens": None},
        {"input_tokens": -5},
        {"input_tokens": True},
        {"input_tokens": "7"},
        {"input_tokens": 7.0},
        {"input_tokens": BIG},
        {"input_tokens": 10**400},
        {"input_tokens": 0, "cache_read_input_tokens": 0},
        {"cache_read_input_tokens": -1},
        {"cache_creation_input_tokens": True},
        {"output_tokens": None},
        {"output_tokens": -1},
        {"output_tokens": True},
        {"output_tokens": BIG},
    ],
)
@pytest.mark.parametrize("batch", [False, True])
def test_a_count_that_makes_no_sense_is_the_most_that_was_possible(changes: dict[str, Any], batch: bool) -> None:
    """A missing count was free, true was one token, and a negative one gave money back."""
    good = {"input_tokens": 10, "cache_read_input_tokens": 5, "output_tokens": 3}
    usage = client().usage(SimpleNamespace(usage=SimpleNamespace(**{**good, **changes})), REQUEST, batch)
    bad = [name for name in changes if name != "cache_read_input_tokens" or changes[name] != 0]
    if bad == ["output_tokens"]:
        assert usage == Usage(1, 15, 77, 5, pytest.approx((10 + 0.5 + 5 * 77) / (2e6 if batch else 1e6)))  # type: ignore[arg-type]
    else:
        assert usage.input_tokens == WORST[0] - 77
        assert usage.cost == pytest.approx((2 * usage.input_tokens + 5 * 3) / (2e6 if batch else 1e6))


@pytest.mark.parametrize("hour", [-(10**9), BIG, True, "9", 10**6])
def test_the_part_written_for_an_hour_cannot_be_more_than_all_that_was_written(hour: Any) -> None:
    """ephemeral_1h_input_tokens = -1e9 was a cost of -$750, and the limit in money was gone."""
    written = SimpleNamespace(ephemeral_1h_input_tokens=hour)
    used = SimpleNamespace(input_tokens=10, cache_creation_input_tokens=100, output_tokens=3, cache_creation=written)
    assert client().usage(SimpleNamespace(usage=used), REQUEST).cost == pytest.approx((10 + 2 * 100 + 15) / 1e6)


def test_no_usage_at_all_is_the_worst_case() -> None:
    usage = client().usage(SimpleNamespace(usage=None), REQUEST)
    assert (usage.input_tokens + usage.output_tokens, usage.cost) == (WORST[0], pytest.approx(WORST[1]))
    assert AnthropicClient("new-model", must_have_key=False).usage(SimpleNamespace(usage=None), REQUEST).cost is None


def test_the_worst_case_is_above_anything_that_can_be_charged() -> None:
    tokens, cost = client().worst_case(REQUEST)
    read = tokens - 77
    assert read >= len("Rate it.") + len('{"line": "Moss."}') + len(str(SCHEMA)) - 50
    assert cost == pytest.approx((2 * read + 5 * 77) / 1e6)
    assert AnthropicClient("new-model", must_have_key=False).worst_case(REQUEST)[1] is None


def test_prices() -> None:
    assert price_of("claude-haiku-4-5") == Price(1.0, 5.0)
    assert price_of("no-such-model") is None
    assert price_of("claude-haiku-4-5", {"claude-haiku-4-5": {"input": 2, "output": 3}}) == Price(2.0, 3.0)
    with pytest.raises(InvalidOption, match="dollars per million"):
        price_of("m", {"m": {"input": 2}})


@pytest.mark.parametrize("content", [None, "text", [], [SimpleNamespace(type="text", text=None)], [7]])
def test_a_message_without_a_readable_text_is_no_answer(content: Any) -> None:
    reply = read_message(SimpleNamespace(content=content, stop_reason="end_turn"), REQUEST, Usage())
    assert (reply.error, reply.data) == ("invalid", None)


def test_only_text_blocks_are_read() -> None:
    blocks = [
        SimpleNamespace(type="thinking", thinking="hm", text="not this"),
        SimpleNamespace(type="text", text="one "),
        SimpleNamespace(type="text", text="two"),
    ]
    reply = read_message(SimpleNamespace(content=blocks, stop_reason="end_turn"), Request("s", {}), Usage())
    assert reply.text == "one two"


@pytest.mark.parametrize("value", [True, 1.0, "1"])
def test_equal_in_python_is_not_equal_in_json(value: Any) -> None:
    with pytest.raises(ReplyError):
        check(value, {"enum": [0, 1]})
    check(1, {"enum": [0, 1]})
