"""One copy on a GPU of the frozen weights that several models have in common.

    model = share_weights(model.to(device))      # the student's base, a judge's model, a trained critic's body
    own_weights([parameter])                     # before it is trained

A student with adapters, a `local:` judge, a `fit` critic and the trained critics often stand on the same language
model. Each of them loads it by itself; equal weights then become one block of memory. On the CPU nothing is done:
weights read from one file are already the same pages there.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    import torch

Model = TypeVar("Model", bound="torch.nn.Module")
_shared: weakref.WeakValueDictionary[tuple[Any, ...], torch.Tensor] = weakref.WeakValueDictionary()
_HELD = "_shared_weight"
"""Where a parameter holds the tensor that it shares: so the tensor is freed with the last of its parameters. Not
`parameter.data`, which is another weight while an adapter is merged into it."""


def share_weights(model: Model) -> Model:
    """Give each weight of a model on a GPU the memory of an equal weight that was loaded before. Only for weights that
    nobody changes in place."""
    import torch

    for parameter in model.parameters():
        if parameter.device.type == "cpu" or parameter.is_inference():
            continue
        weight = parameter.detach()
        key = (weight.device, weight.dtype, weight.shape, sample(weight))
        shared = _shared.get(key)
        if shared is None:
            _shared[key] = shared = weight
        elif not torch.equal(shared, weight):  # alike in the sample only
            continue
        parameter.data = shared
        setattr(parameter, _HELD, shared)
    return model


def own_weights(parameters: Iterable[torch.nn.Parameter]) -> None:
    """Copy what these parameters share with other models, so that they can be trained."""
    for parameter in parameters:
        if hasattr(parameter, _HELD):
            parameter.data = parameter.data.clone()
            delattr(parameter, _HELD)


def sample(weight: torch.Tensor) -> bytes:
    """Up to 192 of a weight's numbers, from its start, middle and end, as float32."""
    import torch

    flat = weight.detach().reshape(-1)
    numbers = torch.cat([flat[:64], flat[flat.numel() // 2 :][:64], flat[-64:]]).float().cpu()
    return bytes(numbers.numpy().tobytes())
