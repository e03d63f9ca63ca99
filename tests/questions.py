"""Counts how often a program asks a device: a GPU answers no question before it has done all that it was given to do.

    with Questions() as questions:
        student.score(rows)
    questions.counts          # Counter({"read": 1}); what was asked, by kind

A question is a number or a table that is read, a tensor whose shape depends on values (`x[mask]`, `nonzero`), and a
blocking copy to the device, which waits for the stream as well (`torch.tensor(..., device=)`, `.to(device)`, an index
that lies on the CPU). What happens among tensors of the CPU is no question.
"""

from __future__ import annotations

from collections import Counter
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

SHAPED_BY_VALUES = (
    "nonzero",
    "_unique2",
    "unique_dim",
    "unique_consecutive",
    "masked_select",
    "masked_scatter_backward",
    "equal",
)


class Questions(TorchDispatchMode):
    """`phase` is the first half of a count's name while it is set.

    On the meta device nothing has a value, so that there a question is answered with 1 where it asks for one number,
    and fails otherwise.
    """

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()
        self.phase = ""

    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        kind = _kind(operation, args, kwargs)
        if kind:
            self.counts[f"{self.phase}: {kind}" if self.phase else kind] += 1
            if kind == "read" and args[0].is_meta:
                return True if args[0].dtype == torch.bool else 1
        return operation(*args, **kwargs)

    @contextmanager
    def during(self, phase: str) -> Any:
        """Count under this name; within another one under both."""
        before = self.phase
        self.phase = f"{before} > {phase}" if before else phase
        try:
            yield
        finally:
            self.phase = before

    @property
    def total(self) -> int:
        return self.counts.total()


def _kind(operation: Any, args: Any, kwargs: dict[str, Any]) -> str:
    name = operation.name().removeprefix("aten::").split(".")[0]
    there = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor) and t.device.type != "cpu"]
    if name == "_to_copy":
        source, target = args[0].device, torch.device(kwargs.get("device") or args[0].device)
        return _copy(source, target, bool(kwargs.get("non_blocking")))
    if name in ("copy_", "_copy_from"):
        blocking = kwargs.get("non_blocking", args[2] if len(args) > 2 else False)
        # A number of the CPU travels with the launch.
        return (
            ""
            if args[1].ndim == 0 and args[1].device.type == "cpu"
            else _copy(args[1].device, args[0].device, bool(blocking))
        )
    if name == "lift_fresh" and there and there[0].numel():
        return "made on the device from a list"
    if not there:
        return ""
    if name == "_local_scalar_dense":
        return "read"
    if name in SHAPED_BY_VALUES:
        return name
    if name == "repeat_interleave" and kwargs.get("output_size") is None and len(args) == 1:
        return name
    if name in ("index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index"):
        indices = [i for i in args[1] if i is not None]
        if any(i.dtype in (torch.bool, torch.uint8) for i in indices):
            return "index by a mask"
        if any(i.device.type == "cpu" for i in indices):
            return "index that lies on the CPU"
    return ""


def _copy(source: torch.device, target: torch.device, non_blocking: bool) -> str:
    if source.type == target.type:
        return ""
    if target.type == "cpu":
        return "read"
    return "" if non_blocking else "blocking copy to the device"
