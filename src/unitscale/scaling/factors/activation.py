"""Factors of element-wise functions and gated units, by quadrature."""

import inspect
from collections.abc import Callable
from difflib import get_close_matches
from typing import Any

from unitscale.scaling.constant import constant, evaluated_once
from unitscale.scaling.curve import CURVES, Curve
from unitscale.scaling.factors.result import Factors, GatedFactors
from unitscale.scaling.quadrature import Moments, moments

__all__ = ["activation_factors", "activation_moments", "factors_from_moments", "gated_factors"]

ROUNDING = 1e-24  # a standard deviation of 1e-12 of the function's own size is numerical noise


def activation_factors(
    name: str, *, center: str = "std", mult: float = 1.0, **params: float | str
) -> Factors:
    """Factors of `x -> f(mult * x)`, f an activation function by its name in torch.nn.functional.

    With x and the output gradient independent and standard normal,
    `output_scale = 1 / std(f)` and `grad_input_scale = 1 / rms(f')`.

    Args:
        name: a key of `CURVES`, for example "relu" or "gelu".
        center: "std" gives the output unit standard deviation, as in the paper; a one-sided
            function then keeps a mean. "rms" gives it unit root mean square, which is what a
            following matrix product sees.
        mult: finite, not 0.
        params: the function's own parameters under torch's names, such as `negative_slope`.
    Raises:
        ValueError: unknown name or center; a mult or parameter that makes the function constant.
        TypeError: a parameter that the function does not have.
    Source: Blake et al. 2023, table of scaling factors (gelu 1.701, 1.481); ours by quadrature.
    """
    return factors_from_moments(activation_moments(name, mult=mult, **params), center=center)


def gated_factors(name: str, *, mult: float = 1.0, **params: float | str) -> GatedFactors:
    """Factors of `input * f(mult * gate)`: "sigmoid" is GLU, "silu" SwiGLU, "identity" bilinear.

    With independent operands `output_scale = grad_input_scale = 1 / rms(f)` and
    `grad_gate_scale = 1 / rms(f')`. Both operands usually come from one tensor, so that both edges
    are constrained. Arguments and errors as for `activation_factors`.

    Source: derived from the independence of the operands.
    """
    known = activation_moments(name, mult=mult, **params)
    rms = factors_from_moments(known, center="rms")
    return GatedFactors(
        output_scale=rms.output_scale,
        grad_input_scale=rms.output_scale,
        grad_gate_scale=rms.grad_input_scale,
    )


def factors_from_moments(known: Moments, *, center: str = "std") -> Factors:
    """The factors of an element-wise function whose moments are known; see `quadrature.moments`.

    Raises:
        ValueError: center is neither "std" nor "rms"; the function or its derivative is 0 almost
            everywhere, so that no factor makes it unit.
    """
    if center not in {"std", "rms"}:
        raise ValueError(f"center is {center!r}, expected 'std' or 'rms'.")
    spread = known.variance if center == "std" else known.mean_square
    if min(spread, known.grad_mean_square) <= ROUNDING * known.mean_square:
        raise ValueError(
            f"the function is constant for standard normal input ({center} squared {spread:g}, "
            f"mean square derivative {known.grad_mean_square:g}): no factor gives it unit scale."
        )
    return Factors(output_scale=spread**-0.5, grad_input_scale=known.grad_mean_square**-0.5)


def activation_moments(name: str, *, mult: float = 1.0, **params: float | str) -> Moments:
    """Moments of `x -> f(mult * x)` for a named function, computed once per argument list."""
    fixed = [(key, v if isinstance(v, str) else constant(v)) for key, v in params.items()]
    return named_moments(name, constant(mult), tuple(sorted(fixed)))


@evaluated_once
def named_moments(name: str, mult: float, params: tuple[tuple[str, Any], ...]) -> Moments:
    """The quadrature behind `activation_moments`."""
    if not 0 < abs(mult) < float("inf"):
        raise ValueError(f"{name}: mult is {mult}, expected a finite number other than 0.")
    curve = named_curve(name, dict(params))
    kinks = [kink / mult for kink in curve.kinks]
    if abs(mult) > 1:  # the function is squeezed: refine the panels where it bends
        kinks += [bend / mult for bend in range(-8, 9)]
    return moments(lambda x: curve.f(mult * x), kinks=kinks)


def named_curve(name: str, params: dict[str, Any]) -> Curve:
    """Look the function up and give it its parameters."""
    if name not in CURVES:
        nearest = get_close_matches(str(name), CURVES, n=1, cutoff=0.0)[0]
        raise ValueError(
            f"unknown activation {name!r}, expected one of {', '.join(CURVES)}; "
            f"nearest: {nearest!r}. For a function of your own use quadrature.moments."
        )
    make: Callable[..., Curve] = CURVES[name]
    legal = inspect.signature(make).parameters
    if unknown := sorted(set(params) - set(legal)):
        raise TypeError(
            f"{name}: unknown parameter {unknown[0]!r}, expected {', '.join(legal) or 'none'}."
        )
    return make(**params)
