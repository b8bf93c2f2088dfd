"""`hold`: the primitive of `scaling.scaled` with factors that are data, not code.

A rewritten graph reads its factors from one small tensor, so that re-measuring writes numbers and
never recompiles.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from unitscale.formats.rounding import is_traced

__all__ = ["hold"]

ALIGNMENT = 64
"""Bytes: the widest vector of a CPU, and how torch aligns memory."""


class Hold(torch.autograd.Function):
    """Forward multiplies by `fwd`, backward by `bwd`; None is exactly 1 and costs nothing."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, fwd: Tensor | None, bwd: Tensor | None) -> Tensor:
        ctx.save_for_backward(bwd)
        ctx.set_materialize_grads(False)  # a parameter that gets no gradient is not to get zeros
        return x.view_as(x) if fwd is None else times(x, fwd)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor | None) -> tuple[Tensor | None, None, None]:
        (bwd,) = ctx.saved_tensors
        return grad if grad is None or bwd is None else times(grad, bwd), None, None


def times(x: Tensor, factor: Tensor) -> Tensor:
    """`x * factor` in the dtype of x; the factor is a scalar tensor, a power of two in practice.

    Outside of a compiler the result lies in memory as `x` does, gaps, repetitions and alignment
    included: torch's kernels may round differently elsewhere (gelu does, which it hands to another
    library, a sum goes through its terms in another order, and MKL chooses a kernel by alignment).
    """
    if is_traced(x) or x.is_sparse:
        return (x * factor).to(x.dtype)
    size = x.size()
    shared = [axis for axis, stride in enumerate(x.stride()) if stride == 0 and x.size(axis) > 1]
    for axis in shared:
        x = x.narrow(axis, 0, 1)
    y = (x * factor).to(x.dtype)  # `to`: two scalar tensors would promote to float32
    as_it_lies = x.is_contiguous() or y.stride() == x.stride()
    strides, start = y.stride() if as_it_lies else gapped(x), misaligned(x)
    if start or not as_it_lies:
        y = empty(x, strides, start).copy_(y)
    return y.expand(size) if shared else y


def misaligned(x: Tensor) -> int:
    """By how many elements the first one of `x` is past the last multiple of `ALIGNMENT`."""
    return x.data_ptr() % ALIGNMENT // x.element_size()


def empty(x: Tensor, strides: Sequence[int], start: int) -> Tensor:
    """Memory for the elements of `x`, the first of them `start` past an aligned one."""
    length = 1 + sum((n - 1) * stride for n, stride in zip(x.size(), strides, strict=True))
    memory = torch.empty(start + max(length, 0), dtype=x.dtype, device=x.device)
    return memory.as_strided(x.size(), strides, start)


def gapped(x: Tensor) -> list[int]:
    """Strides in the order of those of `x`, with a few idle elements wherever `x` leaves some.

    As many as give rows the alignment that they have in `x`, by which libraries choose a kernel.
    """
    strides, span, length = [0] * x.dim(), 1, 1
    aligned = ALIGNMENT // x.element_size()
    for axis in sorted(range(x.dim()), key=lambda axis: (x.stride(axis), x.size(axis))):
        has_gap = x.size(axis) > 1 and x.stride(axis) > span
        gap = (x.stride(axis) - length - 1) % aligned + 1
        strides[axis] = length + gap if has_gap else length
        if x.size(axis) > 1:
            span, length = x.stride(axis) * x.size(axis), strides[axis] * x.size(axis)
    return strides


def hold(x: Tensor, fwd: Tensor | None = None, bwd: Tensor | None = None) -> Tensor:
    """Multiply `x` by `fwd` on the way forward and its gradient by `bwd` on the way back.

    The factors are scalar tensors on the device of `x`; None leaves that direction alone.
    """
    return Hold.apply(x, fwd, bwd)
