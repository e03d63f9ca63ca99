"""Checkpoints that survive a kill at any moment, a damaged disk block and a full disk.

    store = CheckpointStore(run / "checkpoints", keep_last=2)
    store.save(step, tensors, state, score=reward)     # tensors: name -> Tensor; state: plain JSON
    checkpoint = store.latest()                        # the newest intact one, or None

Each is a folder: `tensors.safetensors`, `state.json`, `manifest.json` with the hashes of both, and the manifest's own
hash. It is written under a temporary name, flushed to disk and then renamed, so that a folder without ".writing" is
always complete; later damage is detected by hash, and the previous checkpoint is used. Nothing is pickled.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import random
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from humor_env.agents.session.processes import any_process, is_main_process
from humor_env.errors import CheckpointError

_NAME = re.compile(r"step-(\d{8})")
SEAL = "manifest.sha256"  # checkpoints of version 0.1 have none
_DAMAGE = (KeyError, ValueError, TypeError, AttributeError, RecursionError)
"""What reading damaged JSON, or JSON of another form, may raise."""
_warn = logging.getLogger(__name__).warning


@dataclass(frozen=True)
class Checkpoint:
    step: int
    tensors: dict[str, Tensor]
    state: dict[str, Any]
    folder: Path
    seconds: float = 0.0  # of training so far


class CheckpointStore:
    """The checkpoints of one run. Keeps the newest `keep_last` and the one with the best score."""

    def __init__(self, folder: str | Path, *, keep_last: int = 2) -> None:
        self.folder = Path(folder)
        self.keep_last = max(1, keep_last)
        self.damaged: list[str] = []  # one sentence for each that `latest` skipped

    def save(
        self,
        step: int,
        tensors: Mapping[str, Tensor],
        state: Mapping[str, Any],
        score: float | None = None,
        seconds: float = 0.0,
    ) -> Path:
        """Write a checkpoint; on failure the earlier ones are untouched and `CheckpointError` says why.

        With several processes all must call this; the main one writes, the others wait for it and fail with it.
        """
        problem: CheckpointError | None = None
        if is_main_process():
            try:
                self._write(step, tensors, state, score, seconds)
            except CheckpointError as error:
                problem = error
        if any_process(problem is not None):
            raise problem or CheckpointError(
                f"Step {step} was not saved in {self.folder}: the main process could not write it and reports why."
            )
        return self.folder / f"step-{step:08d}"

    def _write(
        self, step: int, tensors: Mapping[str, Tensor], state: Mapping[str, Any], score: float | None, seconds: float
    ) -> None:
        final = self.folder / f"step-{step:08d}"
        writing = self.folder / f"step-{step:08d}.writing"
        contents = {
            "tensors.safetensors": save({n: t.detach().cpu().contiguous() for n, t in tensors.items()}),
            "state.json": json.dumps(state).encode(),
        }
        manifest = {
            "step": step,
            "score": score,
            "seconds": seconds,  # not in the state, which is the same for equal runs
            "sha256": {name: hashlib.sha256(data).hexdigest() for name, data in contents.items()},
        }
        contents["manifest.json"] = json.dumps(manifest, indent=1).encode()
        contents[SEAL] = hashlib.sha256(contents["manifest.json"]).hexdigest().encode()
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            shutil.rmtree(writing, ignore_errors=True)
            writing.mkdir()
            for name, data in contents.items():
                _write_through(writing / name, data)
            _flush_folder(writing)
            if final.exists():
                shutil.rmtree(final)
            writing.rename(final)
            _flush_folder(self.folder)
        except OSError as problem:
            shutil.rmtree(writing, ignore_errors=True)
            whole = self._names()
            raise CheckpointError(
                f"Step {step} could not be saved in {self.folder}: {problem.strerror or problem}. "
                + (f"The checkpoint of step {whole[-1]} is intact. " if whole else "There is no earlier checkpoint. ")
                + "Free some space or choose another folder, then resume."
            ) from problem
        self._prune(step)

    def resume(self) -> Checkpoint | None:
        """The checkpoint to resume from, or None for a run without any. Warns about damaged ones.

        Raises `CheckpointError` if all are damaged: the run would start again and its logs would be emptied.
        """
        checkpoint = self.latest()
        for sentence in self.damaged:
            _warn(sentence + (f" Resuming from step {checkpoint.step}." if checkpoint else ""))
        if checkpoint is None and self.damaged:
            raise CheckpointError(
                f"No checkpoint in {self.folder} is intact: {self.damaged[0]} To start again, move that folder away."
            )
        return checkpoint

    def latest(self) -> Checkpoint | None:
        """The newest intact checkpoint. `damaged` then lists those that were skipped."""
        self.damaged = []
        for step in reversed(self._names()):
            folder = self.folder / f"step-{step:08d}"
            try:
                return self._load(folder)
            except CheckpointError as problem:
                self.damaged.append(str(problem))
        return None

    def _load(self, folder: Path) -> Checkpoint:
        try:
            manifest_bytes = (folder / "manifest.json").read_bytes()
            seal = folder / SEAL
            if seal.exists() and seal.read_bytes() != hashlib.sha256(manifest_bytes).hexdigest().encode():
                raise CheckpointError(f"{folder.name} is damaged: manifest.json does not match its hash.")
            manifest = json.loads(manifest_bytes)
            if manifest["step"] != int(_NAME.fullmatch(folder.name)[1]):  # type: ignore[index]
                raise CheckpointError(f"{folder.name} is damaged: its manifest is of step {manifest['step']}.")
            contents = {name: (folder / name).read_bytes() for name in manifest["sha256"]}
            for name, expected in manifest["sha256"].items():
                if hashlib.sha256(contents[name]).hexdigest() != expected:
                    raise CheckpointError(f"{folder.name} is damaged: {name} does not match its hash.")
            return Checkpoint(
                int(manifest["step"]),
                load(contents["tensors.safetensors"]),
                json.loads(contents["state.json"]),
                folder,
                float(manifest["seconds"]),
            )
        except (OSError, *_DAMAGE, SafetensorError) as problem:
            raise CheckpointError(f"{folder.name} is damaged: {problem}.") from problem

    def _names(self) -> list[int]:
        if not self.folder.is_dir():
            return []
        return sorted(int(m[1]) for p in self.folder.iterdir() if (m := _NAME.fullmatch(p.name)))

    def _prune(self, newest: int) -> None:
        """Checkpoints after the newest are damaged: `latest` skipped them and the run resumed from before them."""
        for step in self._names():
            if step > newest:
                shutil.rmtree(self.folder / f"step-{step:08d}", ignore_errors=True)
        steps = self._names()
        keep = set(steps[-self.keep_last :])
        scores: dict[int, float] = {}
        for step in steps:
            try:
                score = json.loads((self.folder / f"step-{step:08d}" / "manifest.json").read_text())["score"]
            except (OSError, *_DAMAGE):
                continue  # a damaged one cannot be the best; `latest` reports it
            if score is not None:
                scores[step] = score
        if scores:
            keep.add(max(scores, key=lambda s: (scores[s], s)))
        for step in steps:
            if step not in keep:
                shutil.rmtree(self.folder / f"step-{step:08d}", ignore_errors=True)


def _write_through(path: Path, data: bytes) -> None:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _flush_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def optimizer_tensors(optimizer: torch.optim.Optimizer, names: Mapping[int, str]) -> dict[str, Tensor]:
    """The optimiser's state by parameter name; `names` maps id(parameter) to its name."""
    return {
        f"optimizer/{names[id(p)]}/{key}": torch.as_tensor(value)
        for p, state in optimizer.state.items()
        for key, value in state.items()
    }


def load_optimizer(optimizer: torch.optim.Optimizer, names: Mapping[int, str], tensors: Mapping[str, Tensor]) -> None:
    for group in optimizer.param_groups:
        for p in group["params"]:
            prefix = f"optimizer/{names[id(p)]}/"
            saved = {n[len(prefix) :]: t for n, t in tensors.items() if n.startswith(prefix)}
            if saved:
                # A fused optimiser reads its step counter on the parameter's device, too.
                optimizer.state[p] = {k: t.to(p.device, copy=True) for k, t in saved.items()}


def random_states() -> tuple[dict[str, Tensor], dict[str, Any]]:
    """States of the global generators, saved for third-party code; ours are derived from (seed, step)."""
    kind, keys, position, has_gauss, gauss = np.random.get_state()
    version, words, gauss_next = random.getstate()
    tensors = {"random/torch": torch.get_rng_state(), "random/numpy": torch.from_numpy(np.asarray(keys, np.int64))}
    if torch.cuda.is_available():
        tensors |= {f"random/cuda/{i}": state for i, state in enumerate(torch.cuda.get_rng_state_all())}
    return tensors, {
        "numpy": [kind, position, has_gauss, gauss],
        "python": [version, list(words), gauss_next],
    }


def restore_random_states(tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
    torch.set_rng_state(tensors["random/torch"])
    kind, position, has_gauss, gauss = state["numpy"]
    np.random.set_state((kind, tensors["random/numpy"].numpy().astype(np.uint32), position, has_gauss, gauss))
    version, words, gauss_next = state["python"]
    random.setstate((version, tuple(words), gauss_next))
    saved = sum(name.startswith("random/cuda/") for name in tensors)
    here = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if here < saved and is_main_process():
        _warn(
            f"The checkpoint was saved with {saved} GPUs and {here} are here. Only a critic or environment of your "
            "own that draws random numbers on a missing one goes on with others; the student's lines do not depend on "
            "them."
        )
    torch.cuda.set_rng_state_all(tensors[f"random/cuda/{i}"] for i in range(min(saved, here)))
