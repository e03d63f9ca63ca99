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


def test_it_is_short_enough_to_be_read_first():
    assert len(Path(plain.__file__).read_text().splitlines()) <= 60
