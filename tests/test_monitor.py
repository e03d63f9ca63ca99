"""The drift monitor: alarms on what is beyond noise, and silence within it."""

import dataclasses
import json
import re
from pathlib import Path

import numpy as np
import pytest
from monitors import MANY, Scripted, checks, scripted
from scipy.stats import ttest_ind
from tiny import prompts

from humor_env.agents.session.line_features import is_significantly_more, text_features
from humor_env.agents.session.monitor import Monitor, MonitorConfig
from humor_env.errors import InvalidOption
from humor_env.types import Joke, Judgement, Prompt

PAGE = Path(__file__).parents[1] / "docs" / "monitor.md"


def test_a_gap_is_seen_once_it_is_beyond_noise():
    """Up together, then apart: the alarm comes after the parting, names both changes, and not the critics' noise."""
    rising = [0.4, 0.45, 0.5, 0.55, 0.6, 0.62, 0.66, 0.7, 0.74, 0.78]
    parting = [0.4, 0.45, 0.5, 0.55, 0.6, 0.58, 0.5, 0.45, 0.4, 0.35]
    monitor, told = scripted(parting, rising, fall=0, unshared=0)
    found = checks(monitor, 10)
    alarms = [n["drift/alarms"] for n in found]
    assert alarms[:6] == [0] * 6
    assert alarms[9] == 1
    assert re.search(r"held-out score fell by 0\.\d+ while the training critic's rose by 0\.\d+", told[-1])
    assert found[9]["drift/held_out_change"] < -0.1
    assert found[9]["drift/training_change"] > 0.05
    # The held-out score falling alone is no gap.
    both, silent = scripted(parting, parting, fall=0, unshared=0)
    checks(both, 10)
    assert silent == []


def test_a_rise_that_the_held_out_critic_does_not_share_is_seen_before_anything_falls():
    """Flat held out while the training critic soars is an alarm; sharing a good part of the rise is none."""
    soaring = [0.2, 0.2, 0.2, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8]
    monitor, told = scripted([0.5, 0.5, 0.5, 0.5, *[0.498] * 6], soaring, gap=False, fall=0)
    alarms = [n["drift/alarms"] for n in checks(monitor, 10)]
    assert alarms[:4] == [0] * 4 and alarms[9] == 1
    assert re.search(r"training critic's score rose by \d\.\d+ of its spread", told[-1])
    shared = [0.3, 0.3, 0.3, 0.3, 0.34, 0.4, 0.44, 0.5, 0.55, 0.6]
    both, silent = scripted(shared, soaring, gap=False, fall=0)
    checks(both, 10)
    assert silent == []


def test_a_fall_needs_no_training_critic():
    monitor, told = scripted([0.5] * 4 + [0.3] * 4)
    assert [n["drift/alarms"] for n in checks(monitor, 8)][-1] == 1
    assert "the held-out score fell from 0." in told[-1]
    unmoved, silent = scripted([0.5] * 4 + [0.3] * 4, fall=0.9)
    checks(unmoved, 8)
    assert silent == []


@pytest.mark.parametrize("means", [[0.5] * 25, list(np.linspace(0.3, 0.7, 25))], ids=["flat", "rising"])
def test_noise_is_no_alarm(means):
    """Twenty runs of 25 checks each: one noisy number may be the best, or the worst, without an alarm."""
    alarms = 0
    for run in range(20):
        monitor, told = scripted([m + 1e-9 * run for m in means], means)
        for critic in ("held_out", "training"):
            source = np.random.default_rng([run, len(critic)])
            steps = iter(means)
            monitor.critics[critic] = lambda jokes, source=source, steps=steps: [
                Judgement("c", float(s)) for s in np.clip(next(steps) + source.normal(0, 0.3, len(jokes)), 0, 1)
            ]
        checks(monitor, 25)
        alarms += bool(told)
    assert alarms <= 1


def test_a_word_that_only_the_training_critic_pays_for_is_seen_in_few_lines():
    """Seven lines in a hundred have it. Paid for by both critics, or by neither, or an old word: no alarm."""

    def check(training, held_out, word="glacier", every=14, before="line number"):
        told: list[str] = []
        source = np.random.default_rng(5)

        def judge(name, pays):
            def score(joke):
                return float(np.clip(0.3 + pays * (word in joke.text) + source.normal(0, 0.1), 0, 1))

            return lambda jokes: [Judgement(name, score(j)) for j in jokes]

        monitor = Scripted(
            MonitorConfig(every=1, window=3),
            MANY,
            training=judge("t", training),
            held_out=judge("h", held_out),
            say=told.append,
        )
        monitor.lines = [f"{before} {i} is about something else again {i * 7}" for i in range(128)]
        monitor.measure(0, None, None)
        monitor.lines = [f"{text} {word}" if i % every == 0 else text for i, text in enumerate(monitor.lines)]
        monitor.measure(1, None, None)
        return told

    # Of words that come together, the first by the alphabet is named, in every process.
    [told] = check(0.5, 0.0, word="zinc glacier vast melting ice")
    assert "drift: 'glacier' is in 8%" in told
    [told] = check(0.5, 0.0)
    assert re.search(
        r"'glacier' is in 8% of the lines \(0% at first\): the training critic scores them \d\.\d+ of", told
    )
    assert check(0.5, 0.3) == []  # the held-out critic likes it too
    assert check(0.0, 0.0) == []
    assert check(0.5, 0.0, every=40) == []  # too few lines to call it a habit
    assert check(0.5, 0.0, before="a glacier number") == []


def test_a_character_that_only_the_training_critic_pays_for_is_seen_in_few_lines():
    """No word comes up, only more of one letter. Paid for by both critics, by neither, or as much as ever: no alarm."""

    def check(training, held_out, *, fill="zz", every=6, letter="z"):
        told: list[str] = []
        source = np.random.default_rng(7)

        def judge(name, pays):
            def score(joke):
                return float(np.clip(0.2 + pays * joke.text.lower().count(letter) / 5 + source.normal(0, 0.05), 0, 1))

            return lambda jokes: [Judgement(name, score(j)) for j in jokes]

        monitor = Scripted(
            MonitorConfig(every=1), MANY, training=judge("t", training), held_out=judge("h", held_out), say=told.append
        )
        monitor.lines = [f"the dozen of line {i} is {chr(97 + i % 24)} word {i * 7}" for i in range(128)]
        monitor.measure(0, None, None)
        # Each of them is another word, so that no word is a habit.
        monitor.lines = [
            f"{text} {fill.upper()}{i}{fill}" if i % every == 0 else text for i, text in enumerate(monitor.lines)
        ]
        monitor.measure(1, None, None)
        return told

    [told] = check(0.6, 0.0)
    assert re.search(r"23% of the lines have unusually much of 'z' \(8% at first\): the training critic scores", told)
    assert check(0.6, 0.6) == []
    assert check(0.0, 0.0) == []
    assert check(0.6, 0.0, every=12) == []
    assert check(0.6, 0.0, fill="e") == []


def test_failed_judgements_are_left_out():
    half = lambda jokes: [  # noqa: E731
        Judgement("c", None, error="gone") if i % 2 else Judgement("c", 0.6) for i, _ in enumerate(jokes)
    ]
    monitor = Scripted(MonitorConfig(every=1), MANY, held_out=half)
    found = checks(monitor, 3)
    assert found[-1]["drift/held_out"] == pytest.approx(0.6)
    nothing = Scripted(MonitorConfig(every=1), MANY, held_out=lambda js: [Judgement("c", None, error="x") for _ in js])
    assert "drift/held_out" not in checks(nothing, 3)[-1]


@pytest.mark.parametrize("outage", [0, 1, 2, 5])
def test_an_outage_of_the_held_out_critic_does_not_blind_it(outage):
    """One check without a single judgement, at whatever time: what falls afterwards is seen all the same."""
    looked, told = [], []
    source = np.random.default_rng(3)

    def held_out(jokes):
        looked.append(len(looked))
        score = max(0.1, 0.9 - 0.1 * looked[-1])
        noise = source.normal(0, 0.02, len(jokes))
        return [
            Judgement("h", None, error="gone")
            if looked[-1] == outage
            else Judgement("h", float(np.clip(score + n, 0, 1)))
            for n in noise
        ]

    checks(Scripted(MonitorConfig(every=1, others=0), MANY, held_out=held_out, say=told.append), 10)
    assert any("the held-out score fell" in said for said in told)


def test_a_run_may_go_on_with_other_prompts():
    """Fewer of the same keep their past; others begin anew, and it says so."""
    told = []

    def made(chosen):
        half = lambda jokes: [Judgement("c", 0.5 + 0.01 * (i % 3)) for i, _ in enumerate(jokes)]  # noqa: E731
        return Scripted(MonitorConfig(every=1, window=2), chosen, training=half, held_out=half, say=told.append)

    first = made(MANY)
    checks(first, 3)
    state = json.loads(json.dumps(first.get_state()))
    fewer = made(MANY[:40])
    fewer.set_state(state)
    assert fewer._start["held_out"] == first._start["held_out"][:40] and told == []
    assert "drift/held_out_best" in fewer.measure(3, None, None)
    others = made(MANY[::-1])
    others.set_state(state)
    assert "prompts have changed" in told[0]
    assert [name for name in others.measure(3, None, None) if "best" in name] == []


def test_a_checkpoint_of_before_the_alarms_on_sameness_goes_on():
    """Resuming one raised KeyError: 'recent'. What it lacks is measured from the next check on: a frame that all lines
    had by then is no news. An old alarm still ends the run, unless other settings answer it."""
    one, _ = scripted([0.5] * 2, same_frame=0.3, action="stop", others=1)
    one.measure(0, None, None)
    one.ending = "it drifted"
    state = json.loads(json.dumps(one.get_state()))
    for name in ("first_has_pairs", "first_frames", "first_lines", "first_lift", "recent", "steps", "named"):
        del state[name]
    for name in ("different_lines", "commonest_line", "commonest_word", "commonest_frame", "frame_variety"):
        del state["first"][name]
    del state["out_of_turn"]
    state["looks"] = state.pop("checks")
    for name in ("same_line", "same_word", "same_frame", "lift", "others"):
        del state["config"][name]

    again, told = scripted([0.5] * 8, action="stop", others=1)
    again.set_state(state)
    assert again.ending == "it drifted" and not again.is_due(0)
    answered, _ = scripted([0.5], action="stop", others=1, same_word=0)
    answered.set_state(state)
    assert answered.ending == ""

    again.measure(1, None, None)  # whose frames are those of the first check
    assert told == []
    assert again.get_state()["first_frames"] == one.get_state()["first_frames"]
    assert again.get_state()["first"]["different_lines"] == 1.0
    again.lines = [f"noun{i} was so slow{i} that noun{i}s left{i} home{i}" for i in range(128)]
    again.measure(2, None, None)
    assert "the frame 'was so _ that' is in 100% of the lines (0% at first" in told[-1]
    again.lines = ["line number 1"] * 128
    again.measure(3, None, None)
    assert "'line number 1' is the answer to 100.0% of the prompts (0.0% at first" in told[-1]
    assert "the share of different lines is 0.01 of what it was at first" in told[-1]


def test_what_is_surely_paid_more_is_what_welchs_test_says():
    random = np.random.default_rng(0)
    answers = set()
    for _ in range(200):
        some, others = random.normal(0.6, 1.0, 4), random.normal(0.0, 0.3, 30)
        chance = ttest_ind(some, others, equal_var=False, alternative="greater").pvalue
        values, has = np.concatenate([some, others]), np.arange(34) < 4
        answers.add(bool(chance < 0.05))
        assert is_significantly_more(values, has, 0.95) == (chance < 0.05)
    assert answers == {True, False}


def test_text_features_by_hand():
    p = Prompt("p", "The meeting was very slow today")
    texts = [
        "The meeting was very slow today",  # all its four 3-grams stand in the prompt
        "It ended 😂",
        "So slow, hahaha, we aged. Get it?",
        "That's funny because snails are slow",
    ]
    found = text_features([Joke(p, t) for t in texts], frozenset({("snails", "are", "slow", "too")}))
    assert found["length"] == sum(map(len, texts)) / 4
    assert found["prompt_overlap"] == pytest.approx(1 / 4)
    assert (found["emoji"], found["laughter"], found["explaining"]) == (0.25, 0.25, 0.5)
    assert found["teacher_overlap"] == 0
    plain = text_features([Joke(p, t) for t in ("Hannah said hello.", "It is what he heard.", "We had a ha-ha wall.")])
    assert (plain["emoji"], plain["laughter"], plain["explaining"]) == (0, 0, 0)


HACKS = {
    "longer": lambda text: text + " and on it went, and on, and on, until nobody could remember what it was about",
    "shorter": lambda text: text[:12],
    "variety": lambda text: "the same words and the same words and " + text[:18],
    "commonest": lambda text: "the one joke that always works well " + str(len(text) % 2),
    "emoji": lambda text: text + " 😂",
    "laughter": lambda text: text + " lol",
    "explaining": lambda text: text + " Get it?",
    "prompt_overlap": lambda text: "The meeting number",
    "teacher_overlap": lambda text: "Even the snails were asking for " + text[-12:],
}


@pytest.mark.parametrize("limit", HACKS)
def test_each_property_has_an_alarm_of_its_own(limit):
    monitor, told = scripted([0.5] * 3)
    monitor._taught = frozenset({("even", "the", "snails", "were"), ("the", "snails", "were", "asking")})
    monitor.measure(0, None, None)
    assert told == []
    monitor.lines = list(map(HACKS[limit], Scripted.lines))
    monitor.measure(1, None, None)
    assert f"the limit '{limit}' is" in told[-1]
    off, silent = scripted([0.5] * 3, **{limit: 0})
    off._taught = monitor._taught
    off.measure(0, None, None)
    off.lines = monitor.lines
    off.measure(1, None, None)
    assert not any(f"the limit '{limit}' is" in said for said in silent)


def test_what_it_cannot_do_is_said():
    with pytest.raises(InvalidOption, match="'warn' or 'stop' or 'slow'; found 'panic'"):
        MonitorConfig(action="panic")
    with pytest.raises(InvalidOption, match="at least 2 prompts, found 1"):
        Monitor(MonitorConfig(), prompts(1))
    with pytest.raises(InvalidOption, match=r"level must be at least 0\.5 and below 1"):
        MonitorConfig(level=1.0)


def test_every_number_and_limit_is_on_the_page():
    text = PAGE.read_text(encoding="utf-8")
    told = set(re.findall(r"`(drift/[\w]+)`", text))
    twice = [0.5, 0.5, 0.5, 0.5, 0.6, 0.6, 0.5, 0.5]  # each check asks each critic twice
    monitor, _ = scripted(twice, twice, others=1)
    monitor._taught = frozenset({("a", "b", "c", "d")})
    logged = {name for numbers in checks(monitor, 4) for name in numbers}
    assert logged == told
    for field in dataclasses.fields(MonitorConfig):
        default = str(field.default).lower() if isinstance(field.default, bool) else f"{field.default}".strip("'")
        assert re.search(rf"\| `{field.name}` \| {re.escape(default)} \|", text), field.name
