"""Normalisation: unit scale is what it does, so only the parameters need a factor.

Output and gradient of the input keep factor 1 (for an input of unit scale; in general the gradient
is divided by the input's scale). Gain and bias sum their gradients over all rows that they are
applied to, and are divided by the root of that number.
"""

import math

import torch.nn.functional as F
from torch import Tensor

from unitscale.functional.arguments import check_floating, num_rows, shape
from unitscale.scaling import scale_bwd
from unitscale.scaling.factors import norm_factors


def scale_parameters(
    rows: int, weight: Tensor | None, bias: Tensor | None
) -> tuple[Tensor | None, Tensor | None]:
    """Gain and bias with the gradient factor of a parameter that `rows` rows share."""
    factors = norm_factors(rows)
    return (
        None if weight is None else scale_bwd(weight, factors.grad_weight_scale),
        None if bias is None else scale_bwd(bias, factors.grad_bias_scale),
    )


def layer_norm(
    input: Tensor,
    normalized_shape: list[int] | tuple[int, ...] | int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    """`F.layer_norm`, gain and bias gradients at unit scale."""
    sizes = check_last_axes("layer_norm", input, normalized_shape, weight, bias)
    weight, bias = scale_parameters(num_rows(input, math.prod(sizes)), weight, bias)
    return F.layer_norm(input, sizes, weight, bias, eps)


def rms_norm(
    input: Tensor,
    normalized_shape: list[int] | tuple[int, ...] | int,
    weight: Tensor | None = None,
    eps: float | None = None,
) -> Tensor:
    """`F.rms_norm`: `x / sqrt(mean(x**2) + eps) * weight`, the gain's gradient at unit scale."""
    sizes = check_last_axes("rms_norm", input, normalized_shape, weight, None)
    weight, _ = scale_parameters(num_rows(input, math.prod(sizes)), weight, None)
    return F.rms_norm(input, sizes, weight, eps)


def group_norm(
    input: Tensor,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    """`F.group_norm`, gain and bias gradients at unit scale."""
    check_channels("group_norm", input, weight, bias)
    weight, bias = scale_parameters(num_rows(input, input.shape[1]), weight, bias)
    return F.group_norm(input, num_groups, weight, bias, eps)


def batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """`F.batch_norm`, gain and bias gradients at unit scale, in training and in evaluation.

    With few rows per channel the gradient of the input has heavy tails (scale 1.06 for 8 rows).
    """
    check_channels("batch_norm", input, weight, bias)
    weight, bias = scale_parameters(num_rows(input, input.shape[1]), weight, bias)
    return F.batch_norm(input, running_mean, running_var, weight, bias, training, momentum, eps)


def instance_norm(
    input: Tensor,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """`F.instance_norm`, gain and bias gradients at unit scale."""
    check_channels("instance_norm", input, weight, bias)
    weight, bias = scale_parameters(num_rows(input, input.shape[1]), weight, bias)
    return F.instance_norm(
        input, running_mean, running_var, weight, bias, use_input_stats, momentum, eps
    )


def check_last_axes(
    op: str,
    input: Tensor,
    normalized_shape: list[int] | tuple[int, ...] | int,
    weight: Tensor | None,
    bias: Tensor | None,
) -> list[int]:
    """The normalised sizes as a list, once they are the input's last ones and the parameters'."""
    check_floating(op, input=input, weight=weight, bias=bias)
    sizes = [normalized_shape] if isinstance(normalized_shape, int) else list(normalized_shape)
    if not sizes or list(input.shape[-len(sizes) :]) != sizes:
        raise ValueError(
            f"{op}: input has shape {shape(input)}, normalized_shape is {sizes}; "
            "expected the sizes of the input's last axes."
        )
    for name, parameter in (("weight", weight), ("bias", bias)):
        if parameter is not None and list(parameter.shape) != sizes:
            raise ValueError(
                f"{op}: {name} has shape {shape(parameter)}, expected normalized_shape {sizes}."
            )
    return sizes


def check_channels(op: str, input: Tensor, weight: Tensor | None, bias: Tensor | None) -> None:
    """An input [N, C, ...] and parameters [C]."""
    check_floating(op, input=input, weight=weight, bias=bias)
    if input.dim() < 2:
        raise ValueError(f"{op}: input has shape {shape(input)}, expected [N, C, ...].")
    for name, parameter in (("weight", weight), ("bias", bias)):
        if parameter is not None and parameter.shape != (input.shape[1],):
            raise ValueError(
                f"{op}: {name} has shape {shape(parameter)}, expected [{input.shape[1]}] "
                f"for an input of shape {shape(input)} ([N, C, ...])."
            )
