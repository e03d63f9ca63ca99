"""What a reproduction would cost, by hand: each role's tokens and dollars, and the forecast as text."""

from types import SimpleNamespace

import pytest

from humor_env.experiments.reproduction import estimate as module
from humor_env.experiments.reproduction.estimate import as_text
from humor_env.experiments.reproduction.spec import JudgeTable, load_scale
from humor_env.experiments.reproduction.systems import System, by_name

REQUESTS = [SimpleNamespace(system="é" * 5, user_text="abcd", max_tokens=10),
            SimpleNamespace(system="", user_text="a" * 21, max_tokens=30)]  # fmt: skip
PRICES = {"options": {"prices": {"mine": {"input": 1000.0, "output": 3333.0}}}}


@pytest.mark.parametrize(
    ("client", "dollars"),
    [("local:a/b", 0.0), ("openai:mine@http://x/v1", 0.43), ("openai:mine", 0.43), ("openai:other@http://x/v1", None)],
)
def test_the_cost_of_a_role(client, dollars):
    """10 + 4 bytes (é has two) and 21 are 35, so 10 tokens, and 40 written; three times, at 1000 and 3333 a million:
    (30 x 1000 + 120 x 3333) / 1e6 = 0.42996."""
    cost = module._cost(client, PRICES, REQUESTS, 3, 2)
    expected = {"items": 2, "calls": 6, "tokens read": 30, "tokens written": 120}
    assert cost == expected | {"dollars": dollars}


def test_how_many_prompts_pairs_and_candidates_a_system_has():
    scale = load_scale("pocket", ["feedback.share=0.25"])
    third = System("x", "brio", 1, rounds=10)
    assert module._prompts(scale, third, 100) == 8  # a quarter of 33
    assert module._prompts(scale, third, 3) == 1
    assert (module._rounds(third), module._rounds(by_name("ft")), module._rounds(by_name("warm-3"))) == (10, 0, 0)
    assert module._pairs(scale, third, 100) == 80
    assert module._pairs(scale, by_name("brio-dpo"), 100) == 25 * 2
    assert module._sampled(scale, third, 100) == 80 * 6
    assert module._sampled(scale, by_name("ft"), 100) == 0
    assert module._imitated(scale, 10) == 3 * (10 + 3 + 6) * 2 + 3 * (10 + 3 + 6)
    assert module._model(JudgeTable(judge="x")) == "x"
    assert module._model(JudgeTable(judge="x", options={"client": "local:y"})) == "x (local:y)"
    assert len(module._prompt().text) == 100


def test_the_forecast_as_text():
    roles = {
        "teacher": {"items": 1234, "calls": 0, "tokens read": 0, "tokens written": 0, "dollars": 0.0},
        "critic": {"items": 5, "calls": 1000, "tokens read": 2000, "tokens written": 3000, "dollars": 1234.5},
        "outside": {"items": 5, "calls": 7, "tokens read": 8, "tokens written": 9, "dollars": None},
    }
    forecast = {
        **{
            "scale": "mine",
            "seeds": 2,
            "cells": 9,
            "about": "Small.",
            "models": {"student": "x"},
            "data": {"test": "3"},
        },
        **{"student": {"lines measured": 1500}, "pairs for people": 6, "roles": roles, "dollars": 12.5, "limit": {}},
    }
    assert as_text(forecast).splitlines() == [
        *("Scale 'mine', 2 seeds, 9 cells. Small.", "", "Models", "  student        x", ""),
        *("Data", "  test           3", "", "The student's work", "  lines measured              1,500", ""),
        "Questions, at most (pairs are asked in both orders; people would see 6 pairs)",
        "  teacher         1,234 items, computed here: no calls",
        "  critic              5 items, 1,000 calls, 2,000 tokens read, 3,000 written, $1,234.50",
        "  outside             5 items, 7 calls, 8 tokens read, 9 written, price unknown",
        "",
        "Money: at most about $12.50.",
    ]
    text = as_text(forecast | {"dollars": None, "limit": {"max_calls": 5, "max_cost": 2.5}})
    assert text.endswith(
        "Money: unknown, since a model has no price in prices.toml (not the same as free).\n"
        "Limits: max_calls 5, max_cost 2.5."
    )
