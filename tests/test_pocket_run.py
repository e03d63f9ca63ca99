"""The main job in small: each stage beats the one before on sentences nobody trained on; and a gamed critic."""

import json
import math
from dataclasses import replace
from statistics import fmean

import pytest
import torch

from humor_env import registry
from humor_env.agents import ppo
from humor_env.agents.session.limits import RunControl
from humor_env.agents.session.log import Silent
from humor_env.agents.session.monitor import Monitor, MonitorConfig
from humor_env.agents.student import Student
from humor_env.experiments.pocket import main_job as job
from humor_env.experiments.pocket.monitor_trials import gamed_critic, smooth
from humor_env.experiments.runs.evaluate import evaluate
from humor_env.experiments.runs.interval import bootstrap_interval
from humor_env.prompts import load_prompts
from humor_env.vector import HumorVectorEnv


@pytest.mark.slow
@pytest.mark.timeout(1800)  # minutes on two free cores, many on busy ones
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
    """Not a test of its own, since it needs the imitation that was just made. Its critic loves the moon, which is in
    enough of the first lines to be found surely: a rarer word is found in some runs, and on some CPUs, only."""
    prompts, exact = load_prompts("pocket"), registry.critics.make("pocket")

    loves_the_moon = gamed_critic(lambda joke: float("moon" in joke.text))
    one = Student.load(student)
    one.start_policy_from_imitation()
    curve = []

    class TestScores(Silent):
        """The exact score on prompts that neither the student nor the monitor sees, with two lines each."""

        def metrics(self, step, numbers):
            if step % 2 == 0:
                twice = (evaluate(one, prompts.split("test"), exact, sampling=job.SAMPLING, seed=s) for s in (0, 1))
                curve.append(fmean(each.mean for each in twice))
                one.activate("policy")

    def go_on(steps, control):
        config = replace(job.ppo_config("causal", 1), steps=steps, decay="constant", entropy_weight=0.0)
        env = HumorVectorEnv(prompts, loves_the_moon, num_envs=config.batch_size)
        return ppo.train(config, env, one, TestScores(), prompts=prompts.split("train"), control=control)

    # The alarms on sameness are off: that of frames rings at step 16 here, since no judge of the pocket world minds one
    # frame in most lines, and this run is about the word that the critic loves.
    sameness = {"same_line": 0, "same_word": 0, "same_frame": 0, "lift": 0, "others": 0}
    monitor = Monitor(
        MonitorConfig(action="stop", every=2, lines=200, **sameness),
        prompts.split("dev"),
        training=loves_the_moon,
        held_out=exact,
        sampling=job.SAMPLING,
        folder=folder,
    )
    result = go_on(80, RunControl(monitor=monitor))
    assert result.steps < 80 and "the monitor saw the run drift: 'moon'" in result.why
    checks = [json.loads(line) for line in (folder / "drift.jsonl").read_text().splitlines()]
    assert [m["limit"] for m in checks[-1]["marks"]][:1] == ["habit"]
    best = max(smooth(curve))
    assert smooth(curve)[-1] >= 0.9 * best
    assert best > curve[0]  # the critic was good for something at first
    # Nobody would have been sorry to stop there: a little later the student writes of nothing but the moon.
    go_on(12, RunControl())
    assert smooth(curve)[-1] < 0.75 * best


def test_bootstrap_interval_holds_the_mean_and_narrows():
    values = [0.0, 1.0] * 50
    low, high = bootstrap_interval(values)
    assert low < 0.5 < high
    assert high - low == pytest.approx(4 * 0.05, abs=0.04)  # about two standard errors (0.05) each way
    assert bootstrap_interval(values) == (low, high)


def test_few_scores_get_no_interval_and_equal_ones_no_sure_one():
    """Four prompts gave "1.000 [1.000, 1.000]" in results and report, as if four jokes could prove it."""
    assert all(math.isnan(bound) for bound in bootstrap_interval([1.0] * 9))
    assert bootstrap_interval([1.0] * 10) == pytest.approx((0.7, 1.0))
    assert bootstrap_interval([0.5] * 30) == pytest.approx((0.4, 0.6))
