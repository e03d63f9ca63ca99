"""One run on two hosts: two network namespaces with a cable between them, each with its own folder and network."""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from test_run import lines, text, world  # noqa: F401

from humor_env.experiments.runs.run import run
from humor_env.experiments.specs.spec import load_spec

ADDRESSES = ("10.213.77.1", "10.213.77.2")  # inside the namespaces only
CARD = "cable0"


def ip(*arguments):
    return subprocess.run(["ip", *arguments], capture_output=True, text=True, check=False, timeout=30)


@pytest.fixture
def hosts():
    """The names of two network namespaces, in which nothing but the other one can be reached."""
    if shutil.which("ip") is None:
        pytest.skip("there is no command `ip` (Debian's package iproute2), so no two hosts can be made")
    names = [f"humor-env-{os.getpid()}-{i}" for i in range(2)]
    try:
        for name in names:
            made = ip("netns", "add", name)
            if made.returncode:
                pytest.skip(f"network namespaces are not allowed here: {made.stderr.strip()}")
        cable = ("link", "add", CARD, "netns", names[0], "type", "veth", "peer", "name", CARD, "netns", names[1])
        steps = [cable]
        for name, address in zip(names, ADDRESSES, strict=True):
            steps += [("-n", name, "address", "add", f"{address}/24", "dev", CARD)]
            steps += [("-n", name, "link", "set", device, "up") for device in ("lo", CARD)]
        for step in steps:
            done = ip(*step)
            if done.returncode:
                pytest.skip(f"the kernel makes no cable between two namespaces here: {done.stderr.strip()}")
        yield names
    finally:
        for name in names:
            ip("netns", "delete", name)


@pytest.mark.slow
def test_two_hosts_take_the_same_steps_as_one_process(text, hosts, tmp_path):  # noqa: F811
    """The guide said that it had not been tested on more than one machine."""
    (tmp_path / "mine.toml").write_text(text)
    run(load_spec(tmp_path / "mine.toml"), tmp_path / "one")
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent), "CUDA_VISIBLE_DEVICES": ""}
    environment |= {"GLOO_SOCKET_IFNAME": CARD, "OMP_NUM_THREADS": "1"}
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--nproc_per_node", "1"]
    launcher += ["--master_addr", ADDRESSES[0], "--master_port", "29500"]
    started = []
    try:
        for rank, name in enumerate(hosts):
            home = tmp_path / f"host-{rank}"
            home.mkdir()
            shutil.copy(tmp_path / "mine.toml", home)
            command = ["ip", "netns", "exec", name, *launcher, "--node_rank", str(rank)]
            command += ["-m", "humor_env.experiments.commands.cli", "train", "mine.toml"]
            said = (home / "said.txt").open("w")
            started.append(
                subprocess.Popen(command, cwd=home, env=environment, stdout=said, stderr=subprocess.STDOUT, text=True)
            )
        deadline = time.monotonic() + 400
        while time.monotonic() < deadline and any(p.poll() is None for p in started):
            time.sleep(0.2)
    finally:
        for process in started:
            if process.poll() is None:
                process.terminate()
                process.wait(timeout=30)
    told = [(tmp_path / f"host-{rank}" / "said.txt").read_text() for rank in range(2)]
    assert [process.returncode for process in started] == [0, 0], "\n---\n".join(each[-2000:] for each in told)
    found = tmp_path / "host-0" / "runs/tiny"
    assert json.loads((found / "run.json").read_text())["processes"] == 2
    assert not list((tmp_path / "host-1").rglob("*.jsonl")), "only the first host writes"

    alone, together = tmp_path / "one" / "seed-0", found / "seed-0"
    losses = [
        [r["sft/loss"] for r in lines(p / "imitation/metrics.jsonl") if "sft/loss" in r] for p in (alone, together)
    ]
    assert len(losses[0]) == 4 and losses[0] == pytest.approx(losses[1], rel=1e-5)
    wrote = [[(r["step"], r["text"], r["score"]) for r in lines(p / "jokes.jsonl")] for p in (alone, together)]
    assert len(wrote[0]) == 16 and wrote[0] == wrote[1]
    for one, two in zip(*(lines(p / "metrics.jsonl") for p in (alone, together)), strict=True):
        assert one.keys() == two.keys()
        assert one == pytest.approx(two, rel=1e-3, abs=2e-5)
    files = sorted(file.relative_to(alone) for file in (alone / "student").rglob("*.safetensors"))
    assert len(files) == 3  # the base, the imitation's adapter and the policy's
    for file in files:
        one, two = load_file(alone / file), load_file(together / file)
        assert one.keys() == two.keys()
        # As close as in test_processes.py: one rounding over another, where a gradient is all but 0.
        apart = torch.cat([(one[name] - two[name]).abs().flatten() for name in one])
        assert (apart > 1e-5).float().mean() < 1e-3 and apart.max() < 1e-4
