"""Killed and resumed runs end as uninterrupted ones, to the bit."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from tiny import prompts, student, vector_env

from humor_env.agents import grpo, ppo, rloo, sft
from humor_env.agents.session.checkpoint import CheckpointStore
from humor_env.agents.session.log import RunLog
from humor_env.agents.student.sampling import Sampling
from humor_env.types import Demonstration

HERE = Path(__file__).parent
SHORT = Sampling(max_new_tokens=8)


def run_killed(folder: Path, kills: int) -> int:
    command = [sys.executable, str(HERE / "killed_runs.py"), str(folder), str(kills), "0"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    return int(done.stdout.split()[-1])


@pytest.mark.slow
def test_twenty_kills_change_nothing(tmp_path):
    assert run_killed(tmp_path / "whole", 0) == 0
    assert run_killed(tmp_path / "killed", 20) >= 15, "most kills must land in a running process"
    whole = CheckpointStore(tmp_path / "whole" / "checkpoints").latest()
    killed = CheckpointStore(tmp_path / "killed" / "checkpoints").latest()
    assert whole is not None
    assert killed is not None
    assert whole.step == killed.step == 150
    assert whole.state == killed.state
    assert whole.tensors.keys() == killed.tensors.keys()
    for name, tensor in whole.tensors.items():
        assert torch.equal(tensor, killed.tensors[name]), name
    for name in ("metrics.jsonl", "jokes.jsonl"):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "killed" / name).read_bytes()


@pytest.mark.parametrize("learner", ["ppo", "grpo", "rloo"])
def test_stopped_between_checkpoints_and_resumed(learner, tmp_path):
    """The work since the last checkpoint is done again, with the same outcome."""
    module = {"ppo": ppo, "grpo": grpo, "rloo": rloo}[learner]
    config_class = {"ppo": ppo.PPOConfig, "grpo": grpo.GRPOConfig, "rloo": rloo.RLOOConfig}[learner]
    config = config_class(steps=5, batch_size=8, siblings=4, sampling=SHORT, checkpoint_every=2, minibatches=2)

    class PullThePlug(Exception):
        pass

    class Fragile(RunLog):
        def metrics(self, step, numbers):
            super().metrics(step, numbers)
            if step == 3:
                raise PullThePlug

    def run(folder, log_class):
        one = student()
        module.train(
            config, vector_env(8), one, log_class(folder), prompts=prompts(), checkpoints=CheckpointStore(folder / "c")
        )
        return one.state()

    whole = run(tmp_path / "whole", RunLog)
    with pytest.raises(PullThePlug):
        run(tmp_path / "cut", Fragile)
    resumed = run(tmp_path / "cut", RunLog)
    assert all(torch.equal(whole[n], resumed[n]) for n in whole)
    steps = [json.loads(line)["step"] for line in (tmp_path / "cut" / "metrics.jsonl").read_text().splitlines()]
    assert steps == [1, 2, 3, 4, 5]
    assert (tmp_path / "whole" / "metrics.jsonl").read_bytes() == (tmp_path / "cut" / "metrics.jsonl").read_bytes()


def test_a_damaged_newest_checkpoint_costs_one_interval(tmp_path):
    config = ppo.PPOConfig(steps=4, batch_size=8, sampling=SHORT, checkpoint_every=1)

    def run(folder):
        one = student()
        store = CheckpointStore(folder)
        ppo.train(config, vector_env(8), one, prompts=prompts(), checkpoints=store)
        return one.state(), store

    whole, _ = run(tmp_path)
    newest = tmp_path / "step-00000004" / "tensors.safetensors"
    newest.write_bytes(newest.read_bytes()[:-1])
    again, store = run(tmp_path)
    assert "step-00000004 is damaged" in store.damaged[0]
    assert all(torch.equal(whole[n], again[n]) for n in whole)


def test_ctrl_c_finishes_the_step_and_saves(tmp_path):
    config = ppo.PPOConfig(steps=50, batch_size=8, sampling=SHORT, checkpoint_every=100)

    class Impatient(RunLog):
        def metrics(self, step, numbers):
            super().metrics(step, numbers)
            if step == 2:
                os.kill(os.getpid(), signal.SIGINT)
                time.sleep(0.05)

    before = signal.getsignal(signal.SIGINT)  # not Python's own where the tests were started in the background
    store = CheckpointStore(tmp_path / "c")
    result = ppo.train(config, vector_env(8), student(), Impatient(tmp_path), prompts=prompts(), checkpoints=store)
    assert (result.steps, result.stopped) == (2, True)
    found = store.latest()
    assert found is not None
    assert found.step == 2
    # The handler is gone afterwards: Ctrl-C interrupts again as it did.
    assert signal.getsignal(signal.SIGINT) is before


def test_imitation_resumes_to_the_bit(tmp_path):
    lines = [Demonstration(p, f"Glaciers overtook it {i}.", "t") for i, p in enumerate(prompts(10))]
    config = sft.SFTConfig(epochs=4, batch_size=4, learning_rate=1e-2, patience=4)

    class PullThePlug(Exception):
        pass

    class Fragile(RunLog):
        def metrics(self, step, numbers):
            super().metrics(step, numbers)
            if step == 8:
                raise PullThePlug

    def run(folder, log_class):
        one = student()
        store = CheckpointStore(folder / "c")
        sft.train(config, one, lines, lines[:3], log_class(folder), checkpoints=store)
        return one.state()

    whole = run(tmp_path / "whole", RunLog)
    with pytest.raises(PullThePlug):
        run(tmp_path / "cut", Fragile)
    resumed = run(tmp_path / "cut", RunLog)
    assert all(torch.equal(whole[n], resumed[n]) for n in whole)
    assert (tmp_path / "whole" / "metrics.jsonl").read_bytes() == (tmp_path / "cut" / "metrics.jsonl").read_bytes()
