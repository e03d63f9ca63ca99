"""The nouns: what may not be said, and what two of them make together."""

from __future__ import annotations

import math

import numpy as np
import pytest

from humor_env.errors import ScoreError
from humor_env.shared.streams import generator, stream_seed
from humor_env.types import (
    NO_USAGE,
    Critic,
    Demonstration,
    Joke,
    Judgement,
    Preference,
    Prompt,
    Usage,
    Verdict,
    critic_name,
)

P = Prompt("p", "It was slow.")


def test_what_is_meant_where_nothing_is_said() -> None:
    assert (P.task, P.split, P.extra) == ("paraphrase", "train", {})
    assert (Joke(P, "x").author, Joke(P, "x").stop_reason) == ("student", None)
    assert Usage(0, 0, 0, 0, 0.0) == NO_USAGE
    sound = Judgement("c", 0.5)
    assert (sound.parts, sound.reason, sound.error, sound.usage, sound.failed) == ({}, "", None, NO_USAGE, False)
    verdict = Verdict("j", 0.5)
    assert (verdict.tie, verdict.reason, verdict.flipped, verdict.error) == (0.0, "", None, None)
    assert (verdict.usage, verdict.failed) == (NO_USAGE, False)
    assert (Demonstration(P, "x", "t").licence, Demonstration(P, "x", "t").score) == ("unknown", None)


def test_usage_adds_up_and_an_unknown_price_stays_unknown() -> None:
    one, two = Usage(1, 10, 100, 1000, 0.25), Usage(2, 20, 200, 2000, 0.5)
    assert one + two == Usage(3, 30, 300, 3000, 0.75)
    for unknown in (one + Usage(1, 1, 1, 1, None), Usage(1, 1, 1, 1, None) + one):
        assert unknown == Usage(2, 11, 101, 1001, None)
    assert one + NO_USAGE == one


@pytest.mark.parametrize("number", [-0.001, 1.001, math.nan, math.inf, -math.inf])
def test_a_share_lies_between_0_and_1(number: float) -> None:
    with pytest.raises(ScoreError, match="a judgement's score must be in"):
        Judgement("c", number)
    with pytest.raises(ScoreError, match="a verdict's probability must be in"):
        Verdict("j", number)
    with pytest.raises(ScoreError, match="a verdict's tie share must be in"):
        Verdict("j", 0.5, tie=number)
    with pytest.raises(ScoreError, match="a preference's probability must be in"):
        Preference(P, "a", "b", number, "people")


@pytest.mark.parametrize("value", ["0.5", [0.5], {}, np.array([0.1, 0.2]), 10**400])
def test_a_share_that_is_no_number_is_a_sentence(value: object) -> None:
    """It was a TypeError of the math module."""
    with pytest.raises(ScoreError, match=r"a judgement's score must be in \[0, 1\], found"):
        Judgement("c", value)  # type: ignore[arg-type]
    with pytest.raises(ScoreError, match=r"a verdict's probability must be in \[0, 1\], found"):
        Verdict("j", value)  # type: ignore[arg-type]


@pytest.mark.parametrize("number", [0.0, 1.0, 0, 1, True, np.float32(0.5), np.int64(1)])
def test_the_ends_and_other_kinds_of_numbers_become_floats(number: float) -> None:
    found = (
        *(Judgement("c", number).score, Verdict("j", number).probability, Verdict("j", 0.5, tie=number).tie),
        Preference(P, "a", "b", number, "people").probability,
    )
    assert all(type(value) is float and value == float(number) for value in found)


def test_either_a_number_or_an_error() -> None:
    assert Judgement("c", None, error="away").failed
    assert Verdict("j", None, error="away").failed
    for make in (Judgement, Verdict):
        with pytest.raises(ScoreError, match="either a"):
            make("x", None)
        with pytest.raises(ScoreError, match="either a"):
            make("x", 0.5, error="away")


def test_what_a_critic_is_called() -> None:
    class Named:
        name = "mine"

    class Unnamed:
        name = ""

        def __call__(self, jokes: list[Joke]) -> list[Judgement]:
            return []

    class Numbered:
        name = 7

    def plain(jokes: list[Joke]) -> list[Judgement]:
        return []

    assert critic_name(Named()) == "mine"
    assert critic_name(Unnamed()) == "Unnamed"
    assert critic_name(Numbered()) == "Numbered"
    assert critic_name(plain) == "plain"
    assert isinstance(plain, Critic) and not isinstance(Named(), Critic)


def test_streams_are_told_apart_by_seed_name_and_index_and_never_by_their_sum() -> None:
    assert stream_seed(1, "a", 2) == stream_seed(1, "a", 2)
    seeds = [stream_seed(*of) for of in ((0, "a"), (1, "a"), (0, "b"), (0, "a", 1), (1, "a", 2), (2, "a", 1))]
    seeds += [stream_seed(1, "1", 1), stream_seed(11, "", 1), stream_seed(1, "", "11")]
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= seed < 2**63 for seed in seeds)
    # The top bit is used up, and the lowest one counts: half of many seeds are odd, half are above 2**62.
    many = [stream_seed(0, "x", i) for i in range(400)]
    assert 150 < sum(seed % 2 for seed in many) < 250
    assert 150 < sum(seed >= 2**62 for seed in many) < 250
    assert stream_seed(0, "a") == stream_seed(0, "a", 0)
    assert generator(3, "a", 1).integers(10**9) == generator(3, "a", 1).integers(10**9)
    assert generator(3, "a").integers(10**9) == generator(3, "a", 0).integers(10**9)
    assert generator(3, "a", 1).integers(10**9) != generator(3, "a", 2).integers(10**9)
