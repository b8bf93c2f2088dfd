"""Tensors of vmap, whose lanes an element-wise function may treat as one tensor.

torch's own reads for that are not documented; they are all here. `tests/formats/test_batched.py`.
"""

from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["is_batched", "over_lanes"]


def is_batched(x: Tensor) -> bool:
    """Whether a tensor is one lane of many, as gradients under `is_grads_batched=True` are.

    Assumed: `torch._C._functorch.is_batchedtensor`, and `is_legacy_batchedtensor` for those of
    autograd. Seen on torch 2.13.
    """
    if torch.compiler.is_compiling():  # which sees through vmap, and not into torch._C
        return False
    lanes = torch._C._functorch
    return bool(lanes.is_batchedtensor(x) or lanes.is_legacy_batchedtensor(x))


def over_lanes(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """`function(x)` of all lanes at once, for one that is element-wise and keeps the shape.

    Assumed: `get_unwrapped`, `maybe_get_bdim`, `maybe_get_level` and `_add_batch_dim` take a lane
    apart and put it together; in autograd `torch._remove_batch_dim` and `torch._add_batch_dim` do,
    at level 1. Seen on torch 2.13.
    """
    lanes = torch._C._functorch
    if lanes.is_legacy_batchedtensor(x):
        return torch._add_batch_dim(function(torch._remove_batch_dim(x, 1, 0, 0)), 0, 1)
    axis, level = lanes.maybe_get_bdim(x), lanes.maybe_get_level(x)
    return lanes._add_batch_dim(function(lanes.get_unwrapped(x)), axis, level)
