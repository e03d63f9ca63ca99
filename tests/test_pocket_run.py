"""The main job in small: each stage beats the one before on sentences nobody trained on; and a gamed critic."""

import json
from dataclasses import replace

import pytest
import torch

from humor_env import registry
from humor_env.agents import ppo
from humor_env.agents.monitor import Monitor, MonitorConfig
from humor_env.agents.student import Student
from humor_env.agents.watch import Watch
from humor_env.experiments import pocket_run as job
from humor_env.experiments.evaluate import bootstrap_interval, evaluate
from humor_env.prompts import load_prompts
from humor_env.types import Judgement
from humor_env.vector import HumorVectorEnv


@pytest.mark.slow
@pytest.mark.parametrize("student", ["causal", "seq2seq"])
def test_base_then_imitation_then_ppo_rises(student, tmp_path):
    torch.set_num_threads(1)
    settings = replace(job.ppo_config(student, 0), steps=30, decay="constant")
    run = job.pocket_run(student, 0, folder=tmp_path, settings=settings)
    assert run.base.mean < 0.15
    assert run.imitation.interval[0] > run.base.interval[1]
    assert run.trained.mean > run.imitation.mean + 0.05
    assert run.trained.parts["meaning"] > run.imitation.parts["meaning"] - 0.05
    assert (tmp_path / "student" / "policy" / "adapter_config.json").is_file()
    assert len((tmp_path / "jokes.jsonl").read_text().splitlines()) == 30 * settings.batch_size
    if student == "causal":
        the_monitor_stops_a_run_that_games_its_critic(tmp_path / "student", tmp_path / "gamed")


def the_monitor_stops_a_run_that_games_its_critic(student, folder):
    """Not a test of its own, since it needs the imitation that was just made. Its critic loves glaciers."""
    prompts, exact = load_prompts("pocket"), registry.critics.make("pocket")

    def loves_glaciers(jokes):
        judged = zip(jokes, exact(jokes), strict=True)
        return [Judgement("glaciers", 0.3 * j.score + 0.7 * ("glacier" in joke.text)) for joke, j in judged]

    one = Student.load(student)
    one.start_policy_from_imitation()
    looked_at = []

    class Keeping(Monitor):
        """Keeps the student of each look, so that its jokes can be measured afterwards on sentences of their own."""

        def look(self, step, student, adapter):
            looked_at.append({n: t.clone() for n, t in student.state().items()})
            return super().look(step, student, adapter)

    settings = MonitorConfig(action="stop", every=1, lines=300, window=2, level=0.95, unshared=0.5)
    monitor = Keeping(
        settings,
        prompts.split("dev"),
        training=loves_glaciers,
        held_out=exact,
        sampling=job.SAMPLING,
        folder=folder,
    )

    def go_on(steps, watch):
        config = ppo.PPOConfig(
            steps=steps, sampling=job.SAMPLING, kl_weight=0.01, learning_rate=5e-4, value_learning_rate=3e-3
        )
        env = HumorVectorEnv(prompts, loves_glaciers, num_envs=config.batch_size)
        return ppo.train(config, env, one, prompts=prompts.split("train"), watch=watch)

    result = go_on(60, Watch(monitor=monitor))
    looks = [json.loads(line) for line in (folder / "drift.jsonl").read_text().splitlines()]
    scores = [look["drift/held_out"] for look in looks]
    assert result.steps < 60 and "the monitor saw the run drift" in result.why
    fresh = prompts.split("train")[-900:]

    def measured():
        return evaluate(one, fresh, exact, sampling=job.SAMPLING).mean

    at_end = measured()
    go_on(12, Watch())
    lost = measured()
    one.load_state(looked_at[scores.index(max(scores))])
    at_best = measured()
    assert at_end >= 0.9 * at_best
    # Nobody would have been sorry to stop there: a little later the student writes of nothing but glaciers.
    assert lost < 0.75 * at_best


def test_bootstrap_interval_holds_the_mean_and_narrows():
    values = [0.0, 1.0] * 50
    low, high = bootstrap_interval(values)
    assert low < 0.5 < high
    assert high - low == pytest.approx(4 * 0.05, abs=0.04)  # about two standard errors (0.05) each way
    assert bootstrap_interval(values) == (low, high)
    assert bootstrap_interval([1.0] * 10) == (1.0, 1.0)
