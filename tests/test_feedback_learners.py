"""What all learners from preferences share: who moves, resuming to the bit, rounds, the log. And BRIO-then-DPO."""

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny import letters_critic, prompts, stir, student

from humor_env import registry
from humor_env.agents import brio, brio_dpo, dpo, self_distill
from humor_env.agents.feedback.pairs import CriticAsJudge, PairConfig
from humor_env.agents.session.checkpoint import CheckpointStore
from humor_env.agents.session.limits import Limits, RunControl
from humor_env.agents.session.log import RunLog
from humor_env.agents.student import IMITATION, POLICY
from humor_env.agents.student.sampling import Sampling
from humor_env.types import Demonstration, Verdict

PAIRS = PairConfig(candidates=3, sampling=Sampling(max_new_tokens=8), length_filter="off")
SETTINGS = {"epochs": 4, "rounds": 2, "batch_size": 4, "pairs": PAIRS, "checkpoint_every": 2}
CONFIGS = {
    "dpo": dpo.DPOConfig(**SETTINGS),
    "brio": brio.BRIOConfig(**SETTINGS, imitation_batch_size=4),
    "sd": self_distill.SelfDistillConfig(**SETTINGS),
    "brio-dpo": brio_dpo.BRIODPOConfig(
        brio.BRIOConfig(**SETTINGS | {"rounds": 1}, pairs_of="teacher"), dpo.DPOConfig(**SETTINGS)
    ),
}
LEARNERS = list(CONFIGS)


def teacher_lines():
    lines = ("Glaciers overtook it.", "So cold.", "Penguins asked.")
    return [Demonstration(p, f"{lines[i]} {p.id}", "t") for p in prompts() for i in range(3)]


class CountingJudge(CriticAsJudge):
    def __init__(self):
        super().__init__(letters_critic())
        self.asked = 0

    def __call__(self, pairs, /):
        self.asked += len(pairs)
        return super().__call__(pairs)


def warm_student():
    one = student()
    stir(one, IMITATION)
    one.start_policy_from_imitation()
    return one


def run(learner, folder=None, log=None, judge=None, config=None, one=None, **more):
    one = one or warm_student()
    if learner in ("brio", "brio-dpo"):
        more["demonstrations"] = teacher_lines()
    result = registry.learners.resolve(learner)(
        config or CONFIGS[learner],
        judge or CountingJudge(),
        one,
        log,
        prompts=prompts(),
        checkpoints=None if folder is None else CheckpointStore(folder / "c"),
        **more,
    )
    return one, result


@pytest.mark.parametrize("learner", LEARNERS)
def test_only_the_policy_moves(learner):
    one = warm_student()
    before = {n: p.clone() for n, p in one.model.named_parameters()}
    head = {n: p.clone() for n, p in one.value_head.named_parameters()}
    run(learner, one=one)
    moved = {n for n, p in one.model.named_parameters() if not torch.equal(p, before[n])}
    assert moved == {n for n in before if f".{POLICY}." in n}
    assert all(torch.equal(p, head[n]) for n, p in one.value_head.named_parameters())
    assert not any(p.requires_grad for p in one.model.parameters())


class PullThePlug(Exception):
    pass


def plug_pulled_at(wanted):
    class Fragile(RunLog):
        def metrics(self, step, numbers):
            super().metrics(step, numbers)
            if step == wanted:
                raise PullThePlug

    return Fragile


@pytest.mark.parametrize(
    ("learner", "cut_at"), [(name, step) for name in LEARNERS for step in (1, 3, 7)] + [("brio-dpo", 11)]
)
def test_a_killed_run_resumes_to_the_bit(learner, cut_at, tmp_path):
    """Before the first checkpoint, within a round, after a later round began (whose lines the learned policy wrote),
    and in the second phase of two."""
    whole, result = run(learner, tmp_path / "whole", RunLog(tmp_path / "whole"))
    assert result.steps >= 8
    with pytest.raises(PullThePlug):
        run(learner, tmp_path / "cut", plug_pulled_at(cut_at)(tmp_path / "cut"))
    resumed, again = run(learner, tmp_path / "cut", RunLog(tmp_path / "cut"))
    assert again.steps == result.steps
    assert all(torch.equal(t, resumed.state()[n]) for n, t in whole.state().items())
    for name in ("metrics.jsonl", "jokes.jsonl"):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "cut" / name).read_bytes(), name
    steps = [json.loads(line)["step"] for line in (tmp_path / "cut" / "metrics.jsonl").read_text().splitlines()]
    assert steps == list(range(1, result.steps + 1))


@pytest.mark.parametrize("learner", LEARNERS)
def test_a_finished_run_is_not_run_again(learner, tmp_path):
    first, _ = run(learner, tmp_path)
    judge = CountingJudge()
    second, result = run(learner, tmp_path, judge=judge)
    assert judge.asked == 0
    assert result.stopped is False
    assert all(torch.equal(t, second.state()[n]) for n, t in first.state().items())


def test_resuming_within_a_round_asks_nobody(tmp_path):
    config = replace(CONFIGS["dpo"], rounds=1, checkpoint_every=100)
    with pytest.raises(PullThePlug):
        run("dpo", tmp_path, plug_pulled_at(2)(tmp_path), config=config)
    judge = CountingJudge()
    run("dpo", tmp_path, RunLog(tmp_path), judge, config)
    assert judge.asked == 0, "a round's first step is saved with the preferences that were paid for"


@pytest.mark.parametrize("learner", ["dpo", "brio", "sd"])
def test_rounds_without_a_preference_are_limited_and_saved_too(learner, tmp_path):
    """From the second round on the judge only ties: such a round is paid for, so it counts, and once."""

    class Tired(CountingJudge):
        def __call__(self, pairs, /):
            first = self.asked == 0
            found = super().__call__(pairs)
            return found if first else [replace(v, probability=0.5, tie=1.0) for v in found]

    config = replace(CONFIGS[learner], epochs=4, rounds=4)
    judge = Tired()
    _, result = run(
        learner, tmp_path, judge=judge, config=config, control=RunControl(Limits(judgements=len(prompts()) + 1))
    )
    assert 0 < judge.asked <= 2 * len(prompts()) and "judgements is reached" in result.why
    _, result = run(learner, tmp_path / "all", judge=(judge := Tired()), config=config)
    asked, again = judge.asked, Tired()
    assert asked > 2 * len(prompts())
    assert run(learner, tmp_path / "all", judge=again, config=config)[1].steps == result.steps
    assert again.asked == 0


@pytest.mark.parametrize("learner", LEARNERS)
def test_ctrl_c_finishes_the_step_and_saves(learner, tmp_path):
    class Impatient(RunLog):
        def metrics(self, step, numbers):
            super().metrics(step, numbers)
            if step == 3:
                os.kill(os.getpid(), signal.SIGINT)

    whole, _ = run(learner)
    _, stopped = run(learner, tmp_path, Impatient(tmp_path))
    assert (stopped.steps, stopped.stopped) == (3, True)
    resumed, result = run(learner, tmp_path, RunLog(tmp_path))
    assert result.stopped is False
    assert all(torch.equal(t, resumed.state()[n]) for n, t in whole.state().items())


@pytest.mark.parametrize("learner", ["dpo", "brio", "sd"])
def test_micro_batches_change_nothing(learner):
    finals = []
    for micro_batch in (32, 3):
        one, _ = run(learner, config=replace(CONFIGS[learner], micro_batch=micro_batch, rounds=1))
        finals.append(one.state())
    assert all(torch.allclose(finals[0][n], finals[1][n], atol=1e-5) for n in finals[0])


@pytest.mark.parametrize("learner", ["dpo", "brio", "sd"])
def test_later_rounds_are_written_by_what_was_learned(learner, tmp_path):
    """And logged with the first step that learns from them; what they took is counted through."""
    config = replace(CONFIGS[learner], learning_rate=3e-2)
    run(learner, log=RunLog(tmp_path), config=config)
    jokes = [json.loads(line) for line in (tmp_path / "jokes.jsonl").read_text().splitlines()]
    metrics = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    begins = sorted({j["step"] for j in jokes})
    assert len(begins) == 2
    assert begins[0] == 1
    first, second = ({j["text"] for j in jokes if j["step"] == step} for step in begins)
    assert len(first & second) < len(first) / 2
    assert [m["feedback/samples"] for m in metrics if m["step"] in begins] == [24, 48]
    assert metrics[begins[1] - 2]["feedback/rounds"] == 1
    assert metrics[-1]["feedback/rounds"] == 2


def test_each_round_has_a_chance_of_its_own(tmp_path):
    """Even a student that learns nothing writes other lines for the same prompt in the second round."""
    config = replace(CONFIGS["dpo"], learning_rate=0.0, pairs=replace(PAIRS, candidates=6))

    def judge(pairs):
        return [Verdict("first", 1.0) for _ in pairs]

    dpo.train(config, judge, warm_student(), RunLog(tmp_path), prompts=prompts(1))
    jokes = [json.loads(line) for line in (tmp_path / "jokes.jsonl").read_text().splitlines()]
    assert len(jokes) == 4
    assert {j["text"] for j in jokes[:2]} != {j["text"] for j in jokes[2:]}


def test_evaluations_are_kept_over_a_resume(tmp_path):
    config = replace(CONFIGS["brio-dpo"], brio=replace(CONFIGS["brio-dpo"].brio, evaluate_every=2))
    config = replace(config, dpo=replace(config.dpo, evaluate_every=3))
    measure = lambda one: {"size": float(one.state()["value_head/out.weight"].numel())}  # noqa: E731
    _, whole = run("brio-dpo", tmp_path / "a", config=config, evaluate=measure)
    steps = [e["step"] for e in whole.evaluations]
    first = brio_dpo.brio.train(
        config.brio, CountingJudge(), warm_student(), prompts=prompts(), demonstrations=teacher_lines()
    ).steps
    assert steps == [s for s in range(1, first + 1) if s % 2 == 0] + [
        first + s for s in range(1, whole.steps - first + 1) if s % 3 == 0
    ]
    cut = plug_pulled_at(first + 4)(tmp_path / "b")
    with pytest.raises(PullThePlug):
        run("brio-dpo", tmp_path / "b", cut, config=config, evaluate=measure)
    _, resumed = run("brio-dpo", tmp_path / "b", RunLog(tmp_path / "b"), config=config, evaluate=measure)
    assert resumed.evaluations == whole.evaluations


@pytest.mark.slow
def test_two_processes_learn_what_one_does(tmp_path):
    """Each writes and has judged its share of the prompts, and learns from the preferences of both."""
    script = str(Path(__file__).parent / "feedback_in_processes.py")
    launch = [sys.executable, "-m", "accelerate.commands.accelerate_cli", "launch", "--multi_gpu"]
    launch += ["--num_processes", "2", "--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
    found = []
    for i, command in enumerate(([sys.executable], [*launch, "--main_process_port", "0"])):
        out = tmp_path / f"{i}.safetensors"
        done = subprocess.run([*command, script, str(out)], capture_output=True, text=True, check=False, timeout=500)
        assert done.returncode == 0, done.stderr[-3000:]
        assert f"{i + 1} process" in done.stdout
        found.append(load_file(out))
    assert found[0].keys() == found[1].keys()
    for name, tensor in found[0].items():
        assert torch.allclose(tensor, found[1][name], atol=1e-5), name
