"""Expectations over the standard normal distribution, exact to rounding even for kinked functions.

The line from -14 to 14 (beyond it lies a probability of 2e-44) is cut into panels, cut again at
every kink, and each panel gets 60 Gauss-Legendre nodes. Inside a panel the function is smooth, so
the rule converges geometrically and the function's derivative is that of its interpolant.
Gauss-Hermite, the textbook choice, sees a kink through a polynomial: with 64 nodes it is off by
2e-3 for the standard deviation of a ReLU.

Source: differentiation matrix and weights from Berrut and Trefethen 2004, "Barycentric Lagrange
Interpolation"; the barycentric weights of Legendre nodes from Wang and Xiang 2012.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

__all__ = ["Array", "Moments", "moments", "nodes"]

Array = NDArray[np.float64]

HALF_WIDTH = 14.0
PANELS = 14
NODES_PER_PANEL = 60


@dataclass(frozen=True, kw_only=True)
class Moments:
    """What a scale factor needs to know of `f(x)`, x standard normal."""

    mean: float
    mean_square: float
    variance: float
    grad_mean_square: float


def moments(
    f: Callable[[Array], Array],
    df: Callable[[Array], Array] | None = None,
    kinks: Iterable[float] = (),
) -> Moments:
    """`E f`, `E f**2`, the variance of f and `E f'**2` over the standard normal distribution.

    Guarantees an error near rounding (a few 1e-15 relative) for a function that is analytic between
    its kinks and varies on a scale of about 1/10 or slower. At a jump the derivative is taken on
    either side, as autograd does.

    Args:
        f: element-wise; one-dimensional float64 array in, same shape out.
        df: its derivative in the same form; None differentiates `f` panel by panel.
        kinks: every point where `f` or its derivative jumps, in any order. A missing one costs
            accuracy silently: about 1e-4 instead of 1e-15.
    Raises:
        ValueError: `f` or `df` returned another shape, NaN or Inf.
    """
    points, weights, half_widths = panels(tuple(float(kink) for kink in kinks))
    values = evaluate(f, points)
    if df is not None:
        grads = evaluate(df, points)
    else:
        grads = values @ legendre_rule().derivative.T / half_widths[:, None]
    mean = float((weights * values).sum())
    return Moments(
        mean=mean,
        mean_square=float((weights * values**2).sum()),
        variance=float((weights * (values - mean) ** 2).sum()),
        grad_mean_square=float((weights * grads**2).sum()),
    )


def nodes(kinks: Iterable[float] = ()) -> tuple[Array, Array]:
    """Points and weights, one-dimensional, with `sum(weights * f(points)) = E f`."""
    points, weights, _ = panels(tuple(float(kink) for kink in kinks))
    return points.ravel(), weights.ravel()


def evaluate(f: Callable[[Array], Array], points: Array) -> Array:
    """`f` at all points, in their shape; refuses what cannot be integrated."""
    values = np.asarray(f(points.ravel()), dtype=np.float64)
    if values.shape != (points.size,):
        raise ValueError(
            f"the function returned shape {values.shape} for {points.size} points; "
            "expected an element-wise function."
        )
    bad = ~np.isfinite(values)
    if bad.any():
        at = points.ravel()[bad][0]
        raise ValueError(
            f"the function is {values[bad][0]} at {at:.6g}; expected finite values on "
            f"[-{HALF_WIDTH:g}, {HALF_WIDTH:g}], so that its variance exists."
        )
    return values.reshape(points.shape)


@dataclass(frozen=True)
class LegendreRule:
    """Gauss-Legendre on [-1, 1]: nodes, weights, and the derivative of the interpolant at them."""

    points: Array
    weights: Array
    derivative: Array


@cache
def legendre_rule() -> LegendreRule:
    """The rule with `NODES_PER_PANEL` nodes."""
    points, weights = np.polynomial.legendre.leggauss(NODES_PER_PANEL)
    signs = (-1.0) ** np.arange(NODES_PER_PANEL)
    barycentric = signs * np.sqrt((1 - points**2) * weights)
    gaps = points[:, None] - points
    np.fill_diagonal(gaps, 1.0)
    derivative = barycentric / barycentric[:, None] / gaps
    np.fill_diagonal(derivative, 0.0)
    np.fill_diagonal(derivative, -derivative.sum(axis=1))  # a constant has derivative exactly 0
    return LegendreRule(points, weights, derivative)


@cache
def panels(kinks: tuple[float, ...]) -> tuple[Array, Array, Array]:
    """Points and Gaussian weights of shape (panels, nodes), and each panel's half-width."""
    inner = [kink for kink in kinks if abs(kink) < HALF_WIDTH]
    edges = np.union1d(np.linspace(-HALF_WIDTH, HALF_WIDTH, PANELS + 1), inner)
    half_widths = np.diff(edges) / 2
    centers = (edges[1:] + edges[:-1]) / 2
    rule = legendre_rule()
    points = centers[:, None] + half_widths[:, None] * rule.points
    density = np.exp(-(points**2) / 2) / math.sqrt(2 * math.pi)
    return points, half_widths[:, None] * rule.weights * density, half_widths
