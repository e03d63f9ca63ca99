"""Spending limits by hand: what is reserved, what it is replaced by, what no longer fits and what is said then."""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace
from pathlib import Path

import pytest

from humor_env.errors import BudgetExceeded, InvalidOption
from humor_env.llm import Budget, Ledger, Request
from humor_env.llm.budget import Account, most_tokens
from humor_env.llm.prices import Price, price_of
from humor_env.types import Usage


def test_every_byte_of_a_request_counts() -> None:
    """é is two bytes and may be two tokens; what a schema takes is its JSON."""
    plain, schema = Request("Rate.", {"line": "a"}), {"type": "object", "title": "é"}
    least = len(plain.system.encode()) + len(plain.user_text.encode())
    assert most_tokens(plain) > least
    assert most_tokens(replace(plain, system="Rate.é")) == most_tokens(plain) + 2
    assert most_tokens(replace(plain, schema=schema)) == most_tokens(plain) + len(json.dumps(schema).encode())
    longer = replace(plain, data={"line": "ab"})
    assert most_tokens(longer) == most_tokens(plain) + 1


def test_limits_that_are_none() -> None:
    for name in ("max_calls", "max_tokens", "max_cost"):
        Budget(**{name: 0})
        for bad in (-1, math.nan):
            with pytest.raises(InvalidOption, match=f"{name} is {bad}"):
                Budget(**{name: bad})
    with pytest.raises(InvalidOption, match="price is unknown"):
        Budget(max_cost=1.0).reserve(1, None)
    assert Budget(max_calls=1).reserve(1, None) == 1, "without a limit in money no price is needed"
    free = Budget()
    assert [free.reserve(10**9, 1e6) for _ in range(3)] == [1, 2, 3]
    assert free.calls_left is None


@pytest.mark.parametrize("bad", ["5", True, [1], {}])
@pytest.mark.parametrize("name", ["max_calls", "max_tokens", "max_cost"])
def test_a_limit_that_is_no_number_is_a_sentence(name: str, bad: object) -> None:
    """A text was a traceback, and `max_cost = true` was a limit of one dollar."""
    with pytest.raises(
        InvalidOption, match=f"{name} is {re.escape(repr(bad))}; expected a number from 0 on, or nothing"
    ):
        Budget(**{name: bad})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "row",
    [5, "5", None, [], {}, {"input": 1.0}, {"input": "much", "output": 1.0}, {"input": -1.0, "output": 1.0},
     {"input": math.nan, "output": 1.0}, {"input": 1.0, "output": math.inf}, {"input": True, "output": 1.0}],
)  # fmt: skip
def test_a_price_that_is_none_is_a_sentence(row: object) -> None:
    """A number was a traceback, and a price below 0 gave money back with every call."""
    with pytest.raises(InvalidOption, match=r"The price of 'm' is .*; expected \{input = ..., output = ...\}"):
        price_of("m", {"m": row})  # type: ignore[dict-item]


def test_prices_are_a_table() -> None:
    with pytest.raises(InvalidOption, match=r"prices must be a table of models, .*; found 5"):
        price_of("m", 5)  # type: ignore[arg-type]
    assert price_of("m", {}) is None
    assert price_of("m", {"m": {"input": 1, "output": "2.5"}}) == Price(1.0, 2.5)


def test_an_account_in_a_ledger_needs_both(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "x.sqlite")
    for given in ({"ledger": ledger}, {"scope": "run"}):
        with pytest.raises(InvalidOption, match="both the ledger and a scope"):
            Budget(**given)  # type: ignore[arg-type]
    assert Budget(ledger=ledger, scope="run").account == Account()


def test_calls_to_the_last_one() -> None:
    budget = Budget(max_calls=2)
    assert budget.calls_left == 2
    first = budget.reserve(5, 0.25)
    assert (budget.calls_left, budget.account) == (1, Account(1, 5, 0.25))
    budget.reserve(5, 0.25)
    assert (budget.calls_left, budget.account) == (0, Account(2, 10, 0.5))
    with pytest.raises(BudgetExceeded, match="limit of 2 calls is reached"):
        budget.reserve(5, 0.25)  # at once: a call in the air stays a call
    assert first is not None
    budget.release(first)
    assert (budget.calls_left, budget.account) == (1, Account(1, 5, 0.25))
    assert budget.spent == Usage()


def test_money_to_the_last_cent() -> None:
    """0.1 + 0.2 is a little more than 0.3 in floats, and still fits; a thousandth of a cent more does not."""
    budget = Budget(max_cost=0.3)
    tickets = [budget.reserve(1, 0.1), budget.reserve(1, 0.2)]
    assert tickets == [1, 2]
    assert budget.reserve(1, 1e-5) is None, "it may fit once the others are settled"
    budget.settle(1, Usage(1, 1, 0, 0, 0.1))
    budget.settle(2, Usage(1, 1, 0, 0, 0.2))
    with pytest.raises(BudgetExceeded, match=r"\$0\.3000 of at most \$0\.3000 .* up to \$0\.5000"):
        budget.reserve(1, 0.5)
    assert budget.reserve(1, 0.0) == 3


def test_what_a_call_used_takes_the_place_of_the_worst_case() -> None:
    budget = Budget(max_tokens=100)
    known, unpriced, lost = (budget.reserve(20, 0.5) for _ in range(3))
    assert known and unpriced and lost
    budget.settle(known, Usage(1, 3, 4, 1, 0.125))
    assert budget.account == Account(3, 47, 1.125)
    budget.settle(unpriced, Usage(1, 5, 6, 1, None))
    assert budget.account == Account(3, 38, 1.125), "no price: the worst case stays"
    budget.settle(lost, None)
    assert budget.account == Account(3, 38, 1.125), "no answer: it may have been billed"
    assert budget.spent.calls == 3
    assert (budget.spent.input_tokens, budget.spent.output_tokens) == (8, 10)
    assert budget.reserve(62, 0.0) is not None, "38 + 62 is 100"
    full = Budget(max_tokens=38)
    only = full.reserve(38, 0.0)
    assert only is not None
    full.settle(only, None)
    with pytest.raises(BudgetExceeded, match="38 of at most 38 tokens are used, and one more call may take up to 1"):
        full.reserve(1, 0.0)


@pytest.mark.parametrize("cost", [-0.25, math.nan, math.inf, -math.inf])
def test_a_cost_that_cannot_be_is_not_believed(cost: float) -> None:
    """A reply that says it cost less than nothing, or no number at all, would have given money back."""
    budget = Budget(max_cost=1.0)
    ticket = budget.reserve(20, 0.5)
    assert ticket is not None
    budget.settle(ticket, Usage(1, 3, 4, 0, cost))
    assert budget.account == Account(1, 7, 0.5), "the worst case stays"


def test_a_cost_of_nothing_is_believed() -> None:
    budget = Budget(max_cost=1.0)
    ticket = budget.reserve(20, 0.5)
    assert ticket is not None
    budget.settle(ticket, Usage(1, 3, 4, 0, 0.0))
    assert budget.account == Account(1, 7, 0.0)
