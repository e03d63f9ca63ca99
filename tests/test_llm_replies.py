"""A reply is exactly what was asked for, or it is no answer."""

from __future__ import annotations

import json
import math

import pytest

from humor_env.llm.protocol import Request, encode_data
from humor_env.llm.replies import ReplyError, check, parse, read
from humor_env.rewards.scorer import SCHEMA
from humor_env.types import Usage

GOOD = {"reason": "dry", "wit": 4, "meaning": 5, "originality": 0, "kindness": 5}


def test_a_valid_reply_and_one_in_a_code_fence() -> None:
    assert parse(json.dumps(GOOD), SCHEMA) == GOOD
    assert parse("```json\n" + json.dumps(GOOD) + "\n```", SCHEMA) == GOOD


@pytest.mark.parametrize(
    "text",
    [
        "",
        "5",
        "[]",
        "null",
        json.dumps(GOOD)[:-1],
        "The score is " + json.dumps(GOOD),
        json.dumps(GOOD) + json.dumps(GOOD),
        json.dumps(GOOD | {"wit": 6}),
        json.dumps(GOOD | {"wit": -1}),
        json.dumps(GOOD | {"wit": "4"}),
        json.dumps(GOOD | {"wit": 4.0}),
        json.dumps(GOOD | {"wit": True}),
        json.dumps(GOOD | {"wit": None}),
        json.dumps(GOOD | {"wit": [4]}),
        json.dumps(GOOD | {"reason": 4}),
        json.dumps(GOOD | {"bonus": 1}),
        json.dumps({k: v for k, v in GOOD.items() if k != "kindness"}),
        json.dumps(GOOD).replace('"wit": 4', '"wit": NaN'),
        json.dumps(GOOD).replace('"wit": 4', '"wit": 0, "wit": 5'),
        "[" * 100_000,
    ],
)
def test_anything_else_is_no_answer(text: str) -> None:
    with pytest.raises(ReplyError):
        parse(text, SCHEMA)


def test_a_schema_word_that_is_not_checked_is_refused() -> None:
    with pytest.raises(ValueError, match="maximum"):
        check(7, {"type": "integer", "maximum": 5})


def test_a_number_may_have_decimals_but_must_be_finite() -> None:
    check(0.5, {"type": "number"})
    check([0.5, 1], {"type": "array", "items": {"type": "number"}})
    for odd in (math.inf, -math.inf, math.nan):
        with pytest.raises(ReplyError, match="the reply is not a finite number"):
            check(odd, {"type": "number"})


@pytest.mark.parametrize(
    ("stop", "error"),
    [("refusal", "refusal"), ("max_tokens", "cut"), ("tool_use", "invalid"), (None, "invalid"), (7, "invalid")],
)
def test_a_valid_text_with_a_bad_stop_reason_is_no_answer(stop: object, error: str) -> None:
    reply = read(json.dumps(GOOD), stop, Request("", {}, SCHEMA), Usage())
    assert (reply.error, reply.data) == (error, None)


def test_free_text_is_kept_and_an_empty_one_is_invalid() -> None:
    assert read("1. A line.", "end_turn", Request("", {}), Usage()).error is None
    assert read(" \n", "end_turn", Request("", {}), Usage()).error == "invalid"


def test_data_keeps_its_value_and_shows_what_is_hidden() -> None:
    data = {
        "line": 'a\u202e\u200b\U000e0041\ud800\x7f\u2028 é 日本 🐌 "q" \\ </s><|im_end|>[INST] [sic] [/INST]',
        "n": [1],
    }
    text = encode_data(data)
    assert json.loads(text) == data
    for hidden in ("\u202e", "\u200b", "\U000e0041", "\ud800", "\x7f", "\u2028", "<", "[INST]", "[/INST]"):
        assert hidden not in text
    for shown in ("é", "日本", "🐌", "[sic]"):
        assert shown in text
