"""The checks must find each fault: every one is tried on something that has just that fault, and on something sound."""

import time

import gymnasium as gym
import pytest
from hypothesis import given
from hypothesis import strategies as st

from humor_env import findings as found_in
from humor_env.checks import check_critic, check_env, check_judge, check_prompts
from humor_env.env import HumorEnv
from humor_env.types import Judgement, Prompt, Verdict


def length_critic(jokes):
    return [Judgement("length", min(len(joke.text), 100) / 100) for joke in jokes]


def failed(findings):
    return {finding.name for finding in findings if not finding.ok}


def test_a_sound_critic(prompts, critic):
    for sound in (length_critic, critic):
        findings = check_critic(sound, prompts)
        assert failed(findings) == set()
        assert len(findings) == 13
    assert str(findings[0]) == "ok    length: as many judgements as jokes, for 0, 1, 2 and 16."


def short(jokes):
    return length_critic(jokes)[:2]


def backwards(jokes):
    return length_critic(jokes)[::-1]


def by_place(jokes):
    return [Judgement("place", i / len(jokes)) for i, _ in enumerate(jokes)]


def moody(jokes):
    return [Judgement("moody", time.perf_counter_ns() % 1000 / 1000) for _ in jokes]


def greedy(jokes):
    judgements = length_critic(jokes)
    jokes.sort(key=lambda joke: joke.text)
    return judgements


def ascii_only(jokes):
    for joke in jokes:
        joke.text.encode("ascii")
    return length_critic(jokes)


def utf8_only(jokes):
    for joke in jokes:
        joke.text.encode("utf-8")
    return length_critic(jokes)


def divides(jokes):
    return [Judgement("divides", 1 / (1 + len(joke.text.split())) / bool(joke.text)) for joke in jokes]


def needs_one(jokes):
    jokes[0]
    return length_critic(jokes)


def impatient(jokes):
    if any(len(joke.text) > 5000 for joke in jokes):
        raise MemoryError("too long")
    return length_critic(jokes)


@pytest.mark.parametrize(
    ("critic", "faults"),
    [
        (short, {"length", "order", "shuffling", "determinism", "input unharmed"}),
        (backwards, {"order", "shuffling"}),
        (by_place, {"order", "shuffling"}),
        (moody, {"order", "shuffling", "determinism"}),
        (greedy, {"input unharmed"}),
        (ascii_only, {"emoji", "lone surrogate", "right-to-left text", "control characters"}),
        (utf8_only, {"lone surrogate"}),
        (divides, {"length", "order", "shuffling", "determinism", "input unharmed", "empty text"}),
        (needs_one, {"length"}),
        (impatient, {"10,000 characters"}),
    ],
)
def test_each_fault_of_a_critic_is_found(prompts, critic, faults):
    assert failed(check_critic(critic, prompts)) == faults


def test_order_is_told_by_the_line_that_changed(prompts):
    [finding] = [f for f in check_critic(backwards, prompts) if f.name == "order"]
    assert "asked in another order: the line " in finding.sentence
    [finding] = [f for f in check_critic(utf8_only, prompts) if f.name == "lone surrogate"]
    assert finding.sentence.startswith("raised UnicodeEncodeError")


def test_noise_within_the_tolerance_is_allowed(prompts):
    def noisy(jokes):
        return [Judgement("noisy", 0.5 + time.perf_counter_ns() % 1000 / 1e8) for _ in jokes]

    assert failed(check_critic(noisy, prompts, tolerance=1e-4)) == set()
    assert "determinism" in failed(check_critic(noisy, prompts))


def test_declining_is_sound_raising_is_not(prompts):
    def declines(jokes):
        return [Judgement("d", None, error="no words") if not j.text.strip() else length_critic([j])[0] for j in jokes]

    findings = {finding.name: finding for finding in check_critic(declines, prompts)}
    assert failed(findings.values()) == set()
    assert findings["empty text"].sentence == "declined (no words)."


@pytest.mark.parametrize("name", ["pocket", "rules"])
def test_built_in_critics_are_sound(name):
    from humor_env import registry

    assert [str(f) for f in check_critic(registry.critics.make(name)) if not f.ok] == []


@given(st.text(max_size=80))
def test_any_text_goes_through_the_environment(text):
    env = HumorEnv(["The meeting was slow."], length_critic)
    env.reset(seed=0)
    if text in env.action_space:
        assert env.step(text)[1] == min(len(text), 100) / 100


# --- environments ---


class Clocked(HumorEnv):
    def step(self, action):
        *rest, info = super().step(action)
        return *rest, {**info, "seconds": time.perf_counter()}


class Carefree(HumorEnv):
    def step(self, action):
        if self._episode.over:
            self._episode.over = False
        return super().step(action)


class Credulous(HumorEnv):
    def step(self, action):
        return super().step(action if isinstance(action, str) else str(action))


class Hasty(HumorEnv):
    def step(self, action):
        self._episode.attempt += 1
        return super().step(action)


class Generous(HumorEnv):
    def step(self, action):
        observation, reward, *rest = super().step(action)
        return observation, 1.5 + reward, *rest


class Nameless(HumorEnv):
    def reset(self, *, seed=None, options=None):
        observation, info = super().reset(seed=seed, options=options)
        return observation, {"attempt": info["attempt"]}


class Objects(HumorEnv):
    def step(self, action):
        *rest, info = super().step(action)
        return *rest, {**info, "judgement": self.last_judgement}


class Endless(HumorEnv):
    def step(self, action):
        *rest, info = super().step(action)
        return *rest, {**info, "perplexity": float("inf")}


class Flickering(HumorEnv):
    flicker = 0.0

    def step(self, action):
        observation, reward, *rest = super().step(action)
        self.flicker += 1e-9
        return observation, max(0.0, reward - self.flicker), *rest


class Stubborn(HumorEnv):
    def reset(self, *, seed=None, options=None):
        return super().reset(seed=seed)


class Unseeded(HumorEnv):
    def reset(self, *, seed=None, options=None):
        return super().reset(options=options)


@pytest.mark.parametrize(
    ("kind", "faults"),
    [
        (HumorEnv, set()),
        (Clocked, {"repeatable", "gymnasium", "bad action"}),
        (Carefree, {"beyond the end"}),
        (Credulous, {"bad action"}),
        (Hasty, {"bad action"}),
        (Generous, {"rewards"}),
        (Nameless, {"plain infos", "picking prompts"}),
        (Objects, {"plain infos"}),
        (Endless, {"plain infos"}),
        (Flickering, {"repeatable", "gymnasium", "bad action"}),
        (Stubborn, {"picking prompts"}),
        (Unseeded, {"repeatable", "gymnasium", "bad action"}),
    ],
)
def test_each_fault_of_an_environment_is_found(prompts, kind, faults):
    assert failed(check_env(kind(prompts, length_critic, attempts=2))) == faults


def test_wrappers_are_taken_off(prompts):
    env = gym.wrappers.TimeLimit(HumorEnv(prompts, length_critic), 5)
    assert failed(check_env(env)) == set()


# Judges and prompt sets: there was `check critic` and `check env` only


def longer(pairs):
    return [Verdict("longer", len(a.text) / (len(a.text) + len(b.text)) if a.text or b.text else 0.5) for a, b in pairs]


def test_a_sound_judge():
    assert failed(check_judge(longer)) == set()
    findings = check_judge("pocket")
    assert failed(findings) == set()
    assert all(str(finding.sentence).endswith(".") for finding in findings)


def first_shown(pairs):
    return [Verdict("first", 0.7) for _ in pairs]


def first_pair(pairs):
    return [Verdict("place", (i + 1) / (len(pairs) + 1)) for i, _ in enumerate(pairs)]


def two_only(pairs):
    return longer(pairs)[:2]


def sorting(pairs):
    found = longer(pairs)
    pairs.sort(key=lambda pair: pair[0].text)
    return found


def ascii_judge(pairs):
    for a, _ in pairs:
        a.text.encode("ascii")
    return longer(pairs)


def of_words(pairs):
    return [0.5 for _ in pairs]


@pytest.mark.parametrize(
    ("judge", "expected"),
    [
        (first_shown, {"both orders", "same text"}),
        (first_pair, {"both orders", "order"}),
        (two_only, {"length"}),
        (sorting, {"input unharmed"}),
        (ascii_judge, {"emoji", "lone surrogate", "right-to-left text"}),
        (of_words, {"length", "determinism"}),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_each_fault_of_a_judge_is_found(judge, expected):
    assert expected <= failed(check_judge(judge))


def test_a_sound_prompt_set(prompts):
    findings = check_prompts(prompts)
    assert failed(findings) == set()
    assert failed(check_prompts("everyday")) == set()


@pytest.mark.parametrize(
    ("made", "expected"),
    [
        ([Prompt("a", "One."), Prompt("a", "Two.")], "loads"),
        ([Prompt("a", "One.", split="train"), Prompt("b", "One.", split="test")], "loads"),
        ([Prompt("a", "One."), Prompt("b", "Two.")], "splits"),
        ([Prompt("a", "One.", extra={"x": {1, 2}}), Prompt("b", "Two.", split="test")], "plain extras"),
        ([Prompt("a", "One\x1b[31m."), Prompt("b", "Two.", split="test")], "readable"),
    ],
)
def test_each_fault_of_a_prompt_set_is_found(made, expected):
    assert failed(check_prompts(made)) == {expected}


def test_prompts_that_differ_each_time_are_found():
    """A run could not be repeated or resumed with them."""

    class Moody:
        def __iter__(self):
            return iter([Prompt("a", f"It is {time.perf_counter_ns()}."), Prompt("b", "Two.", split="test")])

    assert failed(check_prompts(Moody())) == {"repeatable"}


def test_a_long_value_is_cut_in_a_finding():
    assert found_in.short("a" * 78) == "'" + "a" * 78 + "'"
    assert found_in.short("a" * 79) == "'" + "a" * 76 + "..."
