"""Tensors to and from a device without making it wait more often than it must.

    first, group = send(device, first, group)        # one copy; this process goes on at once
    rewards, valid = read(rewards, valid)            # one question for all of them

A GPU works through what it was given while this process prepares more. Each number that is read back, and each plain
copy to the device, waits until all of that is done, and the device then idles until it is given something new.
"""

from __future__ import annotations

import torch
from torch import Tensor


def send(device: torch.device, *tensors: Tensor) -> list[Tensor]:
    """These tensors of the CPU, all of one type, on the device. Those that are there already stay as they are."""
    if {tensor.device.type for tensor in tensors} <= {device.type}:
        return list(tensors)
    flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
    if device.type == "cuda":
        # From other memory the driver may wait for the stream. PyTorch keeps this until it was read.
        flat = flat.pin_memory()
    there = flat.to(device, non_blocking=device.type != "mps")  # MPS reads what may be gone by then
    parts = there.split([tensor.numel() for tensor in tensors])
    return [part.view(tensor.shape) for part, tensor in zip(parts, tensors, strict=True)]


def read(*tensors: Tensor) -> list[Tensor]:
    """These tensors on the CPU. In between all are doubles, which hold any float32 and whole numbers up to 2**53."""
    away = [tensor for tensor in tensors if tensor.device.type != "cpu"]
    if len(away) < 2 or away[0].device.type == "mps":  # which has no doubles
        return [tensor.cpu() for tensor in tensors]
    flat = torch.cat([tensor.detach().reshape(-1).double() for tensor in away]).cpu()
    parts = iter(flat.split([tensor.numel() for tensor in away]))
    return [
        tensor if tensor.device.type == "cpu" else next(parts).view(tensor.shape).to(tensor.dtype) for tensor in tensors
    ]
