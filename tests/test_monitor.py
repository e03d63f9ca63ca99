"""The drift monitor: alarms on what is beyond noise, silence within it, and what each action does."""

import dataclasses
import json
import re
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import ttest_ind
from tiny import letters_critic, prompts, student, vector_env

from humor_env.agents import brio_dpo, ppo, sft
from humor_env.agents.feedback.pairs import CriticAsJudge, PairConfig
from humor_env.agents.session.checkpoint import CheckpointStore
from humor_env.agents.session.limits import RunControl
from humor_env.agents.session.line_features import is_significantly_more, text_features
from humor_env.agents.session.log import RunLog
from humor_env.agents.session.monitor import Monitor, MonitorConfig
from humor_env.agents.student.sampling import Sampling
from humor_env.errors import InvalidOption
from humor_env.types import Demonstration, Joke, Judgement, Prompt

PAGE = Path(__file__).parents[1] / "docs" / "monitor.md"
SHORT = Sampling(max_new_tokens=8)
MANY = prompts(128)


class Scripted(Monitor):
    """Fed with each check's lines and scores instead of a student's."""

    lines: list[str] = [f"line number {i} is about something else again {i * 7}" for i in range(128)]

    def _written(self, student, adapter):
        return [Joke(p, text) for p, text in zip(self.prompts, self.lines, strict=False)]


def scripted(held_out, training=None, **settings):
    """A monitor whose critics give, check by check, a mean with noise of 0.3 around it."""
    told = []

    def critic(name, means):
        steps, source = iter(means), np.random.default_rng(sum(map(ord, name)))
        return lambda jokes: [
            Judgement(name, float(s)) for s in np.clip(next(steps) + source.normal(0, 0.3, len(jokes)), 0, 1)
        ]

    monitor = Scripted(
        MonitorConfig(**({"every": 1, "action": "warn", "others": 0} | settings)),
        MANY,
        held_out=critic("held-out", held_out),
        training=None if training is None else critic("training", training),
        say=told.append,
    )
    return monitor, told


def checks(monitor, count):
    return [monitor.measure(step, None, None) for step in range(count)]


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


# One answer for all


class Words(Monitor):
    """Answers in one word, and one of them is given to more and more prompts."""

    share = 0.0

    def __init__(self, *rest, **more):
        super().__init__(*rest, **more)
        self.source, self.told_first = np.random.default_rng(1), []

    def answers(self, count):
        return ["hair" if at < self.share else f"word{at:.4f}" for at in self.source.random(count)]

    def _written(self, student, adapter):
        return [Joke(p, text) for p, text in zip(self.prompts, self.answers(len(self.prompts)), strict=True)]


def collapse(shares, *, every=10, batch=256, seed=1, **settings):
    """The step at which it rings first, what it says then, and what share of the answers that was."""
    told = []
    monitor = Words(MonitorConfig(every=every, **settings), MANY, say=told.append)
    monitor.source = np.random.default_rng(seed)
    asked = prompts(2 * batch)
    monitor.share = shares[0]
    monitor.measure(0, None, None)
    for step, monitor.share in enumerate(shares, 1):
        first = step % 2 * batch
        jokes = [Joke(p, t) for p, t in zip(asked[first : first + batch], monitor.answers(batch), strict=True)]
        monitor.notice(jokes)
        if monitor.is_due(step):
            monitor.measure(step, None, None)
            if told:
                return step, told[0], monitor.share
    return None, "", monitor.share


def test_one_answer_for_all_rings_before_it_is_five_in_a_hundred():
    """As in the trial on headlines: one word, from 1 % of the answers to all of them within twenty steps. No check is
    due before step 10, when it is a tenth of all; distinct-2 is 0 from the first check. In the middle of nine runs."""
    growing = [min(1.0, 0.01 * 1.26**step) for step in range(25)]
    runs = [collapse(growing, seed=seed) for seed in range(9)]
    shares = sorted(share for _, _, share in runs)
    assert shares[4] < 0.05 and shares[-1] < 0.12, shares
    assert all(re.search(r"'hair' is the answer to \d+\.\d% of the prompts", said) for _, said, _ in runs)
    assert collapse(growing, same_line=0)[0] == 20, "and then by the share of different lines"


def test_a_favourite_that_does_not_grow_is_no_alarm():
    """People answer with "hair" too, in one of seventy headlines. Nine runs of sixty steps."""
    alarms = [collapse([share] * 60, seed=seed)[1] for share in (0.0, 0.013, 0.1) for seed in range(3)]
    assert alarms == [""] * 9


def test_what_calls_for_a_look_does_it_once_and_for_the_latest_line_of_each_prompt():
    told = []
    monitor = Words(MonitorConfig(every=100), MANY, say=told.append)
    monitor.measure(0, None, None)
    monitor.notice([Joke(p, f"line {i}") for i, p in enumerate(prompts(100))])
    same = [Joke(p, "hair") for p in prompts(40)]
    monitor.notice([Joke(prompts(1)[0], "hair")] * 500)  # siblings: one prompt
    assert not monitor.is_due(2)
    monitor.notice(same)
    assert monitor.is_due(3)
    monitor.measure(3, None, None)
    assert not monitor.is_due(4) and "'hair' is the answer to 17" in told[0]  # 40 of 100 prompts and 128 of the check
    monitor.notice(same)
    assert not monitor.is_due(5), "it is named already"
    monitor.notice([Joke(p, "hat") for p in prompts(100)])
    assert monitor.is_due(6)
    # A resumed run knows all of this.
    again = Words(MonitorConfig(every=100), MANY)
    again.set_state(json.loads(json.dumps(monitor.get_state())))
    assert again.is_due(6) and again._repeated([]) == monitor._repeated([]) and again._named == {"hair", "hat"}


def test_a_frame_that_most_lines_end_in_is_an_alarm():
    """The showcase: "was so _ that" in 23 % of the lines before PPO, in 94 % after; distinct-2 fell only to 0.83 of
    what it was, and nothing rang."""

    def lines(share):
        nouns = [f"noun{i}" for i in range(128)]
        framed = [f"{n} was so slow{i} that {n}s left{i} home{i}" for i, n in enumerate(nouns)]
        free = [f"Somebody{i} gave {n} his{i} watch and went home alone{i}" for i, n in enumerate(nouns)]
        return [framed[i] if i < share * 128 else free[i] for i in range(128)]

    monitor, told = scripted([0.5] * 4)
    for share in (0.23, 0.41, 0.53):
        monitor.lines = lines(share)
        monitor.measure(len(told), None, None)
    assert told == []
    monitor.lines = lines(0.94)
    found = monitor.measure(3, None, None)
    assert found["drift/commonest_frame"] == pytest.approx(0.945, abs=0.01)
    assert "the frame 'was so _ that' is in 95% of the lines (23% at first; the limit 'same_frame' is 0.3)" in told[0]
    assert "the word" not in told[0]


def test_a_word_that_most_lines_have_is_an_alarm_whatever_pays_for_it():
    monitor, told = scripted([0.5] * 2)
    monitor.measure(0, None, None)
    monitor.lines = [f"{text} penguins" if i % 3 == 0 else text for i, text in enumerate(Scripted.lines)]
    monitor.measure(1, None, None)
    assert "the word 'penguins' is in 34% of the lines (0% at first; the limit 'same_word' is 0.3)" in told[0]


@pytest.mark.parametrize("action", ["stop", "slow"])
def test_a_phrase_that_spreads_only_warns(action):
    """In all eight trials with honest critics a phrase spread while the exact score rose: to stop there was false."""
    monitor, told = scripted([0.5] * 4, action=action)
    monitor.measure(0, None, None)
    monitor.lines = [f"{text} penguins" for text in Scripted.lines]
    found = monitor.measure(1, None, None)
    assert "the word 'penguins' is in 100%" in told[0] and "learning rate" not in told[0]
    assert found["drift/alarms"] >= 1 and monitor.ending == "" and monitor.rate == 1
    # Beside a serious alarm it is told, but it is not the reason.
    monitor.lines = [f"{text} penguins haha" for text in Scripted.lines]
    monitor.measure(2, None, None)
    assert "the word 'haha'" in told[1] and "laughter" in told[1]
    if action == "stop":
        assert "laughter" in monitor.ending and "the word" not in monitor.ending
    else:
        assert monitor.rate == 0.5


def test_lines_that_no_longer_answer_their_prompt_are_an_alarm():
    """The critic reads the prompt: it pays for the prompt's number in the line. The student drops it."""
    told = []

    def reads(jokes):
        return [Judgement("r", 0.8 if j.prompt.text.split()[3] in j.text.split() else 0.2) for j in jokes]

    monitor = Scripted(MonitorConfig(every=1, others=2, same_line=0), MANY, training=reads, say=told.append)
    first = monitor.measure(0, None, None)
    assert first["drift/lift_training"] == pytest.approx(0.6, abs=0.05)
    assert monitor.measure(1, None, None)["drift/alarms"] == 0
    monitor.lines = [
        text if i % 4 == 0 else text.replace(f"number {i} ", "number ") for i, text in enumerate(Scripted.lines)
    ]
    monitor.measure(2, None, None)
    assert "by the training critic the lines gain 0.1" in told[0] and "the limit 'lift' is 0.5" in told[0]
    blind = Scripted(
        MonitorConfig(every=1), MANY, training=lambda js: [Judgement("b", 0.5) for _ in js], say=told.append
    )
    assert [n["drift/lift_training"] for n in checks(blind, 3)] == [0.0] * 3 and len(told) == 1


def test_a_cut_line_gains_nothing_from_its_prompt():
    """With other prompts it was shown as whole: a critic that stops cut lines made the lift negative."""

    class Cut(Scripted):
        def _written(self, student, adapter):
            return [dataclasses.replace(joke, stop_reason="length") for joke in super()._written(student, adapter)]

    rules = lambda jokes: [Judgement("r", float(j.stop_reason != "length")) for j in jokes]  # noqa: E731
    numbers = Cut(MonitorConfig(every=1, others=1), MANY, training=rules).measure(0, None, None)
    assert numbers["drift/lift_training"] == 0.0


def test_the_lift_costs_what_it_is_told_to():
    asked = []
    counting = lambda jokes: asked.append(len(jokes)) or [Judgement("c", 0.5) for _ in jokes]  # noqa: E731
    for others, expected in ((0, [128]), (1, [128, 128]), (3, [128, 384])):
        asked.clear()
        Scripted(MonitorConfig(every=1, others=others), MANY, held_out=counting).measure(0, None, None)
        assert asked == expected
    with pytest.raises(InvalidOption, match="others must be at least 0; found -1"):
        MonitorConfig(others=-1)


def falling(jokes):
    """The exact judge of these tests: the more of the letter e, the worse."""
    return [Judgement("exact", 1 - j.text.count("e") / max(1, len(j.text))) for j in jokes]


def run(folder, monitor, *, steps=6, log_class=RunLog):
    one = student()
    config = ppo.PPOConfig(steps=steps, batch_size=8, sampling=SHORT, checkpoint_every=2, kl_limit=1e9)
    return ppo.train(
        config,
        vector_env(8),
        one,
        log_class(folder),
        prompts=prompts(),
        checkpoints=CheckpointStore(folder / "c"),
        control=RunControl(monitor=monitor),
    )


def rows(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def make(folder, action, **settings):
    """A monitor that is alarmed at its third check, and always from then on: any line is too long."""
    monitor = Monitor(
        MonitorConfig(**({"action": action, "every": 2, "lines": 8, "commonest": 0, "variety": 0} | settings)),
        prompts(),
        training=letters_critic(),
        held_out=falling,
        sampling=SHORT,
        folder=folder,
        say=lambda _: None,
    )
    drifted, looked = monitor._drifted, []

    def from_the_third_on(numbers):
        looked.append(numbers)
        first = dict(monitor._first)
        if monitor._seen >= 2:
            monitor._first["length"] = 0.01
        found = drifted(numbers)
        monitor._first = first
        return found

    monitor._drifted = from_the_third_on
    return monitor


def test_stop_ends_the_run_saved_and_told_and_it_stays_ended(tmp_path):
    result = run(tmp_path, make(tmp_path, "stop"))
    assert (result.steps, result.stopped) == (4, False)
    assert re.match(r"the monitor saw the run drift: lines are \d+\.\d+ times as long as at first", result.why)
    assert CheckpointStore(tmp_path / "c").latest().step == 4
    seen = rows(tmp_path / "drift.jsonl")
    assert [r["step"] for r in seen] == [0, 2, 4]
    assert [[m["limit"] for m in r["marks"]] for r in seen] == [[], [], ["longer"]]
    assert seen[-1]["marks"][0]["why"] in result.why
    assert [("drift/held_out" in r) for r in rows(tmp_path / "metrics.jsonl")] == [False, True, False, True]
    again = run(tmp_path, make(tmp_path, "stop"))
    assert (again.steps, again.why) == (4, result.why)
    # Whoever examines it and finds it harmless continues.
    assert run(tmp_path, make(tmp_path, "warn")).steps == 6


def test_warn_goes_on_and_slow_learns_slower(tmp_path):
    assert run(tmp_path / "warn", make(tmp_path / "warn", "warn")).why == ""
    assert run(tmp_path / "slow", make(tmp_path / "slow", "slow", slowdown=0.25)).steps == 6
    rate = [[r["learning_rate"] for r in rows(tmp_path / name / "metrics.jsonl")] for name in ("warn", "slow")]
    assert rate[0] == [1e-3] * 6
    assert rate[1] == pytest.approx([1e-3] * 4 + [2.5e-4] * 2)
    assert [r["drift/rate"] for r in rows(tmp_path / "slow" / "drift.jsonl")] == [1, 1, 0.25, 0.0625]


def test_a_resumed_run_sees_what_the_whole_one_saw(tmp_path):
    class PullThePlug(Exception):
        pass

    class Fragile(RunLog):
        def metrics(self, step, numbers):
            super().metrics(step, numbers)
            if step == 5:
                raise PullThePlug

    def plain(folder):
        return Monitor(
            MonitorConfig(every=1, lines=8), prompts(), training=letters_critic(), held_out=falling, folder=folder
        )

    run(tmp_path / "whole", plain(tmp_path / "whole"))
    with pytest.raises(PullThePlug):
        run(tmp_path / "cut", plain(tmp_path / "cut"), log_class=Fragile)
    run(tmp_path / "cut", plain(tmp_path / "cut"))
    for name in ("drift.jsonl", "metrics.jsonl"):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "cut" / name).read_bytes()
    assert [r["step"] for r in rows(tmp_path / "cut" / "drift.jsonl")] == [0, 1, 2, 3, 4, 5, 6]


def test_imitation_and_phases_are_watched_too(tmp_path):
    def plain(folder):
        return RunControl(
            monitor=Monitor(MonitorConfig(every=2, lines=8, same_line=0), prompts(), held_out=falling, folder=folder)
        )

    lines = [Demonstration(p, text, "t") for p in prompts() for text in ("Glaciers overtook it.", "Even we slept.")]
    sft.train(sft.SFTConfig(epochs=2, batch_size=4), student(), lines, control=plain(tmp_path / "sft"))
    assert [r["step"] for r in rows(tmp_path / "sft" / "drift.jsonl")] == [0, 2, 4, 6, 8]
    pairs = PairConfig(candidates=3, sampling=SHORT, length_filter="off")
    config = brio_dpo.BRIODPOConfig(
        brio=brio_dpo.BRIOConfig(epochs=1, pairs=pairs, pairs_of="teacher", batch_size=4),
        dpo=brio_dpo.DPOConfig(epochs=2, pairs=pairs, batch_size=4),
    )
    judge = CriticAsJudge(letters_critic())
    result = brio_dpo.train(
        config, judge, student(), prompts=prompts(), demonstrations=lines, control=plain(tmp_path / "both")
    )
    steps = [r["step"] for r in rows(tmp_path / "both" / "drift.jsonl")]
    assert steps == list(range(0, result.steps + 1, 2))


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
