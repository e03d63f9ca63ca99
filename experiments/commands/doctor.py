"""What this machine has and what will be slow on it: `humor-env doctor`.

    facts = examine()
    facts["precision"]["pays"]          # "bfloat16" or "float32": measured, not guessed
    facts["notes"]                      # sentences on what is missing and what it means
    memory_of("pocket-quickstart")      # what a step of a spec takes: `humor-env doctor --spec NAME`

Of keys, it says only whether they are set.
"""

from __future__ import annotations

import os
import platform
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from humor_env import pocket
from humor_env.experiments.runs.run_folder import versions
from humor_env.shared.precision import free_memory, measure

KEYS = {
    "ANTHROPIC_API_KEY": "the clients 'anthropic' and 'anthropic-batch'",
    "OPENAI_API_KEY": "OpenAI's own service (a server of your own needs none)",
    "HF_TOKEN": "gated models of the Hugging Face hub",
}
EXTRAS = {"openai": "openai", "minari": "minari", "sb3": "stable-baselines3", "trackers": "tensorboard", "ray": "ray"}
_GB = 1024**3


def examine() -> dict[str, Any]:
    """All facts as plain data."""
    import torch

    memory = free_memory()
    facts: dict[str, Any] = {
        "versions": {"python": platform.python_version(), **versions()},
        "extras": {extra: _installed(name) for extra, name in EXTRAS.items()},
        "keys": {name: bool(os.environ.get(name)) for name in KEYS},
        "cores": usable_cores(),
        "torch_threads": torch.get_num_threads(),
        "memory_gb": None if memory is None else round(memory / _GB, 1),
        "devices": _devices(torch),
        "precision": measure("cuda" if torch.cuda.is_available() else "cpu"),
        "disk_free_gb": {
            "here": round(shutil.disk_usage(Path.cwd()).free / _GB, 1),
            "model cache": round(shutil.disk_usage(_existing(_cache())).free / _GB, 1),
        },
        "pocket_students": {name: _has_student(name) for name in pocket.STUDENTS},
    }
    facts["notes"] = notes(facts)
    return facts


def memory_of(spec: str, overrides: Sequence[str] = ()) -> list[str]:
    """A sentence for each learner of a spec: how much memory a step needs, and how much there is. This loads the
    student and runs one row through it."""
    from humor_env.agents.session.memory import free_memory_of
    from humor_env.experiments.runs.costs import without_keys
    from humor_env.experiments.runs.ingredients import Ingredients, device_of, load_student, student_settings
    from humor_env.experiments.runs.micro_batches import memory_sentences
    from humor_env.experiments.specs.spec import load_spec

    loaded = load_spec(spec, overrides)
    with tempfile.TemporaryDirectory() as scratch:
        parts = Ingredients(without_keys(loaded), Path(scratch))
        try:
            free = free_memory_of(device_of(loaded.student))
            return memory_sentences(parts, load_student(student_settings(loaded), loaded.seeds[0]), free)
        finally:
            parts.close()


def notes(facts: Mapping[str, Any]) -> list[str]:
    """What is missing or slow, and what to do about it."""
    sentences = []
    gpu = any(d["kind"] != "cpu" for d in facts["devices"])
    if not gpu:
        sentences.append(
            "No GPU: the pocket world takes minutes here; a real model of half a billion parameters takes seconds for "
            "each line, so keep to the pocket students or use a machine with a GPU."
        )
    if facts["torch_threads"] > facts["cores"]:
        sentences.append(
            f"torch uses {facts['torch_threads']} threads on {facts['cores']} usable cores, which slows it down: "
            f"set OMP_NUM_THREADS={facts['cores']}."
        )
    if not facts["keys"]["ANTHROPIC_API_KEY"] and not facts["keys"]["OPENAI_API_KEY"]:
        sentences.append(
            "No key for a language-model service: critics and teachers can be the pocket world's, 'local:FOLDER', or "
            "'openai:MODEL@http://127.0.0.1:8000/v1' (a server of your own)."
        )
    sentences += [
        f"The pocket student '{name}' is missing; humor-env pretrain-pocket --student {name} rebuilds it."
        for name, present in facts["pocket_students"].items()
        if not present
    ]
    if facts["disk_free_gb"]["here"] < 2:
        sentences.append(f"Only {facts['disk_free_gb']['here']} GB are free here: checkpoints may not fit.")
    if facts["disk_free_gb"]["model cache"] < 10 and gpu:
        sentences.append(f"Only {facts['disk_free_gb']['model cache']} GB are free for downloaded models.")
    if facts["memory_gb"] is not None and facts["memory_gb"] < 2:
        sentences.append(f"Only {facts['memory_gb']} GB of memory are free; the pocket world needs about 2.")
    return sentences


def usable_cores() -> int:
    """The cores that this process may use: in a container its limit, not the machine's."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        if quota != "max":
            cores = min(cores, max(1, int(quota) // int(period)))
    except (OSError, ValueError):
        return cores  # no such limit
    return cores


def _installed(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _devices(torch: Any) -> list[dict[str, Any]]:
    devices: list[dict[str, Any]] = []
    for index in range(torch.cuda.device_count()):
        facts = torch.cuda.get_device_properties(index)
        devices.append({"kind": "cuda", "name": facts.name, "memory_gb": round(facts.total_memory / _GB, 1)})
    if torch.backends.mps.is_available():
        devices.append({"kind": "mps", "name": "Apple GPU", "memory_gb": None})
    return [*devices, {"kind": "cpu", "name": platform.processor() or platform.machine(), "memory_gb": None}]


def _cache() -> Path:
    home = os.environ.get("HF_HOME")
    return Path(home) if home else Path.home() / ".cache" / "huggingface"


def _existing(path: Path) -> Path:
    return path if path.exists() or path == path.parent else _existing(path.parent)


def _has_student(name: str) -> bool:
    return (pocket.FOLDER / "weights" / name / "config.json").is_file()


def show(facts: Mapping[str, Any]) -> None:
    """Print the facts for people, then the notes."""
    from rich.console import Console

    console = Console(highlight=False, soft_wrap=True)

    def line(what: str, value: str) -> None:
        console.print(f"{what:<12} {value}", markup=False)

    line("versions", ", ".join(f"{name} {version}" for name, version in facts["versions"].items()))
    line("extras", ", ".join(f"{name} {version or 'no'}" for name, version in facts["extras"].items()))
    for device in facts["devices"]:
        memory = f", {device['memory_gb']} GB" if device["memory_gb"] else ""
        line("device", f"{device['kind']}: {device['name']}{memory}")
    line("cores", f"{facts['cores']} usable, torch uses {facts['torch_threads']} threads")
    measured = ", ".join(f"{name} {ms:g} ms" for name, ms in facts["precision"]["milliseconds"].items())
    line(
        "precision",
        f"{facts['precision']['pays']} is fastest on {facts['precision']['device']} ({measured} for a product)",
    )
    line("keys", ", ".join(f"{name} {'set' if is_set else 'not set'}" for name, is_set in facts["keys"].items()))
    line("disk", ", ".join(f"{gb} GB free ({place})" for place, gb in facts["disk_free_gb"].items()))
    line("memory", "unknown" if facts["memory_gb"] is None else f"{facts['memory_gb']} GB free")
    for sentence in facts.get("a_step_takes", ()):
        line("a step takes", sentence)
    for note in facts["notes"]:
        console.print(f"\n{note}", markup=False)
