"""Two processes with half the batch each take the same steps as one with all of it."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

SCRIPT = Path(__file__).parent / "train_in_processes.py"


@pytest.mark.slow
def test_two_processes_learn_what_one_does(tmp_path):
    alone, launched = tmp_path / "one.safetensors", tmp_path / "two.safetensors"
    launch = [sys.executable, "-m", "accelerate.commands.accelerate_cli", "launch"]
    # "--multi_gpu" is what makes the launcher start several; the script asks for CPUs, and gets gloo.
    options = [
        "--multi_gpu",
        "--num_processes",
        "2",
        "--num_machines",
        "1",
        "--mixed_precision",
        "no",
        "--dynamo_backend",
        "no",
    ]
    said = []
    for command, out in (([sys.executable], alone), ([*launch, *options, "--main_process_port", "0"], launched)):
        done = subprocess.run(
            [*command, str(SCRIPT), str(out)], capture_output=True, text=True, check=False, timeout=300
        )
        assert done.returncode == 0, done.stderr[-3000:]
        said.append(done.stdout)
    assert "1 process" in said[0]
    assert "2 process" in said[1]
    one, two = load_file(alone), load_file(launched)
    assert one.keys() == two.keys()
    for name in one:
        assert torch.allclose(one[name], two[name], atol=1e-5), name
