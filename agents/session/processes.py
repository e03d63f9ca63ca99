"""Communication between processes, through Accelerate; with one process nothing is exchanged.

    total = sum_over_processes(torch.stack([loss_sum, token_count]))
    sum_gradients(parameters)

Learners scale a loss by the *global* token count and sum gradients over processes, so that two processes with half the
batch each take the same step as one with all of it. Only the adapters and the value head are exchanged: the
frozen base is the same everywhere.
"""

from __future__ import annotations

import ctypes
import functools
import json
import platform
from collections.abc import Iterable
from typing import Any

import torch
from accelerate import PartialState
from torch import Tensor

from humor_env.agents.student.transfers import read

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3


def process_count() -> int:
    return PartialState().num_processes


def process_index() -> int:
    return PartialState().process_index


def is_main_process() -> bool:
    return PartialState().is_main_process


def sum_over_processes(values: Tensor) -> Tensor:
    """The elementwise sum of `values` over all processes."""
    if process_count() == 1:
        return values
    summed = values.to(PartialState().device, copy=True)  # the exchange needs the process's device
    torch.distributed.all_reduce(summed)
    return summed.to(values.device)


def spread_over_processes(values: Tensor, keep: Tensor) -> tuple[float, float, float]:
    """Count, mean, and sum of squared distances from the mean of the kept values, over all processes."""
    values, keep = read(values, keep)
    kept_values = values[keep].double()
    count, total = sum_over_processes(torch.stack([keep.sum().double(), kept_values.sum()])).tolist()
    mean = total / count if count else 0.0
    return count, mean, float(sum_over_processes((kept_values - mean).square().sum()))


def sum_gradients(parameters: Iterable[torch.nn.Parameter]) -> None:
    """Sum gradients over processes in one exchange, in place."""
    if process_count() == 1:
        return
    gradients = [p.grad for p in parameters if p.grad is not None]
    if not gradients:
        return
    flat = torch.cat([g.reshape(-1) for g in gradients])
    torch.distributed.all_reduce(flat)
    start = 0
    for gradient in gradients:
        gradient.copy_(flat[start : start + gradient.numel()].view_as(gradient))
        start += gradient.numel()


def any_process(flag: bool) -> bool:
    """True on every process if `flag` is true on any, so that all stop together."""
    if process_count() == 1:
        return flag
    return bool(sum_over_processes(torch.tensor(float(flag), device=PartialState().device)) > 0)


def local_share(total: int) -> slice:
    """The part of `total` rows that this process handles; `total` must divide evenly."""
    count, index = process_count(), process_index()
    return slice(total * index // count, total * (index + 1) // count)


def gather_records(records: list[dict[str, Any]]) -> list[dict[str, Any]] | None:
    """The records of all processes in process order, exchanged as JSON; None if this is the only one."""
    if process_count() == 1:
        return None
    device = PartialState().device
    data = torch.frombuffer(bytearray(json.dumps(records).encode()), dtype=torch.uint8).to(device)
    sizes = [torch.zeros(1, dtype=torch.long, device=device) for _ in range(process_count())]
    torch.distributed.all_gather(sizes, torch.tensor([len(data)], device=device))
    padded = torch.zeros(max(int(s) for s in sizes), dtype=torch.uint8, device=device)
    padded[: len(data)] = data
    parts = [torch.zeros_like(padded) for _ in sizes]
    torch.distributed.all_gather(parts, padded)
    return [
        record
        for part, size in zip(parts, sizes, strict=True)
        for record in json.loads(part[: int(size)].cpu().numpy().tobytes())
    ]


@functools.cache
def keep_freed_memory(limit: int = 1 << 30) -> bool:
    """Make glibc reuse freed blocks up to `limit` bytes. False if the C library is not glibc.

    glibc gives every block above 128 kB (by default) a mapping of its own and unmaps it when freed, so each step's
    activations are page-faulted in again. Raising two thresholds keeps them on the heap, warm for the next step.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    libc = ctypes.CDLL("libc.so.6")
    return bool(libc.mallopt(_M_MMAP_THRESHOLD, limit)) and bool(libc.mallopt(_M_TRIM_THRESHOLD, limit))
