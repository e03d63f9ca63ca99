"""Limits end a run cleanly: at the step that reaches them, saved, told why, counted over restarts."""

import json
import time

import pytest
import torch
from tiny import letters_critic, prompts, student, vector_env

from humor_env.agents import brio_dpo, dpo, expert_iteration, grpo, ppo, reinforce_pp, rloo, self_distill, sft
from humor_env.agents.feedback.pairs import CriticAsJudge, PairConfig
from humor_env.agents.session.checkpoint import CheckpointStore
from humor_env.agents.session.limits import Limits, RunControl
from humor_env.agents.session.log import RunLog
from humor_env.agents.student.sampling import Sampling
from humor_env.errors import InvalidOption
from humor_env.types import Demonstration

SHORT = Sampling(max_new_tokens=8)
PAIRS = PairConfig(candidates=3, sampling=SHORT, length_filter="off")
ONLINE = {
    "ppo": (ppo, ppo.PPOConfig),
    "grpo": (grpo, grpo.GRPOConfig),
    "rloo": (rloo, rloo.RLOOConfig),
    "reinforce++": (reinforce_pp, reinforce_pp.ReinforcePPConfig),
    "expert-iteration": (expert_iteration, expert_iteration.ExpertIterationConfig),
}


def run_online(learner, folder, limits, *, steps=5, log_class=RunLog, **options):
    module, config_class = ONLINE[learner]
    config = config_class(steps=steps, batch_size=8, siblings=4, sampling=SHORT, checkpoint_every=100)
    one = student()
    result = module.train(
        config,
        vector_env(8, **options),
        one,
        log_class(folder),
        prompts=prompts(),
        checkpoints=CheckpointStore(folder / "c"),
        control=RunControl(limits),
    )
    return result, one.state()


def metrics(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("learner", ONLINE)
@pytest.mark.parametrize("what", ["samples", "judgements"])
def test_the_step_that_reaches_a_limit_is_the_last(learner, what, tmp_path):
    result, _ = run_online(learner, tmp_path, Limits(**{what: 17}))
    assert (result.steps, result.stopped) == (3, False)
    assert result.why == f"the limit of 17 {what} is reached (24 taken)"
    assert result.checkpoint is not None
    assert [row["spent/samples"] for row in metrics(tmp_path)] == [8, 16, 24]
    assert [row["spent/judgements"] for row in metrics(tmp_path)] == [8, 16, 24]


def test_what_was_taken_counts_on_and_a_higher_limit_goes_on_to_the_same_end(tmp_path):
    _, whole = run_online("ppo", tmp_path / "whole", Limits(samples=40), steps=9)
    run_online("ppo", tmp_path / "cut", Limits(samples=16), steps=9)
    again, _ = run_online("ppo", tmp_path / "cut", Limits(samples=16), steps=9)
    assert (again.steps, again.why) == (2, "the limit of 16 samples is reached (16 taken)")
    longer, state = run_online("ppo", tmp_path / "cut", Limits(samples=40), steps=9)
    assert longer.steps == 5
    assert all(torch.equal(whole[n], state[n]) for n in whole)
    assert (tmp_path / "whole" / "metrics.jsonl").read_bytes() == (tmp_path / "cut" / "metrics.jsonl").read_bytes()


def test_every_attempt_of_an_episode_counts(tmp_path):
    result, _ = run_online("ppo", tmp_path, Limits(samples=17), attempts=2)
    assert result.steps == 2
    assert metrics(tmp_path)[0]["spent/samples"] == 16


def test_the_last_step_needs_no_reason(tmp_path):
    result, _ = run_online("ppo", tmp_path, Limits(samples=40))
    assert (result.steps, result.stopped, result.why) == (5, False, "")


def test_seconds_count_over_restarts_and_leave_evaluations_out(tmp_path):
    class Slow(RunLog):
        def metrics(self, step, numbers):
            super().metrics(step, numbers)
            time.sleep(0.3)

    result, _ = run_online("ppo", tmp_path, Limits(seconds=0.25), log_class=Slow)
    assert (result.steps, result.why) == (1, "the limit of 0.25 seconds is reached")
    spent = CheckpointStore(tmp_path / "c").latest().seconds
    assert spent >= 0.3
    again, _ = run_online("ppo", tmp_path, Limits(seconds=spent + 0.35), log_class=Slow)
    assert again.steps in (2, 3)

    def dawdle(_):
        time.sleep(2.0)  # two of them: far more than two steps take, also on a busy machine
        return {"score": 1.0}

    control = RunControl(Limits(seconds=60))
    config = ppo.PPOConfig(steps=2, batch_size=8, sampling=SHORT, evaluate_every=1)
    ppo.train(config, vector_env(8), student(), prompts=prompts(), evaluate=dawdle, control=control)
    assert 0 < control.seconds < 3.5


def run_pairs(folder, limits, **options):
    config = dpo.DPOConfig(epochs=4, rounds=2, batch_size=4, pairs=PAIRS, **options)
    return dpo.train(
        config,
        CriticAsJudge(letters_critic()),
        student(),
        RunLog(folder),
        prompts=prompts(),
        checkpoints=CheckpointStore(folder / "c"),
        control=RunControl(limits),
    )


def test_a_round_that_was_paid_for_is_learned_before_a_limit_ends_the_run(tmp_path):
    """Each round takes 24 lines and up to 8 verdicts: one line less than a round stops before the second."""
    whole = run_pairs(tmp_path / "whole", None)
    result = run_pairs(tmp_path / "cut", Limits(samples=23))
    assert 0 < result.steps < whole.steps
    assert result.why == "the limit of 23 samples is reached (24 taken)"
    rows = metrics(tmp_path / "cut")
    assert rows[-1]["feedback/rounds"] == 1
    assert rows == metrics(tmp_path / "whole")[: result.steps]
    longer = run_pairs(tmp_path / "cut", Limits(samples=1000))
    assert (longer.steps, longer.why) == (whole.steps, "")
    assert metrics(tmp_path / "cut") == metrics(tmp_path / "whole")


def test_phases_share_one_budget(tmp_path):
    """BRIO on the teacher's lines takes judgements only; DPO on the student's both."""

    def run(limits):
        config = brio_dpo.BRIODPOConfig(
            brio=brio_dpo.BRIOConfig(epochs=1, pairs=PAIRS, pairs_of="teacher", batch_size=4),
            dpo=brio_dpo.DPOConfig(epochs=2, rounds=2, pairs=PAIRS, batch_size=4),
        )
        lines = [Demonstration(p, text, "t") for p in prompts() for text in ("Glaciers overtook it.", "Even we slept.")]
        control = RunControl(limits)
        judge = CriticAsJudge(letters_critic())
        return brio_dpo.train(
            config, judge, student(), prompts=prompts(), demonstrations=lines, control=control
        ), control

    whole, everything = run(None)
    assert everything.samples == 48
    result, control = run(Limits(judgements=9))
    assert "the limit of 9 judgements is reached" in result.why
    assert 8 < control.judgements < everything.judgements
    assert result.steps < whole.steps
    # Reached at the end of the first phase: the second began all the same, and collected a whole round.
    result, control = run(Limits(judgements=8))
    assert (control.judgements, control.samples) == (8, 0)
    assert (result.steps, result.stopped) == (2, False)
    assert result.why == "the limit of 8 judgements is reached (8 taken)"


@pytest.mark.parametrize("learner", ["sft", "sd"])
def test_seconds_end_learners_that_ask_for_nothing_more(learner, tmp_path):
    class Slow(RunLog):
        def metrics(self, step, numbers):
            super().metrics(step, numbers)
            time.sleep(0.2)

    store, control = CheckpointStore(tmp_path / "c"), RunControl(Limits(seconds=0.1))
    if learner == "sft":
        lines = [Demonstration(p, "Glaciers overtook it.", "t") for p in prompts()]
        result = sft.train(
            sft.SFTConfig(epochs=3, batch_size=4),
            student(),
            lines,
            (),
            Slow(tmp_path),
            checkpoints=store,
            control=control,
        )
    else:
        config = self_distill.SelfDistillConfig(epochs=4, batch_size=4, pairs=PAIRS)
        result = self_distill.train(
            config,
            CriticAsJudge(letters_critic()),
            student(),
            Slow(tmp_path),
            prompts=prompts(),
            checkpoints=store,
            control=control,
        )
    assert (result.steps, result.why) in (
        (1, "the limit of 0.1 seconds is reached"),
        (2, "the limit of 0.1 seconds is reached"),
    )
    assert store.latest().step == result.steps


def test_a_limit_is_above_zero():
    with pytest.raises(InvalidOption, match="samples must be above 0"):
        Limits(samples=0)
