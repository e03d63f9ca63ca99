"""The loop that is there to be read also learns."""

from pathlib import Path

import pytest
import torch
from tiny import letters_critic, prompts, student, vector_env

from humor_env.agents import plain
from humor_env.agents.plain import PlainConfig
from humor_env.agents.session.log import Silent
from humor_env.agents.student import IMITATION, POLICY
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


def test_it_is_short_enough_to_be_read_first():
    assert len(Path(plain.__file__).read_text().splitlines()) <= 60
