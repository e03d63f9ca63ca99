"""Measure which precision is fastest on a device, for `dtype = "auto"`.

    measure("cpu")["pays"]                 # "float32" or "bfloat16"
    model = in_paying_precision(model, "cpu")

Most models are saved in 16 bits. Many processors have no 16-bit arithmetic: there the same model is two to three times
faster in 32 bits, and gives the same numbers up to rounding.
"""

from __future__ import annotations

import functools
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from humor_env.errors import InvalidOption, did_you_mean

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

Model = TypeVar("Model", bound="torch.nn.Module")


CPU_FULL = "DefaultCPUAllocator: "
# What torch says of a full memory, beside its OutOfMemoryError.
_MEMORY_FULL = ("CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED", CPU_FULL)
PRECISIONS = ("auto", "float32", "bfloat16", "float16")


def check_precision(dtype: object, choices: Sequence[str] = PRECISIONS, *, name: str = "dtype") -> None:
    """Refuse what is not the name of a precision; `name` is the option's."""
    if dtype not in choices:
        near = did_you_mean(dtype, choices) if isinstance(dtype, str) else ""
        raise InvalidOption(f"{name} must be one of {', '.join(choices)}; found {dtype!r}.{near}")


def device_for(name: str) -> str:
    """A torch device that is there; "auto" is the GPU if there is one."""
    import torch

    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise InvalidOption(f"{name!r} is no torch device. Known: auto, cpu, cuda, cuda:1, mps, …") from None
    no_cuda = device.type == "cuda" and not torch.cuda.is_available()
    if no_cuda or (device.type == "mps" and not torch.backends.mps.is_available()):
        raise InvalidOption(
            f'The device is {name!r}, but torch finds no usable GPU. Set device = "cpu", or install a torch build '
            "for your GPU's driver."
        )
    count = torch.cuda.device_count() if device.type == "cuda" else 0
    if count and (device.index or 0) >= count:
        raise InvalidOption(
            f"The device is {name!r}, but torch finds {count} GPU{'s' * (count > 1)}, of which the last is "
            f"'cuda:{count - 1}'."
        )
    return name


@functools.cache
def measure(kind: str) -> dict[str, Any]:
    """Milliseconds of one matrix product by precision on a kind of device ("cpu", "cuda"), and which is faster."""
    import torch

    size = 4096 if kind == "cuda" else 768
    seconds = {name: _product(getattr(torch, name), kind, size) for name in ("float32", "bfloat16")}
    pays = "bfloat16" if seconds["bfloat16"] < 0.8 * seconds["float32"] else "float32"
    return {"device": kind, "pays": pays, "milliseconds": {k: round(v * 1000, 3) for k, v in seconds.items()}}


def _product(dtype: torch.dtype, kind: str, size: int) -> float:
    import torch

    a = torch.ones(size, size, dtype=dtype, device=kind)
    best = float("inf")
    for _ in range(4):
        began = time.perf_counter()
        a @ a
        if kind == "cuda":
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - began)
    return best


def in_paying_precision(model: Model, device: str | torch.device, *, quantised: bool = False) -> Model:
    """Convert a 16-bit model to 32 bits if the device is slow in 16 and there is room; else return it unchanged. Only a
    model that was stored in fewer than 16 bits a weight (`quantised`) is narrowed where that is faster."""
    import torch

    kind = torch.device(device).type
    narrow = sum(w.numel() for w in model.parameters() if w.dtype in (torch.bfloat16, torch.float16))
    if kind not in ("cpu", "cuda") or not (narrow or quantised):
        return model
    if measure(kind)["pays"] != "float32":
        return _in_bfloat16(model) if quantised else model
    room = torch.cuda.mem_get_info(device)[0] if kind == "cuda" else free_memory()
    # Twice, because a model needs more than its weights.
    return model.float() if room is None or 2 * 4 * narrow < room else model


def precision_of(model: PreTrainedModel) -> str:
    """The precision of a model's weights, such as "bfloat16"."""
    return str(model.dtype).removeprefix("torch.")


def _in_bfloat16(model: Model) -> Model:
    """As `from_pretrained(dtype=torch.bfloat16)` would have loaded it. `model.bfloat16()` would also round what is
    computed and not stored, such as the frequencies of rotary positions."""
    import torch

    for tensor in model.state_dict(keep_vars=True).values():
        if tensor.is_floating_point():
            tensor.data = tensor.data.to(torch.bfloat16)
    return model


def memory_is_full(problem: Exception) -> bool:
    """Whether an error says that a memory is full, which smaller batches may mend. The class is compared by name, so
    that torch need not be imported."""
    return type(problem).__name__ == "OutOfMemoryError" or any(text in str(problem) for text in _MEMORY_FULL)


def free_memory(root: Path = Path("/")) -> int | None:
    """Bytes available to a process on this machine or in this container; None if unknown."""
    try:
        lines = (root / "proc/meminfo").read_text().splitlines()
        free = next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable")) * 1024
    except (OSError, StopIteration, ValueError):
        return None
    try:
        group = root / "sys/fs/cgroup"
        limit = int((group / "memory.max").read_text())  # "max": no limit
        statistics = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        # The kernel's file cache counts as used, but is released on demand.
        return min(free, max(0, limit - int((group / "memory.current").read_text()) + int(statistics["file"])))
    except (OSError, KeyError, ValueError):
        return free


def peak_memory(device: torch.device | None = None) -> int | None:
    """This process's peak memory in bytes so far: on the GPU if it uses one, else on the machine. None if unknown.
    Of several GPUs it is `device`, or the current one."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        gpu = device if device is not None and device.type == "cuda" else None
        return int(torch.cuda.max_memory_reserved(gpu))
    try:
        import resource
    except ImportError:  # Windows
        return None
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
