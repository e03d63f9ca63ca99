"""The loop that is there to be read also learns."""

from pathlib import Path

import pytest
import torch
from tiny import letters_critic, prompts, student, vector_env

from humor_env.agents import plain
from humor_env.agents.feedback.rollout import collect
from humor_env.agents.plain import PlainConfig
from humor_env.agents.session.log import Silent
from humor_env.agents.student import IMITATION, POLICY, Student
from humor_env.agents.student.sampling import Sampling
from humor_env.types import Judgement

SHORT = Sampling(max_new_tokens=8)


def test_the_letter_the_critic_likes_becomes_commoner():
    rewards, steps = [], []
    one = student()
    before = {n: p.clone() for n, p in one.adapter_parameters(IMITATION).items()}
    one.base.get_output_embeddings().weight.data *= 20  # a random output layer of the usual size cannot prefer
    config = PlainConfig(steps=25, batch_size=32, siblings=4, learning_rate=5e-3, sampling=SHORT)
    log = Silent(lambda step, numbers: steps.append(step) or rewards.append(numbers["reward/mean"]))
    plain.train(config, vector_env(32, letters_critic()), one, log, prompts=prompts())
    assert steps == list(range(1, 26))
    assert sum(rewards[-3:]) / 3 > sum(rewards[:3]) / 3 + 0.1
    assert all(torch.equal(p, before[n]) for n, p in one.adapter_parameters(IMITATION).items())


def test_a_line_that_could_not_be_judged_counts_for_nothing():
    """As a 0 it lowered its siblings' mean: lines that were all equally good became more likely."""

    def moody(jokes):
        return [
            Judgement("moody", None, error="no answer") if i % 2 else Judgement("moody", 0.8) for i in range(len(jokes))
        ]

    one, logged = student(), []
    before = {n: p.clone() for n, p in one.adapter_parameters(POLICY).items()}
    config = PlainConfig(steps=1, batch_size=16, siblings=4, sampling=SHORT)
    plain.train(config, vector_env(16, moody), one, Silent(lambda _, n: logged.append(n)), prompts=prompts())
    assert logged[0]["reward/mean"] == pytest.approx(0.8)
    assert logged[0]["update/policy_loss"] == pytest.approx(0.0, abs=1e-5)
    assert all(torch.allclose(p, before[n], atol=1e-5) for n, p in one.adapter_parameters(POLICY).items())


def test_the_update_is_of_the_policy_that_wrote_the_lines(monkeypatch):
    """Lines drawn at temperature 0.5 were scored at 1: the gradient was another policy's, and too short."""
    one = student()
    seen = []
    score = Student.score
    monkeypatch.setattr(Student, "score", lambda *a, **k: seen.append(score(*a, **k)) or seen[-1])
    written = []
    monkeypatch.setattr(plain, "collect", lambda *a, **k: written.append(collect(*a, **k)) or written[-1])
    sampling = Sampling(max_new_tokens=8, temperature=0.5)
    config = PlainConfig(steps=1, batch_size=8, siblings=4, sampling=sampling)
    plain.train(config, vector_env(8), one, prompts=prompts())
    [before], scored = written, seen[-1].logprobs
    # `collect` scores at the temperature of sampling.
    assert torch.allclose(scored.detach(), before.logprobs, atol=1e-4)


def test_attempts_are_compared_with_the_same_attempts_at_the_same_prompt(monkeypatch):
    """A failure ends an episode: with rows taken four by four, lines for different prompts were then compared."""
    calls = []

    def critic(jokes):
        calls.append(len(jokes))
        if len(calls) == 1:  # by prompt, so that siblings are equal and there is nothing to learn
            worth = {joke.prompt.id: i / 8 for i, joke in enumerate(jokes)}
            return [
                Judgement("c", None, error="gone") if i in (0, 5) else Judgement("c", worth[joke.prompt.id])
                for i, joke in enumerate(jokes)
            ]
        return [Judgement("c", 0.95) for _ in jokes]

    one, logged = student(), []
    before = {n: p.clone() for n, p in one.adapter_parameters(POLICY).items()}
    config = PlainConfig(steps=1, batch_size=8, siblings=4, sampling=SHORT)
    log = Silent(lambda _, n: logged.append(n))
    plain.train(config, vector_env(8, critic, attempts=2), one, log, prompts=prompts())
    assert calls == [8, 6]
    assert logged[0]["update/policy_loss"] == pytest.approx(0.0, abs=1e-5)
    assert all(torch.allclose(p, before[n], atol=1e-5) for n, p in one.adapter_parameters(POLICY).items())


def test_it_is_short_enough_to_be_read_first():
    assert len(Path(plain.__file__).read_text().splitlines()) <= 60
