"""Which precision is fastest on a device: measured, and used where a user leaves the choice to us (`dtype = "auto"`).

    measure("cpu")["pays"]                 # "float32" or "bfloat16"
    model = in_paying_precision(model, "cpu")

Most models are saved in 16 bits. Many processors have no arithmetic for these: there the same model is two to three
times faster in 32, and gives the same numbers but for rounding.
"""

from __future__ import annotations

import functools
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    import torch

Model = TypeVar("Model", bound="torch.nn.Module")


def device_for(wanted: str) -> str:
    """A torch device; "auto" is the GPU where there is one."""
    import torch

    return wanted if wanted != "auto" else ("cuda" if torch.cuda.is_available() else "cpu")


@functools.cache
def measure(kind: str) -> dict[str, Any]:
    """Milliseconds of one matrix product by precision on a kind of device ("cpu", "cuda"), and which one pays."""
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


def in_paying_precision(model: Model, device: str | torch.device) -> Model:
    """The model in 32 bits where it was loaded in 16, the device is slow in 16, and there is room; else as it is. It is
    never narrowed: that would lose digits that somebody saved."""
    import torch

    kind = torch.device(device).type
    narrow = sum(w.numel() for w in model.parameters() if w.dtype in (torch.bfloat16, torch.float16))
    if not narrow or kind not in ("cpu", "cuda") or measure(kind)["pays"] != "float32":
        return model
    room = torch.cuda.mem_get_info(device)[0] if kind == "cuda" else free_memory()
    # Twice: the weights are not all that a model needs.
    return model.float() if room is None or 2 * 4 * narrow < room else model


def free_memory(root: Path = Path("/")) -> int | None:
    """Bytes that a process can have on this machine, or in this container; None where nothing tells."""
    try:
        lines = (root / "proc/meminfo").read_text().splitlines()
        free = next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable")) * 1024
    except (OSError, StopIteration, ValueError):
        return None
    try:
        group = root / "sys/fs/cgroup"
        limit = int((group / "memory.max").read_text())  # "max" is none
        counted = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        # Files that the kernel keeps at hand count as used, and are given up for whoever needs the room.
        return min(free, max(0, limit - int((group / "memory.current").read_text()) + int(counted["file"])))
    except (OSError, KeyError, ValueError):
        return free


def peak_memory() -> int | None:
    """The most bytes that this process has held so far: of a GPU where it uses one, else of the machine. None where the
    system does not tell."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        return int(torch.cuda.max_memory_reserved())
    try:
        import resource
    except ImportError:  # Windows
        return None
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
