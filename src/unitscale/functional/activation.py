"""Element-wise functions: every activation of torch, and any function given by hand.

For `x ~ N(0, 1)` an activation `f` has `output_scale = 1 / std(f(x))` and
`grad_input_scale = 1 / rms(f'(x))`. The keywords that all of them take:

- `mult` computes `f(mult * x)`, u-muP's multiplier: above 1 it sharpens the function;
- `center="rms"` takes `1 / rms(f(x))` instead of the standard deviation, for an activation with a
  mean that a matrix product follows without a norm: the product sees the mean as well;
- `constraint` ties the two factors, as everywhere.

NaN, Inf and -0 go through as in torch's function. There is no `inplace`.
"""

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from unitscale.functional.arguments import check_floating, check_mult
from unitscale.scaling import scaled
from unitscale.scaling.constraints import apply_constraint
from unitscale.scaling.factors import (
    activation_factors,
)


def activate(
    name: str,
    function: Callable[..., Tensor],
    input: Tensor,
    mult: float,
    center: str,
    constraint: str | None,
    **params: float | str,
) -> Tensor:
    """`scaled(f(mult * x))`: around a function of one input, one factored edge is enough."""
    check_floating(name, input=input)
    check_mult(name, mult=mult)
    factors = activation_factors(name, center=center, mult=mult, **params)
    output_scale, grad_input_scale = apply_constraint(
        constraint, factors.output_scale, factors.grad_input_scale
    )
    output = function(input if mult == 1.0 else input * mult, **params)
    return scaled(output, output_scale, grad_input_scale)


def relu(
    input: Tensor,
    *,
    mult: float = 1.0,
    center: str = "std",
    constraint: str | None = "to_output_scale",
) -> Tensor:
    """`max(x, 0)`, at unit scale."""
    return activate("relu", F.relu, input, mult, center, constraint)


def relu6(
    input: Tensor,
    *,
    mult: float = 1.0,
    center: str = "std",
    constraint: str | None = "to_output_scale",
) -> Tensor:
    """`min(max(x, 0), 6)`, at unit scale."""
    return activate("relu6", F.relu6, input, mult, center, constraint)


def leaky_relu(
    input: Tensor,
    negative_slope: float = 0.01,
    *,
    mult: float = 1.0,
    center: str = "std",
    constraint: str | None = "to_output_scale",
) -> Tensor:
    """`x` above 0 and `negative_slope * x` below, at unit scale."""
    return activate(
        "leaky_relu", F.leaky_relu, input, mult, center, constraint, negative_slope=negative_slope
    )


def rrelu(
    input: Tensor,
    lower: float = 1 / 8,
    upper: float = 1 / 3,
    training: bool = False,
    *,
    mult: float = 1.0,
    center: str = "std",
    constraint: str | None = "to_output_scale",
) -> Tensor:
    """`leaky_relu` of the mean slope; each negative entry draws its own in training.

    The factors are those of the mean slope, within 1 % of those of the drawn ones by default.
    """
    function = partial(F.rrelu, training=training)
    return activate("rrelu", function, input, mult, center, constraint, lower=lower, upper=upper)


def threshold(
    input: Tensor,
    threshold: float,
    value: float,
    *,
    mult: float = 1.0,
    center: str = "std",
    constraint: str | None = "to_output_scale",
) -> Tensor:
    """`x` above `threshold`, else `value`, at unit scale."""
    return activate(
        "threshold", F.threshold, input, mult, center, constraint, threshold=threshold, value=value
    )


def gelu(
    input: Tensor,
    approximate: str = "none",
    *,
    mult: float = 1.0,
    center: str = "std",
    constraint: str | None = "to_output_scale",
) -> Tensor:
    """`x * Phi(x)`, or its tanh form with `approximate="tanh"`, at unit scale."""
    return activate("gelu", F.gelu, input, mult, center, constraint, approximate=approximate)


def silu(
    input: Tensor,
    *,
    mult: float = 1.0,
    center: str = "std",
    constraint: str | None = "to_output_scale",
) -> Tensor:
    """`x * sigmoid(x)`, at unit scale."""
    return activate("silu", F.silu, input, mult, center, constraint)


def mish(
    input: Tensor,
    *,
    mult: float = 1.0,
    center: str = "std",
    constraint: str | None = "to_output_scale",
) -> Tensor:
    """`x * tanh(softplus(x))`, at unit scale."""
    return activate("mish", F.mish, input, mult, center, constraint)


def elu(
    input: Tensor,
    alpha: float = 1.0,
    *,
    mult: float = 1.0,
    center: str = "std",
    constraint: str | None = "to_output_scale",
) -> Tensor:
    """`x` above 0 and `alpha * (exp(x) - 1)` below, at unit scale."""
    return activate("elu", F.elu, input, mult, center, constraint, alpha=alpha)


def celu(
    input: Tensor,
    alpha: float = 1.0,
    *,
    mult: float = 1.0,
    center: str = "std",
    constraint: str | None = "to_output_scale",
) -> Tensor:
    """`x` above 0 and `alpha * (exp(x / alpha) - 1)` below, at unit scale."""
    return activate("celu", F.celu, input, mult, center, constraint, alpha=alpha)


def selu(
    input: Tensor,
    *,
    mult: float = 1.0,
    center: str = "std",
    constraint: str | None = "to_output_scale",
) -> Tensor:
    """The `elu` whose constants keep mean 0 and variance 1, at unit scale."""
    return activate("selu", F.selu, input, mult, center, constraint)


def softplus(
    input: Tensor,
    beta: float = 1.0,
    threshold: float = 20.0,
    *,
    mult: float = 1.0,
    center: str = "std",
    constraint: str | None = "to_output_scale",
) -> Tensor:
    """`log(1 + exp(beta * x)) / beta`, `x` itself where `beta * x > threshold`, at unit scale."""
    return activate(
        "softplus", F.softplus, input, mult, center, constraint, beta=beta, threshold=threshold
    )


def logsigmoid(
    input: Tensor,
    *,
    mult: float = 1.0,
    center: str = "std",
    constraint: str | None = "to_output_scale",
) -> Tensor:
    """`log(sigmoid(x))`, at unit scale."""
    return activate("logsigmoid", F.logsigmoid, input, mult, center, constraint)


def tanh(
    input: Tensor,
    *,
    mult: float = 1.0,
    center: str = "std",
    constraint: str | None = "to_output_scale",
) -> Tensor:
    """`tanh(x)`, at unit scale."""
    return activate("tanh", torch.tanh, input, mult, center, constraint)


def sigmoid(
    input: Tensor,
    *,
    mult: float = 1.0,
    center: str = "std",
    constraint: str | None = "to_output_scale",
) -> Tensor:
    """`1 / (1 + exp(-x))`, at unit scale."""
    return activate("sigmoid", torch.sigmoid, input, mult, center, constraint)


def softsign(
    input: Tensor,
    *,
    mult: float = 1.0,
    center: str = "std",
    constraint: str | None = "to_output_scale",
) -> Tensor:
    """`x / (1 + abs(x))`, at unit scale."""
    return activate("softsign", F.softsign, input, mult, center, constraint)


def hardtanh(
    input: Tensor,
    min_val: float = -1.0,
    max_val: float = 1.0,
    *,
    mult: float = 1.0,
    center: str = "std",
    constraint: str | None = "to_output_scale",
) -> Tensor:
    """`x` clamped to `[min_val, max_val]`, at unit scale."""
    return activate(
        "hardtanh", F.hardtanh, input, mult, center, constraint, min_val=min_val, max_val=max_val
    )


def hardsigmoid(
    input: Tensor,
    *,
    mult: float = 1.0,
    center: str = "std",
    constraint: str | None = "to_output_scale",
) -> Tensor:
    """`clamp(x / 6 + 1 / 2, 0, 1)`, at unit scale."""
    return activate("hardsigmoid", F.hardsigmoid, input, mult, center, constraint)


def hardswish(
    input: Tensor,
    *,
    mult: float = 1.0,
    center: str = "std",
    constraint: str | None = "to_output_scale",
) -> Tensor:
    """`x * clamp(x / 6 + 1 / 2, 0, 1)`, at unit scale."""
    return activate("hardswish", F.hardswish, input, mult, center, constraint)


def tanhshrink(
    input: Tensor,
    *,
    mult: float = 1.0,
    center: str = "std",
    constraint: str | None = "to_output_scale",
) -> Tensor:
    """`x - tanh(x)`, at unit scale."""
    return activate("tanhshrink", F.tanhshrink, input, mult, center, constraint)


def softshrink(
    input: Tensor,
    lambd: float = 0.5,
    *,
    mult: float = 1.0,
    center: str = "std",
    constraint: str | None = "to_output_scale",
) -> Tensor:
    """`x` moved towards 0 by `lambd`, 0 within it, at unit scale."""
    return activate("softshrink", F.softshrink, input, mult, center, constraint, lambd=lambd)


def hardshrink(
    input: Tensor,
    lambd: float = 0.5,
    *,
    mult: float = 1.0,
    center: str = "std",
    constraint: str | None = "to_output_scale",
) -> Tensor:
    """`x`, and 0 where `abs(x) <= lambd`, at unit scale."""
    return activate("hardshrink", F.hardshrink, input, mult, center, constraint, lambd=lambd)
