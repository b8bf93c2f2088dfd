"""Products element by element, and sums, means and their relatives along axes."""

import math

import torch
from torch import Tensor

from unitscale.functional.arguments import axis_size, broadcast_copies, check_floating
from unitscale.scaling import scale_bwd, scale_fwd, scaled
from unitscale.scaling.constraints import apply_constraint
from unitscale.scaling.factors import (
    Factors,
    cumsum_factors,
    logsumexp_factors,
    mean_factors,
    mul_factors,
    sum_factors,
)

Axes = int | tuple[int, ...] | None


def mul(input: Tensor, other: Tensor, constraint: str | None = "to_output_scale") -> Tensor:
    """`x * y` of independent operands: at unit scale as it is.

    The gradient of an operand that is broadcast sums over its copies; unconstrained, it is divided
    by the root of their number.
    """
    check_floating("mul", input=input, other=other)
    left_copies, right_copies = broadcast_copies("mul", input, other)
    factors = mul_factors(left_copies=left_copies, right_copies=right_copies)
    output_scale, grad_left_scale, grad_right_scale = apply_constraint(
        constraint, factors.output_scale, factors.grad_left_scale, factors.grad_right_scale
    )
    return scale_fwd(
        scale_bwd(input, grad_left_scale) * scale_bwd(other, grad_right_scale), output_scale
    )


def sum(
    input: Tensor,
    dim: Axes = None,
    keepdim: bool = False,
    *,
    constraint: str | None = "to_output_scale",
) -> Tensor:
    """`torch.sum / sqrt(n)` over n elements that are independent and have mean 0."""
    check_floating("sum", input=input)
    output = torch.sum(input, dim, keepdim)
    return scale_reduced(output, sum_factors(reduced_numel(input, dim)), constraint)


def mean(
    input: Tensor,
    dim: Axes = None,
    keepdim: bool = False,
    *,
    constraint: str | None = "to_output_scale",
) -> Tensor:
    """`torch.mean * sqrt(n)`: the same value as `sum`, with a gradient of its own if unconstrained.

    Unconstrained, the gradient of the input is multiplied by n and is that of the output.
    """
    check_floating("mean", input=input)
    output = torch.mean(input, dim, keepdim)
    return scale_reduced(output, mean_factors(reduced_numel(input, dim)), constraint)


def logsumexp(
    input: Tensor,
    dim: int | tuple[int, ...],
    keepdim: bool = False,
    *,
    constraint: str | None = "to_output_scale",
) -> Tensor:
    """`torch.logsumexp` at unit spread for n standard normal inputs: times about `sqrt(n / 1.72)`.

    The mean, about `log(n) + 1/2`, is multiplied along with the spread.
    """
    check_floating("logsumexp", input=input)
    output = torch.logsumexp(input, dim, keepdim)
    return scale_reduced(output, logsumexp_factors(reduced_numel(input, dim)), constraint)


def cumsum(input: Tensor, dim: int, *, constraint: str | None = "to_output_scale") -> Tensor:
    """`torch.cumsum / sqrt((n + 1) / 2)`: at unit scale pooled over the n positions.

    Position i alone has scale `sqrt(2 i / (n + 1))`.
    """
    check_floating("cumsum", input=input)
    factors = cumsum_factors(axis_size(input, dim))
    return scale_reduced(torch.cumsum(input, dim), factors, constraint)


def scale_reduced(output: Tensor, factors: Factors, constraint: str | None) -> Tensor:
    """The factored edge of an operation of one input."""
    return scaled(
        output, *apply_constraint(constraint, factors.output_scale, factors.grad_input_scale)
    )


def reduced_numel(input: Tensor, dim: Axes) -> int:
    """How many elements are reduced to one; no axes or an empty tuple means all."""
    if dim is None or dim == ():
        return input.numel()
    axes = (dim,) if isinstance(dim, int) else dim
    return math.prod([axis_size(input, axis) for axis in axes])
