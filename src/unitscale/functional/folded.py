"""Operations that take their factors with them: what eager mode runs instead of factored edges.

A factored edge is a pass over memory. The kernel behind `addmm` multiplies by a number as it writes
its result, so the output and both gradients of a product take their factors there, for nothing; two
weighted terms are summed in two passes instead of three. Compiled code keeps the edges: a compiler
fuses them, and a rewrite has to see them.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.forward_ad import unpack_dual

from unitscale.scaling import scale_bwd
from unitscale.scaling.primitive import transforms_are_active

__all__ = ["ProductScales", "can_fold", "folded_add", "folded_bmm", "folded_linear", "folded_split"]


def can_fold(*operands: Tensor) -> bool:
    """Whether the folded operation is what the factored edges would give, up to rounding.

    Not where operations are traced, transformed, cast by autocast or overridden by a subclass.
    """
    return (
        not torch.compiler.is_compiling()
        and not transforms_are_active()
        and all(
            type(x) in (Tensor, nn.Parameter)
            and x.dtype == operands[0].dtype
            and unpack_dual(x).tangent is None
            for x in operands
        )
        and not torch.is_autocast_enabled(operands[0].device.type)
    )


class ProductScales(NamedTuple):
    """The factors on the edges of a product of two operands."""

    output: float
    grad_left: float
    grad_right: float


class FoldedLinear(torch.autograd.Function):
    """`scales.output * x @ weight.T + bias`; each gradient is multiplied by its own factor."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        scales: ProductScales,
        grad_bias_scale: float,
    ) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.scales, ctx.grad_bias_scale = scales, grad_bias_scale
        # Written through a view: a result that is itself a view could not be changed in place.
        output = x.new_empty(*x.shape[:-1], len(weight))
        multiply(rows_of(x), weight.t(), scales.output, bias, out=rows_of(output))
        return output

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = as_differentiated(ctx.saved_tensors, ctx.scales)
        needs_x, needs_weight, needs_bias = ctx.needs_input_grad[:3]
        rows, scales = rows_of(grad), ctx.scales
        return (
            multiply(rows, weight, scales.grad_left).view(x.shape) if needs_x else None,
            multiply(rows.t(), rows_of(x), scales.grad_right) if needs_weight else None,
            rows.sum(0) * ctx.grad_bias_scale if needs_bias else None,
            None,
            None,
        )


class FoldedBmm(torch.autograd.Function):
    """`scales.output * left @ right` of stacks of matrices."""

    @staticmethod
    def forward(ctx: Any, left: Tensor, right: Tensor, scales: ProductScales) -> Tensor:
        ctx.save_for_backward(left, right)
        ctx.scales = scales
        return multiply(left, right, scales.output)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        left, right = as_differentiated(ctx.saved_tensors, ctx.scales)
        needs_left, needs_right = ctx.needs_input_grad[:2]
        scales = ctx.scales
        return (
            multiply(grad, right.mT, scales.grad_left) if needs_left else None,
            multiply(left.mT, grad, scales.grad_right) if needs_right else None,
            None,
        )


def multiply(
    left: Tensor,
    right: Tensor,
    factor: float,
    bias: Tensor | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """`factor * left @ right + bias` of matrices or of stacks of matrices, by one kernel."""
    # With beta 0 the kernel does not read what it would add.
    addend, beta = (left.new_empty(()), 0) if bias is None else (bias, 1)
    kernel = torch.addmm if left.dim() == 2 else torch.baddbmm
    return kernel(addend, left, right, beta=beta, alpha=factor, out=out)


def rows_of(x: Tensor) -> Tensor:
    """[..., features] as a matrix."""
    return x.reshape(x.shape[:-1].numel(), x.shape[-1])  # -1 is not known of an empty tensor


def as_differentiated(
    operands: tuple[Tensor, Tensor], scales: ProductScales
) -> tuple[Tensor, Tensor]:
    """What the gradients multiply: operands behind their edges, if it is differentiated again."""
    left, right = operands
    if not torch.is_grad_enabled():
        return left, right
    return scale_bwd(left, scales.grad_left), scale_bwd(right, scales.grad_right)


class FoldedSplit(torch.autograd.Function):
    """x twice; its gradient is the weighted sum of the two gradients."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, skip_scale: float, branch_scale: float) -> tuple[Tensor, ...]:
        ctx.scales = skip_scale, branch_scale
        return x.view_as(x), x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad_skip: Tensor, grad_branch: Tensor) -> tuple[Tensor, None, None]:
        return weighted_sum(grad_branch, grad_skip, *reversed(ctx.scales)), None, None


class FoldedAdd(torch.autograd.Function):
    """The weighted sum of branch and skip; both gradients are that of the sum as it is."""

    @staticmethod
    def forward(
        ctx: Any, branch: Tensor, skip: Tensor, branch_scale: float, skip_scale: float
    ) -> Tensor:
        return weighted_sum(branch, skip, branch_scale, skip_scale)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None, None]:
        return grad, grad, None, None


def weighted_sum(branch: Tensor, skip: Tensor, branch_scale: float, skip_scale: float) -> Tensor:
    """`branch_scale * branch + skip_scale * skip`."""
    return (skip * skip_scale).add_(branch, alpha=branch_scale)


# As for `Scaled`: without binding arguments to a signature, which costs as much as a small product.
folded_linear = super(torch.autograd.Function, FoldedLinear).apply
folded_bmm = super(torch.autograd.Function, FoldedBmm).apply
folded_split = super(torch.autograd.Function, FoldedSplit).apply
folded_add = super(torch.autograd.Function, FoldedAdd).apply
