"""One critic for many callers: what waits is judged together, and each caller gets the answer to its own line."""

import threading
import time

import pytest

from humor_env.episodes.episode import Task
from humor_env.experiments.sharing import shared_critic
from humor_env.experiments.sharing.shared_critic import SharedCritic
from humor_env.prompts import load_prompts
from humor_env.types import Joke, Judgement

PROMPT = next(iter(load_prompts("pocket").split("train")))


class Slow:
    """A critic whose first call waits until it is let go, so that more lines come together meanwhile."""

    def __init__(self):
        self.calls, self.begun, self.go = [], threading.Event(), threading.Event()

    def __call__(self, jokes):
        self.calls.append([j.text for j in jokes])
        self.begun.set()
        assert self.go.wait(30)
        if any(j.text == "raise" for j in jokes):
            raise RuntimeError("no judge today")
        return [Judgement("slow", len(j.text) / 100) for j in jokes]


def joke(text):
    return Joke(PROMPT, text)


@pytest.fixture
def slow():
    critic = Slow()
    yield critic
    critic.go.set()


def test_lines_that_wait_are_judged_in_one_call_in_their_order(slow):
    shared = SharedCritic(Task("pocket", slow))
    first = shared.judge(joke("first"))
    assert slow.begun.wait(30)
    others = [shared.judge(joke("x" * n)) for n in range(1, 6)]
    slow.go.set()
    assert first.result(30).score == 0.05
    assert [f.result(30).score for f in others] == [0.01, 0.02, 0.03, 0.04, 0.05]
    assert slow.calls == [["first"], ["x" * n for n in range(1, 6)]]


def test_no_call_has_more_lines_than_allowed(slow, monkeypatch):
    monkeypatch.setattr(shared_critic, "AT_ONCE", 2)
    shared = SharedCritic(Task("pocket", slow))
    first = shared.judge(joke("first"))
    assert slow.begun.wait(30)
    others = [shared.judge(joke("x" * n)) for n in range(1, 6)]
    slow.go.set()
    assert [f.result(30).score for f in [first, *others]] == [0.05, 0.01, 0.02, 0.03, 0.04, 0.05]
    assert [len(call) for call in slow.calls] == [1, 2, 2, 1]


def test_who_gave_up_waiting_is_not_judged(slow):
    shared = SharedCritic(Task("pocket", slow))
    first = shared.judge(joke("first"))
    assert slow.begun.wait(30)
    gone, there = shared.judge(joke("gone")), shared.judge(joke("there"))
    assert gone.cancel()
    slow.go.set()
    assert first.result(30) and there.result(30).score == 0.05
    assert slow.calls == [["first"], ["there"]]


def test_a_critic_that_raises_fails_those_lines_and_no_later_ones(slow):
    slow.go.set()
    shared = SharedCritic(Task("pocket", slow))
    with pytest.raises(RuntimeError, match="no judge today"):
        shared.judge(joke("raise")).result(30)
    until = time.monotonic() + 30
    while time.monotonic() < until:
        if shared.judge(joke("fine")).result(30).score == 0.04:
            return
    pytest.fail("the critic's thread ended")
