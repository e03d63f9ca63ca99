"""Tensor transfers with as few synchronisations as possible, and the check of the device.

    first, group = send(device, first, group)        # one copy; does not block
    rewards, valid = read(rewards, valid)            # one synchronisation for all
    pool.submit(judge, own_stream(device))           # a thread whose work on the GPU runs beside this one's

A GPU works through its queue while this process prepares more. Each number read back, and each plain copy to the
device, waits until the queue is empty, and the device then idles until it gets new work.
"""

from __future__ import annotations

import contextlib
import functools

import torch
from torch import Tensor

from humor_env.errors import InvalidOption, StudentError
from humor_env.shared.precision import device_for


def send(device: torch.device, *tensors: Tensor) -> list[Tensor]:
    """Copy CPU tensors, all of one type, to the device. Those already there are returned as they are."""
    if {tensor.device.type for tensor in tensors} <= {device.type}:
        return list(tensors)
    flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
    if device.type == "cuda":
        # Pinned: from pageable memory the driver may wait for the stream. PyTorch keeps the buffer until it was read.
        flat = flat.pin_memory()
    on_device = flat.to(device, non_blocking=device.type != "mps")  # MPS may read the buffer after it is freed
    parts = on_device.split([tensor.numel() for tensor in tensors])
    return [part.view(tensor.shape) for part, tensor in zip(parts, tensors, strict=True)]


def read(*tensors: Tensor) -> list[Tensor]:
    """Copy tensors to the CPU, as doubles, which hold any float32 and integers up to 2**53; types are restored."""
    away = [tensor for tensor in tensors if tensor.device.type != "cpu"]
    if len(away) < 2 or away[0].device.type == "mps":  # MPS has no doubles
        return [tensor.cpu() for tensor in tensors]
    flat = torch.cat([tensor.detach().reshape(-1).double() for tensor in away]).cpu()
    parts = iter(flat.split([tensor.numel() for tensor in away]))
    return [
        tensor if tensor.device.type == "cpu" else next(parts).view(tensor.shape).to(tensor.dtype) for tensor in tensors
    ]


def own_stream(device: torch.device) -> contextlib.AbstractContextManager[object]:
    """For another thread: its work on a GPU begins after what this thread has queued so far, and then runs beside what
    this thread queues. In one stream it would wait for all of that."""
    if device.type != "cuda":
        return contextlib.nullcontext()
    stream = _second_stream(device)
    stream.wait_stream(torch.cuda.current_stream(device))
    return torch.cuda.stream(stream)


def current(device: torch.device) -> contextlib.AbstractContextManager[object]:
    """Makes a GPU the current one, on which graphs are captured and replayed. Elsewhere nothing."""
    return torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext()


@functools.cache
def capture_stream(device: torch.device) -> torch.cuda.Stream:
    """Always the same one, too: cuBLAS keeps memory for each stream that it was ever used on."""
    return torch.cuda.Stream(device)


@functools.cache
def _second_stream(device: torch.device) -> torch.cuda.Stream:
    """Always the same one, because PyTorch keeps the memory that a stream has freed for that stream."""
    return torch.cuda.Stream(device)


def ready(device: str | torch.device) -> torch.device:
    """The device, checked and set up for a student. Raises StudentError for a GPU that is not there."""
    try:
        device = torch.device(device_for(str(device)))
    except InvalidOption as problem:
        raise StudentError(f"The student cannot be loaded. {problem}") from None
    if device.type == "cuda":
        # cuDNN's attention plans every new shape of a batch for tens of milliseconds, and here most shapes are new.
        torch.backends.cuda.enable_cudnn_sdp(False)
    return device
