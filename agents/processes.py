"""The few things that several processes must agree on, through Accelerate; with one process, nothing happens.

    total = sum_over_processes(torch.stack([loss_sum, token_count]))
    sum_gradients(parameters)

Learners scale a loss by the *global* token count and add gradients up over processes, so that two processes with half
the batch each take the same step as one with all of it. Only the adapters and the value head are exchanged: the
frozen base is the same everywhere.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from accelerate import PartialState
from torch import Tensor


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
    summed = values.to(PartialState().device, copy=True)  # the exchange happens where the devices can
    torch.distributed.all_reduce(summed)
    return summed.to(values.device)


def spread_over_processes(values: Tensor, keep: Tensor) -> tuple[float, float, float]:
    """Count, mean, and sum of squared distances from the mean, of the kept values of all processes."""
    kept = values[keep].double()
    count, total = sum_over_processes(torch.stack([keep.sum().double(), kept.sum()])).tolist()
    mean = total / count if count else 0.0
    return count, mean, float(sum_over_processes((kept - mean).square().sum()))


def sum_gradients(parameters: Iterable[torch.nn.Parameter]) -> None:
    """Add up gradients over processes in one exchange, in place."""
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
    """True everywhere when it is true anywhere: so that all processes stop together."""
    if process_count() == 1:
        return flag
    return bool(sum_over_processes(torch.tensor(float(flag), device=PartialState().device)) > 0)


def local_share(total: int) -> slice:
    """The part of `total` rows that this process handles; `total` must divide evenly."""
    count, index = process_count(), process_index()
    return slice(total * index // count, total * (index + 1) // count)
