"""The page of the learners speaks of every number that they log."""

import re
from pathlib import Path

import pytest
from tiny import prompts, student, vector_env

from humor_env.agents import grpo, ppo, rloo
from humor_env.agents.generate import Sampling
from humor_env.agents.runlog import is_timing
from humor_env.types import Demonstration

PAGE = Path(__file__).parents[1] / "docs" / "ppo.md"


@pytest.mark.parametrize("module", [ppo, grpo, rloo])
def test_every_logged_metric_is_documented(module):
    documented = re.findall(r"`([\w/…]+)`", PAGE.read_text(encoding="utf-8"))
    logged: set[str] = set()

    class Watch:
        def metrics(self, step, numbers):
            logged.update(numbers)

        def jokes(self, *_): ...

        def rewind(self, _): ...

    config_class = {ppo: ppo.PPOConfig, grpo: grpo.GRPOConfig, rloo: rloo.RLOOConfig}[module]
    config = config_class(
        steps=1, batch_size=8, siblings=4, sampling=Sampling(max_new_tokens=8), evaluate_every=1, micro_batch=8
    )
    extra = {"demonstrations": [Demonstration(p, "Glaciers.", "t") for p in prompts()]} if module is ppo else {}
    module.train(
        config, vector_env(8), student(), Watch(), prompts=prompts(), evaluate=lambda _: {"score": 1.0}, **extra
    )
    known = set(documented) | {n for n in logged if any(n.startswith(d[:-1]) for d in documented if d.endswith("…"))}
    assert logged - known == set()
    assert {n for n in logged if is_timing(n)} >= {"seconds/step", "tokens_per_second"}
