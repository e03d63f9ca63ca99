"""The drift monitor's alarms on one answer for all: lines, words, frames, and lines that ignore their prompt."""

import dataclasses
import json
import re

import numpy as np
import pytest
from monitors import MANY, Scripted, checks, scripted
from tiny import prompts

from humor_env.agents.session.monitor import Monitor, MonitorConfig
from humor_env.errors import InvalidOption
from humor_env.types import Joke, Judgement


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
