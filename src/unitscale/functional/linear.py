"""Products with a weight, and products of two activations.

Operands enter a product at unit scale and so does the gradient that comes back: every factor is on
an edge, none is folded into a weight, so that each of the three matrix products of a layer may be
done in a narrow format as it stands. The bias is added after the factor: a step of size `lr` on it
moves the output by `lr`, as u-muP's learning-rate rule for biases expects.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from unitscale.functional.arguments import broadcast_copies, check_floating, num_rows, shape
from unitscale.functional.folded import ProductScales, can_fold, folded_bmm, folded_linear
from unitscale.scaling import scale_bwd, scale_fwd
from unitscale.scaling.constraints import apply_constraint
from unitscale.scaling.factors import (
    LinearFactors,
    MatmulFactors,
    einsum_factors,
    linear_factors,
    linear_readout_factors,
    matmul_factors,
)


def linear(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    constraint: str | None = "to_output_scale",
) -> Tensor:
    """`x W^T / sqrt(fan_in) + b`.

    Unconstrained, all three products are at unit scale: the output by `fan_in**-0.5`, the gradient
    of the input by `fan_out**-0.5`, those of weight and bias by `rows**-0.5`, where `rows` is the
    number of rows of this call. When k calls are accumulated into one update, multiply the
    parameter gradients by `k**-0.5`; the result is then what one call with all rows gives.

    Args:
        input: [..., fan_in], elements independent and of unit scale.
        weight: [fan_out, fan_in], initialised N(0, 1). Used once: its gradient factor is free.
        bias: [fan_out], initialised to 0.
        constraint: ties the factors of output and input; None outside the residual trunk only.
    Raises:
        TypeError: an argument is not a floating-point tensor.
        ValueError: the shapes do not fit, or the constraint is unknown.
    Source: Blake, Orr, Luschi 2023, compendium of ops.
    """
    check_linear("linear", input, weight, bias)
    fan_out, fan_in = weight.shape
    factors = linear_factors(fan_in, fan_out, num_rows(input, fan_in))
    return apply_linear(input, weight, bias, factors, constraint)


def linear_readout(
    input: Tensor, weight: Tensor, bias: Tensor | None = None, constraint: str | None = None
) -> Tensor:
    """`x W^T / fan_in + b`: the last layer of a model, small at the start as u-muP wants it.

    The output has scale `fan_in**-0.5`, its gradients are those of `linear` at unit scale. Without
    a constraint it is legal only after the last residual add, where its input is a cut-edge.
    """
    check_linear("linear_readout", input, weight, bias)
    fan_out, fan_in = weight.shape
    factors = linear_readout_factors(fan_in, fan_out, num_rows(input, fan_in))
    return apply_linear(input, weight, bias, factors, constraint)


def apply_linear(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    factors: LinearFactors,
    constraint: str | None,
) -> Tensor:
    """`F.linear` between its three factored edges, and the bias behind them."""
    output_scale, grad_input_scale = apply_constraint(
        constraint, factors.output_scale, factors.grad_input_scale
    )
    scales = ProductScales(output_scale, grad_input_scale, factors.grad_weight_scale)
    if can_fold(input, weight, *(() if bias is None else (bias,))):
        return folded_linear(input, weight, bias, scales, factors.grad_bias_scale)
    input = scale_bwd(input, scales.grad_left)
    output = scale_fwd(F.linear(input, scale_bwd(weight, scales.grad_right)), scales.output)
    return output if bias is None else output + scale_bwd(bias, factors.grad_bias_scale)


def check_linear(op: str, input: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    """Shapes as `F.linear` wants them, with an answer that names the axes."""
    check_floating(op, input=input, weight=weight, bias=bias)
    if weight.dim() != 2:
        raise ValueError(f"{op}: weight has shape {shape(weight)}, expected [fan_out, fan_in].")
    if input.dim() == 0 or input.shape[-1] != weight.shape[1]:
        raise ValueError(
            f"{op}: input has shape {shape(input)}, expected [..., {weight.shape[1]}] for a weight "
            f"of shape {shape(weight)} ([fan_out, fan_in]); is the weight transposed?"
        )
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError(
            f"{op}: bias has shape {shape(bias)}, expected [{weight.shape[0]}] "
            f"for a weight of shape {shape(weight)}."
        )


def matmul(input: Tensor, other: Tensor, constraint: str | None = "to_output_scale") -> Tensor:
    """`torch.matmul(x, y) / sqrt(k)`, both operands activations.

    For [n, k] @ [k, m] the unconstrained gradient factors are `m**-0.5` and `n**-0.5`; an operand
    that broadcasts over c batch entries counts c times as many terms. Vectors and leading batch
    axes as in `torch.matmul`. Both edges are constrained: multiply by a weight with `linear`.

    Raises:
        ValueError: the inner sizes differ, or the batch axes do not broadcast.
    """
    check_floating("matmul", input=input, other=other)
    if input.dim() == 0 or other.dim() == 0:
        raise ValueError(
            f"matmul: input has shape {shape(input)} and other {shape(other)}, "
            "expected at least one axis each; mul takes single numbers."
        )
    n, k = input.shape[-2:] if input.dim() > 1 else (1, *input.shape)
    k_other, m = other.shape[-2:] if other.dim() > 1 else (*other.shape, 1)
    if k != k_other:
        raise ValueError(
            f"matmul: input {shape(input)} and other {shape(other)} have inner sizes {k} and "
            f"{k_other}, expected equal ones; transpose one of them?"
        )
    left_copies, right_copies = broadcast_copies("matmul", input, other, matrices=True)
    factors = matmul_factors(n * right_copies, k, m * left_copies)
    return apply_product(torch.matmul, input, other, factors, constraint)


def bmm(input: Tensor, mat2: Tensor, constraint: str | None = "to_output_scale") -> Tensor:
    """`torch.bmm(x, y) / sqrt(k)` for [b, n, k] @ [b, k, m]; factors as in `matmul`."""
    check_floating("bmm", input=input, mat2=mat2)
    if input.dim() != 3 or mat2.dim() != 3 or input.shape[::2] != mat2.shape[:2]:
        raise ValueError(
            f"bmm: input has shape {shape(input)} and mat2 {shape(mat2)}, "
            "expected [b, n, k] and [b, k, m]; matmul broadcasts batch axes."
        )
    factors = matmul_factors(input.shape[1], input.shape[2], mat2.shape[2])
    return apply_product(torch.bmm, input, mat2, factors, constraint)


def apply_product(
    product: Callable[[Tensor, Tensor], Tensor],
    left: Tensor,
    right: Tensor,
    factors: MatmulFactors,
    constraint: str | None,
) -> Tensor:
    """`torch.matmul` or `torch.bmm` of two activations between its three factored edges."""
    scales = ProductScales(
        *apply_constraint(
            constraint, factors.output_scale, factors.grad_left_scale, factors.grad_right_scale
        )
    )
    if left.dim() == right.dim() == 3 and len(left) == len(right) and can_fold(left, right):
        return folded_bmm(left, right, scales)
    output = product(scale_bwd(left, scales.grad_left), scale_bwd(right, scales.grad_right))
    return scale_fwd(output, scales.output)


def einsum(equation: str, *operands: Tensor, constraint: str | None = "to_output_scale") -> Tensor:
    """`torch.einsum` of activations, divided by the root of the number of terms it sums.

    Raises:
        ValueError: the equation does not fit the shapes.
    """
    check_floating("einsum", **{f"operand {i}": operand for i, operand in enumerate(operands)})
    factors = einsum_factors(equation, *(tuple(operand.shape) for operand in operands))
    output_scale, *grad_scales = apply_constraint(
        constraint, factors.output_scale, *factors.grad_input_scales
    )
    operands = tuple(map(scale_bwd, operands, grad_scales))
    return scale_fwd(torch.einsum(equation, *operands), output_scale)
