"""`hold`: the primitive of `scaling.scaled` with factors that are data, not code.

A rewritten graph reads its factors from one small tensor, so that re-measuring writes numbers and
never recompiles.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from unitscale.formats.batched import is_batched
from unitscale.formats.rounding import is_traced
from unitscale.gemm import first_order

__all__ = ["hold", "measured_hold", "number", "times"]

ALIGNMENT = 64
"""Bytes: the widest vector of a CPU, and how torch aligns memory."""


class Hold(torch.autograd.Function):
    """Forward multiplies by `fwd`, backward by `bwd`; None is exactly 1 and costs nothing."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, fwd: Tensor | None, bwd: Tensor | None, exact: bool) -> Tensor:
        ctx.save_for_backward(bwd)
        ctx.exact = exact
        ctx.set_materialize_grads(False)  # a parameter that gets no gradient is not to get zeros
        return x.view_as(x) if fwd is None else times(x, fwd, exact=exact)

    @staticmethod
    @first_order
    def backward(ctx: Any, grad: Tensor | None) -> tuple[Tensor | None, None, None, None]:
        (bwd,) = ctx.saved_tensors
        if grad is None or bwd is None:
            return grad, None, None, None
        return times(grad, bwd, exact=ctx.exact), None, None, None


class MeasuredHold(torch.autograd.Function):
    """`Hold` in a measuring step: its backward factor is known only once the gradient is there.

    It saves no tensor, so it may be computed again by a checkpoint.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, fwd: float | None, bwd: Callable[[Tensor], float], exact: bool
    ) -> Tensor:
        ctx.bwd, ctx.exact = bwd, exact
        ctx.set_materialize_grads(False)
        return x.view_as(x) if fwd is None else times(x, number(fwd, x), exact=exact)

    @staticmethod
    @first_order
    def backward(ctx: Any, grad: Tensor | None) -> tuple[Tensor | None, None, None, None]:
        if grad is None:
            return None, None, None, None
        factor = ctx.bwd(grad)
        if factor == 1.0:
            return grad, None, None, None
        return times(grad, number(factor, grad), exact=ctx.exact), None, None, None


def number(factor: float, x: Tensor) -> Tensor:
    """A factor as a scalar tensor beside `x`, in float32: float16 ends at 2^-24."""
    return torch.tensor(factor, dtype=torch.float32, device=x.device)


def times(x: Tensor, factor: Tensor, *, exact: bool = True) -> Tensor:
    """`x * factor` in the dtype of x; the factor is a scalar tensor, a power of two in practice.

    If `exact`, then outside of a compiler the result lies in memory as `x` does, gaps, repetitions
    and alignment included: torch's kernels may round differently elsewhere (gelu does, which it
    hands to another library, a sum goes through its terms in another order, and MKL chooses a
    kernel by alignment).
    """
    if not exact or is_traced(x) or x.is_sparse or is_batched(x):
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
    for axis in sorted(range(x.dim()), key=lambda axis: (x.stride(axis), x.size(axis), -axis)):
        has_gap = x.size(axis) > 1 and x.stride(axis) > span
        gap = (x.stride(axis) - length - 1) % aligned + 1
        strides[axis] = length + gap if has_gap else length
        if x.size(axis) > 1:
            span, length = x.stride(axis) * x.size(axis), strides[axis] * x.size(axis)
    return strides


def hold(
    x: Tensor, fwd: Tensor | None = None, bwd: Tensor | None = None, exact: bool = True
) -> Tensor:
    """Multiply `x` by `fwd` on the way forward and its gradient by `bwd` on the way back.

    The factors are scalar tensors on the device of `x`; None leaves that direction alone. `exact`
    keeps where and how the result lies in memory, see `times`: where nothing is rounded, equality
    with the plain model to the bit is promised, and kernels choose their order of sums by that.
    """
    return Hold.apply(x, fwd, bwd, exact)


def measured_hold(
    x: Tensor, fwd: float | None, bwd: Callable[[Tensor], float], *, exact: bool
) -> Tensor:
    """`hold` with a backward factor that is asked for when the gradient comes."""
    return MeasuredHold.apply(x, fwd, bwd, exact)
