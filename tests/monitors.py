"""Drift monitors that are fed with lines and scores instead of a student's."""

import numpy as np
from tiny import prompts

from humor_env.agents.session.monitor import Monitor, MonitorConfig
from humor_env.types import Joke, Judgement

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
