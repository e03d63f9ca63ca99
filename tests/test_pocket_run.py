"""The main job in small: each stage beats the one before on sentences nobody trained on."""

from dataclasses import replace

import pytest
import torch

from humor_env.experiments import pocket_run as job
from humor_env.experiments.evaluate import bootstrap_interval


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


def test_bootstrap_interval_holds_the_mean_and_narrows():
    values = [0.0, 1.0] * 50
    low, high = bootstrap_interval(values)
    assert low < 0.5 < high
    assert high - low == pytest.approx(4 * 0.05, abs=0.04)  # about two standard errors (0.05) each way
    assert bootstrap_interval(values) == (low, high)
    assert bootstrap_interval([1.0] * 10) == (1.0, 1.0)
