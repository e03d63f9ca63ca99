import json
import resource
import subprocess
import sys
import textwrap

import numpy as np
import pytest
import torch

from humor_env.agents.session.checkpoint import CheckpointStore, random_states, restore_random_states
from humor_env.errors import CheckpointError


def tensors(value: float) -> dict[str, torch.Tensor]:
    return {"weights": torch.full((4,), value), "step": torch.tensor(3)}


def test_saved_and_found_again(tmp_path):
    store = CheckpointStore(tmp_path)
    assert store.latest() is None
    store.save(5, tensors(1.5), {"epoch": 2, "kl": 0.1})
    found = CheckpointStore(tmp_path).latest()
    assert found is not None
    assert (found.step, found.state) == (5, {"epoch": 2, "kl": 0.1})
    assert torch.equal(found.tensors["weights"], torch.full((4,), 1.5))
    assert found.tensors["step"].shape == ()


@pytest.mark.parametrize("file", ["tensors.safetensors", "state.json", "manifest.json"])
@pytest.mark.parametrize("damage", ["flip", "cut", "missing"])
def test_a_damaged_checkpoint_is_passed_over(tmp_path, file, damage):
    store = CheckpointStore(tmp_path)
    store.save(1, tensors(1.0), {"n": 1})
    newest = store.save(2, tensors(2.0), {"n": 2}) / file
    data = bytearray(newest.read_bytes())
    if damage == "flip":
        data[len(data) // 2] ^= 0xFF
        newest.write_bytes(data)
    elif damage == "cut":
        newest.write_bytes(data[:-3])
    else:
        newest.unlink()
    found = store.latest()
    assert found is not None
    assert found.step == 1
    assert len(store.damaged) == 1
    assert "step-00000002 is damaged" in store.damaged[0]


def test_keeps_the_newest_and_the_best(tmp_path):
    store = CheckpointStore(tmp_path, keep_last=2)
    for step, score in enumerate([0.1, 0.9, 0.3, 0.2, 0.4], start=1):
        store.save(step, tensors(step), {}, score=score)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-00000002", "step-00000004", "step-00000005"]


def test_damaged_checkpoints_ahead_take_no_places(tmp_path):
    """Two newest ones are damaged and the run goes on from before them: what it saves then stays."""
    store = CheckpointStore(tmp_path, keep_last=2)
    for step in (10, 30, 40):
        store.save(step, tensors(step), {}, score=step)
    for step in (30, 40):
        (tmp_path / f"step-{step:08d}" / "state.json").write_text("{")
    assert store.latest() is None and len(store.damaged) == 2
    for step in (5, 15):
        assert store.save(step, tensors(step), {}).is_dir()
        assert store.latest().step == step
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-00000005", "step-00000015"]


def test_an_interrupted_write_leaves_no_trace(tmp_path):
    store = CheckpointStore(tmp_path)
    store.save(1, tensors(1.0), {})
    half = tmp_path / "step-00000002.writing"
    half.mkdir()
    (half / "tensors.safetensors").write_bytes(b"half")
    found = store.latest()
    assert found is not None
    assert found.step == 1
    assert not store.damaged
    store.save(2, tensors(2.0), {})
    assert not half.exists()


def test_a_full_disk_is_explained_and_the_last_checkpoint_stays(tmp_path):
    """A real limit on file size in a real process: the write fails as on a full disk."""
    program = textwrap.dedent(
        f"""
        import resource, torch
        from humor_env.agents.session.checkpoint import CheckpointStore
        from humor_env.errors import CheckpointError
        store = CheckpointStore({str(tmp_path)!r})
        store.save(1, {{"w": torch.ones(10)}}, {{}})
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
        try:
            store.save(2, {{"w": torch.ones(100_000)}}, {{}})
        except CheckpointError as problem:
            print(problem)
        """
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert "Step 2 could not be saved" in done.stdout
    assert "The checkpoint of step 1 is intact" in done.stdout
    assert [p.name for p in tmp_path.iterdir()] == ["step-00000001"]
    found = CheckpointStore(tmp_path).latest()
    assert found is not None
    assert found.step == 1
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] != 20_000


def test_a_folder_that_cannot_be_written_is_explained(tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("not a folder")
    with pytest.raises(CheckpointError, match="no earlier checkpoint"):
        CheckpointStore(blocked).save(1, tensors(1.0), {})


def test_nothing_is_pickled(tmp_path):
    folder = CheckpointStore(tmp_path).save(1, tensors(1.0), {"a": 1})
    assert {p.name for p in folder.iterdir()} == {
        "tensors.safetensors",
        "state.json",
        "manifest.json",
        "manifest.sha256",
    }
    for name in ("state.json", "manifest.json"):
        json.loads((folder / name).read_text())


def test_random_states_go_on_where_they_were():
    import random

    random.random(), np.random.rand(), torch.rand(1)
    saved_tensors, state = random_states()
    state = json.loads(json.dumps(state))
    expected = (random.random(), np.random.rand(), np.random.randn(), torch.rand(3).tolist())
    restore_random_states(saved_tensors, state)
    assert (random.random(), np.random.rand(), np.random.randn(), torch.rand(3).tolist()) == expected


@pytest.mark.parametrize("here", [12, 11, 0])
def test_a_run_resumes_with_fewer_gpus(here, monkeypatch, caplog):
    """It ended in an IndexError, and of more than ten GPUs the third got the state of the eleventh."""
    saved_tensors, state = random_states()
    saved_tensors |= {f"random/cuda/{i}": torch.tensor([i], dtype=torch.uint8) for i in range(12)}
    restored = {}
    monkeypatch.setattr(torch.cuda, "is_available", lambda: here > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: here)

    def restore(state, device):
        restored[list(range(here))[device]] = int(state[0])

    monkeypatch.setattr(torch.cuda.random, "set_rng_state", restore)
    restore_random_states(saved_tensors, state)
    assert restored == {i: i for i in range(here)}
    assert [record.getMessage().count(f"12 GPUs and {here} are here") for record in caplog.records] == [1] * (here < 12)


@pytest.mark.parametrize("file", ["tensors.safetensors", "state.json", "manifest.json", "manifest.sha256"])
def test_a_flipped_bit_anywhere_is_found(tmp_path, file):
    """The manifest had no hash of its own: a bit in its `step` sent a run on from step 92."""
    store = CheckpointStore(tmp_path)
    store.save(1, tensors(1.0), {"a": 1})
    store.save(2, tensors(2.0), {"a": 2})
    path = tmp_path / "step-00000002" / file
    data = bytearray(path.read_bytes())
    for place in range(0, len(data), max(1, len(data) // 40)):
        flipped = bytearray(data)
        flipped[place] ^= 1
        path.write_bytes(flipped)
        found = store.latest()
        assert found is not None and found.step == 1, place
    path.write_bytes(data)
    assert store.latest().step == 2


@pytest.mark.parametrize("manifest", ["[]", "7", '{"step": 2, "sha256": []}', "[" * 100_000])
def test_a_manifest_that_is_none_is_passed_over(tmp_path, manifest):
    """Without its hash, as checkpoints of version 0.1 have it."""
    store = CheckpointStore(tmp_path)
    store.save(1, tensors(1.0), {})
    folder = store.save(2, tensors(2.0), {})
    (folder / "manifest.sha256").unlink()
    (folder / "manifest.json").write_text(manifest)
    assert store.latest().step == 1
    store.save(3, tensors(3.0), {}, score=1.0)


def test_a_checkpoint_under_another_steps_name_is_not_believed(tmp_path):
    store = CheckpointStore(tmp_path)
    store.save(1, tensors(1.0), {})
    (tmp_path / "step-00000001").rename(tmp_path / "step-00000092")
    assert store.latest() is None
    assert "its manifest is of step 1" in store.damaged[0]


def test_resuming_says_what_is_damaged_and_never_begins_again_in_silence(tmp_path, caplog):
    """With every checkpoint damaged a run silently began at step 0 and emptied its logs."""
    store = CheckpointStore(tmp_path)
    assert store.resume() is None  # a new run
    for step in (1, 2):
        store.save(step, tensors(step), {"a": 1})
    (tmp_path / "step-00000002" / "state.json").write_text("{")
    assert store.resume().step == 1
    assert "step-00000002 is damaged" in caplog.text and "Resuming from step 1" in caplog.text
    (tmp_path / "step-00000001" / "state.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"No checkpoint in .* is intact: .*To start again, move"):
        store.resume()
