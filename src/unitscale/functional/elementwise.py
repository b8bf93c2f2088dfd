"""Functions we know nothing of, scaled by quadrature; and the one with a learned parameter."""

from collections.abc import Callable, Iterable
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from unitscale.functional.arguments import check_floating, check_mult
from unitscale.scaling import scale_bwd, scale_fwd, scaled
from unitscale.scaling.constant import constant
from unitscale.scaling.constraints import apply_constraint
from unitscale.scaling.factors import (
    Factors,
    activation_factors,
    factors_from_moments,
    parameter_grad_scale,
)
from unitscale.scaling.quadrature import Array, moments


def elementwise(
    fn: Callable[[Tensor], Tensor],
    kinks: Iterable[float] = (),
    *,
    mult: float = 1.0,
    center: str = "std",
    constraint: str | None = "to_output_scale",
) -> Callable[[Tensor], Tensor]:
    """The unit-scaled form of any element-wise function.

    Returns `x -> scaled(fn(mult * x))` with `output_scale = 1 / std(fn(mult * x))` and
    `grad_input_scale = 1 / rms` of its derivative, both for `x ~ N(0, 1)`, to about 1e-15: `fn`
    and its derivative by autograd are evaluated in float64 at the nodes of a Gauss-Legendre rule.
    Build it once, outside the compiled code; equal arguments are computed once.

        snake = U.elementwise(lambda x: x + torch.sin(x) ** 2)
        clipped = U.elementwise(lambda x: x.clamp(-2, 2), kinks=(-2, 2))

    Args:
        fn: differentiable tensor function; each output depends on the input in its place only.
        kinks: where `fn` or its derivative jumps. A missing one costs accuracy silently: 1e-4.
        mult, center, constraint: as for every activation.
    Raises:
        ValueError: `fn` changes the shape, is constant, or is not finite on [-14, 14].
    """
    check_mult("elementwise", mult=mult)
    factors = elementwise_factors(fn, tuple(map(constant, kinks)), constant(mult), center)
    output_scale, grad_input_scale = apply_constraint(
        constraint, factors.output_scale, factors.grad_input_scale
    )

    def scaled_fn(input: Tensor) -> Tensor:
        check_floating("elementwise", input=input)
        output = fn(input if mult == 1.0 else input * mult)
        return scaled(output, output_scale, grad_input_scale)

    return scaled_fn


@torch.compiler.assume_constant_result  # Dynamo would trace the quadrature
def elementwise_factors(
    fn: Callable[[Tensor], Tensor], kinks: tuple[float, ...], mult: float, center: str
) -> Factors:
    """`integrate`, run while a graph is traced and constant in it."""
    return integrate(fn, kinks, mult, center)


@lru_cache(maxsize=256)
def integrate(
    fn: Callable[[Tensor], Tensor], kinks: tuple[float, ...], mult: float, center: str
) -> Factors:
    """Factors of `x -> fn(mult * x)`, its derivative taken by autograd at the nodes."""

    def value(points: Array) -> Array:
        with torch.no_grad():
            return fn(mult * torch.from_numpy(points)).numpy()

    def derivative(points: Array) -> Array:
        with torch.inference_mode(False), torch.enable_grad():
            x = torch.from_numpy(points.copy()).requires_grad_()
            (grad,) = torch.autograd.grad(fn(mult * x).sum(), x)
        return grad.numpy()

    scaled_kinks = tuple(kink / mult for kink in kinks)
    return factors_from_moments(moments(value, derivative, scaled_kinks), center=center)


def prelu(
    input: Tensor,
    weight: Tensor,
    *,
    init: float = 0.25,
    center: str = "std",
    constraint: str | None = "to_output_scale",
) -> Tensor:
    """`x` above 0 and `weight * x` below, at unit scale while `weight` is at its initial value.

    Args:
        input: [N, C, ...], or any shape with a single slope.
        weight: one slope, or one per channel.
        init: the slope that the factors are computed for, a constant of the graph.
    """
    check_floating("prelu", input=input, weight=weight)
    factors = activation_factors("leaky_relu", center=center, negative_slope=init)
    output_scale, grad_input_scale = apply_constraint(
        constraint, factors.output_scale, factors.grad_input_scale
    )
    # Only negative inputs reach the slope: half of the rows, with E[x^2; x < 0] = 1/2.
    grad_weight_scale = parameter_grad_scale(input.numel() / weight.numel() / 2)
    input = scale_bwd(input, grad_input_scale)
    return scale_fwd(F.prelu(input, scale_bwd(weight, grad_weight_scale)), output_scale)
