"""What a run leaves behind, after a kill and after damage to the disk."""

import json

import pytest

from humor_env.agents.session.log import RunLog


def log_of(folder, steps):
    log = RunLog(folder)
    for step in range(1, steps + 1):
        log.metrics(step, {"reward/mean": step / 10})
    return log


def steps_in(folder):
    return [json.loads(line)["step"] for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_a_line_that_a_kill_tore_is_dropped_without_a_word(tmp_path, caplog):
    log = log_of(tmp_path, 3)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "rew')
    log.rewind(3)
    assert steps_in(tmp_path) == [1, 2, 3]
    assert not caplog.text


@pytest.mark.parametrize(
    "damage",
    [b"\x00" * 40 + b"\n", b"\xff\xfe{\n", b'{"stop": 2}\n', b'{"step": null}\n', b"7\n", b'{"step": 1e999}\n'],
)
def test_a_damaged_line_is_told_and_the_others_stay(tmp_path, caplog, damage):
    """A block of zeros from a power cut ended `--resume` in a traceback, though all checkpoints were whole."""
    log = log_of(tmp_path, 4)
    path = tmp_path / "metrics.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([lines[0], damage, *lines[2:]]))
    log.rewind(3)
    assert steps_in(tmp_path) == [1, 3]
    assert "dropped 1 damaged lines, the first is line 2" in caplog.text
