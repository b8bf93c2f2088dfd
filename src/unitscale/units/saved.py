"""Element-wise functions that keep their inputs for backward in eight bits.

The forward pass is exact: only what a function saves is rounded, at its unit, and its derivative is
taken there. At unit scale E4M3FN is within 2^-4 of every value from 2^-6 up, and an activation's
derivative moves by little more. Source: COAT (Xi et al. 2024) saves the inputs of its non-linear
layers in FP8, with scales from amax.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx

from unitscale.formats import Encoded
from unitscale.gemm import first_order, in_backward
from unitscale.gemm.operand import Use, encode, pack, take, wide
from unitscale.units.hold import times
from unitscale.units.op_table import OPS
from unitscale.units.ops import is_real, op_of

__all__ = ["BY_NAME", "saving", "with_saved_input"]

BY_NAME: dict[str, Callable[..., Tensor]] = {
    op.saved.__name__: op.saved for op in OPS if op.saved is not None
}
"""Functions whose derivative is taken from their input (that of tanh, say, is from its output)."""


def with_saved_input(node: fx.Node) -> str | None:
    """The name of a node's function in `BY_NAME`, if it takes tensors and named options only."""
    function = op_of(node).saved if callable(node.target) else None
    return function.__name__ if function and all(map(is_real, node.args)) else None


def saving(
    name: str, format_name: str, units: tuple[Tensor | None, ...], *tensors: Tensor, **options: Any
) -> Tensor:
    """`BY_NAME[name](*tensors, **options)`, its derivative taken at the saved, rounded tensors.

    Args:
        name: a name and not the function, so that a printed graph can be read (and re-executed).
        units: of each tensor; it is rounded after division by its unit (None is 1).
    """
    return Saving.apply(BY_NAME[name], options, format_name, units, *tensors)


class Saving(torch.autograd.Function):
    """The function of exact values forward, the derivative at rounded ones backward."""

    @staticmethod
    def forward(
        ctx: Any,
        function: Callable[..., Tensor],
        options: dict[str, Any],
        format_name: str,
        units: tuple[Tensor | None, ...],
        *tensors: Tensor,
    ) -> Tensor:
        ctx.function, ctx.options, ctx.dtypes = function, options, [x.dtype for x in tensors]
        held = [x if s is None else times(x, 1 / s) for x, s in zip(tensors, units, strict=True)]
        ctx.use = use = Use(format_name)
        ctx.save_for_backward(*(pack(encode(x, use), use).data for x in held), *units)
        return function(*tensors, **options)

    @staticmethod
    @first_order
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        count = len(ctx.dtypes)
        points = [
            in_backward(times_unit(code, unit, ctx.use, dtype), grad).detach().requires_grad_()
            for code, unit, dtype in zip(
                ctx.saved_tensors[:count], ctx.saved_tensors[count:], ctx.dtypes, strict=True
            )
        ]
        with torch.enable_grad():
            output = ctx.function(*points, **ctx.options)
        grads = torch.autograd.grad(output, points, grad)
        return (None, None, None, None, *grads)


def times_unit(code: Tensor, unit: Tensor | None, use: Use, dtype: torch.dtype) -> Tensor:
    """A saved tensor in a dtype, multiplied by its unit in float32."""
    if unit is None:
        return take(Encoded(code, None), use, dtype)
    return (take(Encoded(code, None), use, wide(dtype)) * unit).to(dtype)
