"""Sums at unit scale, and the residual connection with its delayed backward factor.

A branch that enters the sum with weight b receives b times the gradient, and every weight gradient
in it is b times too small. So the branch gets its factor forward where it ends and backward where
it begins: gradients inside are at unit scale, and what reaches the trunk is the true gradient.
"""

import math
from collections.abc import Callable
from typing import cast

from torch import Tensor

from unitscale.functional.arguments import broadcast_copies, check_floating, shape
from unitscale.functional.folded import can_fold, folded_add, folded_split
from unitscale.scaling import scale_bwd, scale_fwd, scaled
from unitscale.scaling.constraints import apply_constraint
from unitscale.scaling.factors import parameter_grad_scale, ratio_residual, weighted_sum_weights


def add(
    input: Tensor | float,
    other: Tensor | float,
    weights: tuple[float, float] | None = None,
    constraint: str | None = "to_output_scale",
) -> Tensor:
    """`(w1 x + w2 y) / sqrt(w1^2 + w2^2)`, `(x + y) / sqrt(2)` without weights.

    Constrained, each operand has one factor in both passes, so the sum may stand anywhere in a
    graph. Unconstrained, the gradient reaches both at unit scale (divided by the root of the
    number of copies of one that is broadcast): right only where both are cut-edges.

    A constant, which is a Python number or the one element that is added to many, adds no spread:
    `(w1 x + w2 c) / |w1|`, `x + c` without weights.

    Args:
        input, other: tensors; one of them may be a Python number.
        weights: any two non-zero numbers; only their ratio matters.
    Raises:
        TypeError: neither is a floating-point tensor, or one is something else.
        ValueError: the shapes do not broadcast, or a weight is 0.
    """
    numbers = [isinstance(x, int | float) for x in (input, other)]
    weights = (1.0, 1.0) if weights is None else weights
    if len(weights) != 2 or 0 in weights:
        raise ValueError(
            f"add: weights are {weights}, expected two non-zero numbers; "
            "an operand of weight 0 is better left out."
        )
    if any(numbers) and not all(numbers):
        x, number = cast("tuple[Tensor, float]", (other, input) if numbers[0] else (input, other))
        weight, share = reversed(weights) if numbers[0] else weights
        check_floating("add", **{"other" if numbers[0] else "input": x})
        apply_constraint(constraint, 1.0, 1.0)  # for its name, since all factors are 1
        sign = math.copysign(1.0, weight)
        return scaled(x, sign, sign) + share / abs(weight) * number
    check_floating("add", input=cast("Tensor", input), other=cast("Tensor", other))
    return add_tensors(cast("Tensor", input), cast("Tensor", other), weights, constraint)


def add_tensors(
    input: Tensor, other: Tensor, weights: tuple[float, float], constraint: str | None
) -> Tensor:
    """The weighted sum of two tensors, one of them perhaps a constant."""
    left_copies, right_copies = broadcast_copies("add", input, other)
    left, right = weighted_sum_weights(*weights)
    # One element among many has no spread, so the other's is the spread of the sum.
    if input.numel() == 1 and left_copies > 1:
        left, right = left / abs(right), math.copysign(1.0, right)
    elif other.numel() == 1 and right_copies > 1:
        left, right = math.copysign(1.0, left), right / abs(left)
    output_scale, grad_left_scale, grad_right_scale = apply_constraint(
        constraint,
        1.0,
        parameter_grad_scale(left_copies) / abs(left),
        parameter_grad_scale(right_copies) / abs(right),
    )
    return scaled(input, left * output_scale, left * grad_left_scale) + scaled(
        other, right * output_scale, right * grad_right_scale
    )


def residual_split(input: Tensor, tau: float = 1.0) -> tuple[Tensor, Tensor]:
    """`(skip, branch)`: the trunk where a branch leaves it; `residual_add` brings them together.

    Both are `input`; only gradients are multiplied, by the weights that `residual_add` gives.

        skip, branch = U.residual_split(x, tau)
        x = U.residual_add(f(branch), skip, tau)
    """
    check_floating("residual_split", input=input)
    weights = ratio_residual(tau)
    if can_fold(input):
        skip, branch = folded_split(input, weights.skip, weights.branch)
        return skip, branch
    return scale_bwd(input, weights.skip), scale_bwd(input, weights.branch)


def residual_add(branch: Tensor, skip: Tensor, tau: float = 1.0) -> Tensor:
    """`(tau * branch + skip) / sqrt(1 + tau^2)`, with the branch's gradient as it comes in.

    Args:
        branch: what the branch made of the second tensor of `residual_split`.
        skip: the first tensor of `residual_split`; of the branch's shape.
        tau: ratio of branch to skip, the same as in `residual_split`. A share s of the variance is
            `tau = sqrt(s / (1 - s))`; the l-th branch of a running mean `tau = l**-0.5`.
    Raises:
        ValueError: the shapes differ, or tau is not positive.
    Source: Blake, Orr, Luschi 2023, weighted residuals; Blake et al. 2024 (u-muP), tau as a ratio.
    """
    check_floating("residual_add", branch=branch, skip=skip)
    if branch.shape != skip.shape:
        raise ValueError(
            f"residual_add: branch has shape {shape(branch)} and skip {shape(skip)}, "
            "expected equal shapes; a residual branch keeps the shape of the trunk."
        )
    weights = ratio_residual(tau)
    if can_fold(branch, skip):
        return folded_add(branch, skip, weights.branch, weights.skip)
    return scale_fwd(branch, weights.branch) + scale_fwd(skip, weights.skip)


def residual_apply(fn: Callable[[Tensor], Tensor], input: Tensor, tau: float = 1.0) -> Tensor:
    """`residual_add(fn(branch), skip, tau)` of the split input: one residual layer."""
    skip, branch = residual_split(input, tau)
    return residual_add(fn(branch), skip, tau)
