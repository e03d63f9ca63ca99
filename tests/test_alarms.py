"""The monitor's alarms one by one, by hand: on which side of its limit each is raised, and what it says."""

import math

import numpy as np
import pytest

from humor_env.agents.session import alarms
from humor_env.agents.session.alarms import Alarm
from humor_env.agents.session.line_features import (
    character_parts,
    is_significantly_above_zero,
    is_significantly_more,
    mean_known,
    usual_parts,
)
from humor_env.agents.session.monitor_config import MonitorConfig
from humor_env.types import Joke, Prompt

FIRST = {
    "length": 100.0,
    "distinct_2": 0.8,
    "different_lines": 1.0,
    "commonest_share": 0.1,
    "teacher_overlap": 0.1,
    "prompt_overlap": 0.1,
    "emoji": 0.0,
    "laughter": 0.0,
    "explaining": 0.0,
}
PROMPT = Prompt("p", "The soup was cold.")
LEVEL = 0.95


def raised(prompts=200, has_pairs=True, config=None, first=FIRST, **now):
    found = alarms.of_properties(config or MonitorConfig(), {**first, **now}, first, prompts, has_pairs=has_pairs)
    return [alarm.limit for alarm in found]


def jokes(*texts):
    return [Joke(PROMPT, text) for text in texts]


@pytest.mark.parametrize(
    ("now", "limit"),
    [
        ({"length": 151.0}, "longer"),
        ({"length": 150.0}, None),
        ({"length": 66.0}, "shorter"),
        ({"length": 68.0}, None),
        ({"distinct_2": 0.55}, "variety"),  # 0.69 of what it was
        ({"distinct_2": 0.57}, None),
        ({"different_lines": 0.69}, "variety"),
        ({"different_lines": 0.71}, None),
        ({"commonest_share": 0.51}, "commonest"),
        ({"commonest_share": 0.5}, None),
        ({"teacher_overlap": 0.36}, "teacher_overlap"),
        ({"teacher_overlap": 0.34}, None),
        ({"prompt_overlap": 0.36}, "prompt_overlap"),
        ({"emoji": 0.11}, "emoji"),
        ({"emoji": 0.1}, None),
        ({"laughter": 0.11}, "laughter"),
        ({"explaining": 0.11}, "explaining"),
    ],
)
def test_each_property_has_its_limit(now, limit):
    assert raised(**now) == ([limit] if limit else [])
    if limit:
        assert raised(**now, config=MonitorConfig(**{limit: 0})) == []  # 0 switches it off


def test_few_prompts_are_few_lines():
    """Ten of twelve lines are 83 % even if all differ: half as many again is more than all."""
    assert raised(prompts=12, commonest_share=0.9) == []
    assert raised(prompts=25, commonest_share=0.61) == ["commonest"]  # 1.5 x 10 / 25 = 0.6
    assert raised(prompts=25, commonest_share=0.59) == []


def test_lines_without_pairs_of_words_have_no_variety_of_pairs():
    assert raised(distinct_2=0.1, has_pairs=False) == []
    assert raised(different_lines=0.1, has_pairs=False) == ["variety"]


def test_what_a_property_says():
    [alarm] = alarms.of_properties(MonitorConfig(), {**FIRST, "length": 200.0}, FIRST, 200, has_pairs=True)
    assert str(alarm) == alarm.why == "lines are 2.00 times as long as at first (the limit 'longer' is 1.5)"
    [alarm] = alarms.of_properties(MonitorConfig(), {**FIRST, "emoji": 0.5}, FIRST, 200, has_pairs=True)
    assert alarm.why == "emoji rose from 0.00 to 0.50 (the limit 'emoji' is 0.1)"
    [alarm] = alarms.of_properties(MonitorConfig(), {**FIRST, "commonest_share": 0.75}, FIRST, 200, has_pairs=True)
    assert alarm.why == "ten lines are 75% of all (the limit 'commonest' is 0.5)"
    assert not alarm.only_warns
    assert Alarm("same_word", "x").only_warns and Alarm("same_frame", "x").only_warns


def test_the_word_that_rose_most_is_named():
    lines = jokes("a glacier came", "the glacier went", "a glacier slept", "my soup froze", "a penguin left")
    [alarm] = alarms.of_same_word(MonitorConfig(), lines, {"glacier": 0.2, "soup": 0.2})
    assert alarm.limit == "same_word"
    assert alarm.why.startswith(
        "the word 'glacier' is in 60% of the lines (20% at first; the limit 'same_word' is 0.3)"
    )
    assert alarms.of_same_word(MonitorConfig(), lines, {"glacier": 0.3}) == []  # it rose by the limit, not past it
    assert alarms.of_same_word(MonitorConfig(same_word=0), lines, {}) == []
    assert alarms.of_same_word(MonitorConfig(), [], {}) == []


def test_lift_must_have_been_there_and_be_lost():
    first = {"training": [0.4, 0.5, 0.6, 0.5], "held_out": [-0.1, 0.1, -0.1, 0.1]}
    now = {"training": [0.1, 0.1, 0.2, 0.1], "held_out": [-0.5, -0.5, -0.5, -0.5]}
    [alarm] = alarms.of_lift(MonitorConfig(), now, first, LEVEL)  # the held-out critic saw no gain at first
    assert alarm.why == (
        "by the training critic the lines gain 0.125 by their own prompt, 0.500 at first (the limit 'lift' is 0.5)"
    )
    half = {"training": [0.2, 0.25, 0.3, 0.25]}
    assert alarms.of_lift(MonitorConfig(), half, first, LEVEL) == []  # exactly the share that may remain
    assert len(alarms.of_lift(MonitorConfig(lift=0.8), half, first, LEVEL)) == 1
    assert alarms.of_lift(MonitorConfig(lift=0), now, first, LEVEL) == []
    assert alarms.of_lift(MonitorConfig(), {"new": now["training"]}, first, LEVEL) == []


def rises(training, held_out):
    return {"training": np.array(training), "held_out": np.array(held_out)}


def test_a_rise_must_be_shared_in_part():
    """The limit is a quarter: of a rise by 1 the held-out critic must see 0.25."""
    rose = [0.9, 1.0, 1.1, 1.0]
    [alarm] = alarms.of_unshared(MonitorConfig(), rises(rose, [0.0, 0.1, -0.1, 0.0]), 40, LEVEL)
    assert alarm.why == (
        "since step 40 the training critic's score rose by 1.00 of its spread, the held-out critic's changed by +0.00 "
        "of its own"
    )
    assert alarms.of_unshared(MonitorConfig(), rises(rose, [0.4, 0.5, 0.4, 0.5]), 40, LEVEL) == []
    assert len(alarms.of_unshared(MonitorConfig(unshared=0.9), rises(rose, [0.4, 0.5, 0.4, 0.5]), 40, LEVEL)) == 1
    # It fell together with the training critic's: there was no rise to share.
    assert alarms.of_unshared(MonitorConfig(), rises([-1.0, -1.1, -0.9], [-2.0, -2.1, -1.9]), 40, LEVEL) == []


def test_a_habit_is_what_only_the_training_critic_pays():
    """Half of 40 lines say "glacier"; the training critic gives them 2 of its spread more."""
    lines = jokes(*(f"the glacier came {i}" if i % 2 else f"my dog left {i}" for i in range(40)))
    has = np.array([i % 2 == 1 for i in range(40)])
    noise = np.array([0.1 * (i % 5 - 2) for i in range(40)])
    training = np.where(has, 2.0, 0.0) + noise
    habits = lambda held_out, words=None, config=None: alarms.of_habits(  # noqa: E731
        config or MonitorConfig(), lines, training, held_out, words or {}, usual_parts(lines), LEVEL
    )
    [alarm] = habits(noise)
    assert alarm.limit == "habit"
    assert "is in 50% of the lines (0% at first): the training critic scores them 2.00 of its spread above" in alarm.why
    assert habits(training) == []  # the held-out critic likes them as well
    assert habits(noise, dict.fromkeys(("glacier", "came", "the"), 0.5)) == []  # as often as at first
    assert habits(noise, config=MonitorConfig(habit=0.6)) == []


def test_sentences_of_gap_fall_and_one_line():
    assert alarms.of_gap(30, -0.125, 0.25).why == (
        "since step 30 the held-out score fell by 0.125 while the training critic's rose by 0.250, both by more than "
        "noise"
    )
    assert alarms.of_fall(10, 0.71, -0.09).why == "the held-out score fell from 0.710 (step 10) to 0.620"
    line = alarms.of_same_line(MonitorConfig(), "x" * 90, 0.125, 0.01)
    assert (
        line.why == f"'{'x' * 60}' is the answer to 12.5% of the prompts (1.0% at first; the limit 'same_line' is 0.03)"
    )


def test_a_mean_change_is_compared_with_its_error():
    # Mean 0.5, deviation 0.5774, error 0.2887; 1.645 errors are 0.475.
    assert is_significantly_above_zero([0.0, 1.0, 0.0, 1.0], 0.95)
    assert not is_significantly_above_zero([0.0, 1.0, 0.0, 1.0], 0.96)  # 1.751 errors are 0.505
    assert is_significantly_above_zero([0.0, 1.0, math.nan, 0.0, 1.0], 0.95)
    assert not is_significantly_above_zero([5.0], 0.95)
    assert is_significantly_above_zero([5.0, 5.0], 0.95)
    assert not is_significantly_above_zero([0.0, 0.0], 0.95)


def test_lines_with_a_feature_against_those_without():
    has = np.array([True] * 3 + [False] * 3)
    # Means 2 and 0, variances 1: error sqrt(2 / 3) = 0.816, 4 degrees of freedom, t 2.132 at 95 %: 1.74 is needed.
    assert is_significantly_more(np.array([1.0, 2.0, 3.0, -1.0, 0.0, 1.0]), has, 0.95)
    assert not is_significantly_more(np.array([0.7, 1.7, 2.7, -1.0, 0.0, 1.0]), has, 0.95)
    assert not is_significantly_more(np.array([1.0, 2.0, math.nan, -1.0, 0.0, 1.0]), has, 0.95)  # two are too few
    assert is_significantly_more(np.array([1.0, 1.0, 1.0, 0.0, 0.0, 0.0]), has, 0.95)
    assert not is_significantly_more(np.zeros(6), has, 0.95)


def test_characters_by_their_share_of_a_line():
    parts = character_parts(jokes("Aa b", ""))
    assert {c: part.tolist() for c, part in parts.items()} == {"a": [0.5, 0.0], "b": [0.25, 0.0]}
    assert mean_known([0.25, math.nan, 0.75]) == 0.5
    assert math.isnan(mean_known([math.nan]))
