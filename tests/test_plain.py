"""The loop that is there to be read also learns."""

from pathlib import Path

import torch
from tiny import letters_critic, prompts, student, vector_env

from humor_env.agents import plain
from humor_env.agents.plain import PlainConfig
from humor_env.agents.session.log import Silent
from humor_env.agents.student import IMITATION
from humor_env.agents.student.sampling import Sampling

SHORT = Sampling(max_new_tokens=8)


def test_the_letter_the_critic_likes_becomes_commoner():
    rewards = []
    one = student()
    before = {n: p.clone() for n, p in one.adapter_parameters(IMITATION).items()}
    config = PlainConfig(steps=30, batch_size=32, siblings=4, learning_rate=1e-2, sampling=SHORT)
    log = Silent(lambda step, numbers: rewards.append(numbers["reward/mean"]))
    plain.train(config, vector_env(32, letters_critic()), one, log, prompts=prompts())
    assert sum(rewards[-5:]) > 1.3 * sum(rewards[:5])
    assert all(torch.equal(p, before[n]) for n, p in one.adapter_parameters(IMITATION).items())


def test_it_is_short_enough_to_be_read_first():
    assert len(Path(plain.__file__).read_text().splitlines()) <= 60
