"""How large a softmax of normal logits is: exact laws for every size, not only for long rows.

For n logits N(0, s**2) write w = exp(logit) and Z for the sum of the w. Every moment of the entries
w / Z becomes a one-dimensional integral, because `(k-1)! / Z**k` is the integral of
`t**(k-1) exp(-t Z)` and the terms of Z are independent: with `Mk(t) = E w**k exp(-t w)`,

    E sum p**2 = n * integral of t**2 M2(t) M0(t)**(n-1) dt / t.

In u = log t the integrand is analytic and decays on both sides, so that equally spaced points
converge geometrically. The usual estimate `exp(s**2) / n` is the limit for n far above exp(s**2);
as a scale (its square root) it is 32 % too large for s = 1, n = 4 and 71 % for s = 2, n = 256.

A law is kept as a polynomial, so that it takes a symbolic n while a graph is traced; it is within
2e-4 of the integral.

Source: derived here; the closed forms for s = 0 and sampling are its tests.
"""

import math
from dataclasses import dataclass

import numpy as np

from unitscale.scaling.constant import evaluated_once
from unitscale.scaling.quadrature import Array

__all__ = ["MAX_SIZE", "SoftmaxLaw", "at_size", "exact_moments", "log_sum_law", "softmax_law"]

Polynomial = tuple[float, ...]

MAX_SIZE = 2**24
MAX_LOGIT_STD = 64.0
STEP = 0.2
DEGREE = 12
ROOT = (
    2.0**-10
)  # size**ROOT is log size in disguise: a tracer keeps powers symbolic, not logarithms


@dataclass(frozen=True)
class SoftmaxLaw:
    """Two moments of a softmax row; evaluate them with `at_size`.

    square: `E sum p**2`, also the mean square of a sum of unit values weighted by p.
    jacobian: `n / (n - 1) * E sum (dp_i / dlogit_j)**2`; the factor keeps it above 0 at n = 1.
    """

    square: Polynomial
    jacobian: Polynomial


def at_size(law: Polynomial, size: int) -> float:
    """The value of a law for `size` logits, 1 to `MAX_SIZE`."""
    x = 2 * (size**ROOT - 1) / (MAX_SIZE**ROOT - 1) - 1
    value = 0.0
    for coefficient in law:
        value = value * x + coefficient
    result: float = math.e**value
    return result


@evaluated_once
def softmax_law(logit_std: float, is_causal: bool = False) -> SoftmaxLaw:
    """The law for logits of a given standard deviation.

    Args:
        logit_std: 0 to 64.
        is_causal: average over the rows of a causal mask, which see 1, 2, ..., n logits.
    Raises:
        ValueError: logit_std out of range.
    """
    sizes = fit_sizes()
    square, jacobian = exact_moments(logit_std, sizes, is_causal=is_causal)
    return SoftmaxLaw(square=fit(square), jacobian=fit(jacobian * sizes / (sizes - 1)))


@evaluated_once
def log_sum_law(logit_std: float) -> Polynomial:
    """`n` times the variance of `logsumexp` of n logits.

    If E is exponential, `P(log E - log Z > u) = M0(exp(u))**n`: the distribution of a difference of
    independent terms, one of which has variance `pi**2 / 6`.
    """
    sizes = fit_sizes()
    u, transforms = laplace(logit_std)
    density = STEP * sizes[:, None] * transforms[1] * power(transforms[0], sizes - 1)
    mean = (density * u).sum(axis=1, keepdims=True)
    variance = (density * (u - mean) ** 2).sum(axis=1) - math.pi**2 / 6
    return fit(variance * sizes)


def exact_moments(
    logit_std: float, sizes: Array, *, is_causal: bool = False
) -> tuple[Array, Array]:
    """`E sum p**2` and `E sum (dp_i / dlogit_j)**2` for each size, by the integral itself.

    With `dp_i / dlogit_j = p_i (delta_ij - p_j)` the second is
    `E sum p**2 - 2 E sum p**3 + E (sum p**2)**2`.
    """
    _, (gone, _, m2, m3, m4) = laplace(logit_std)
    one, two = (causal_counts if is_causal else counts)(gone, sizes)
    square = STEP * (one * m2).sum(axis=1)
    cube = STEP * (one * m3).sum(axis=1) / 2
    square_of_square = STEP * (one * m4 + two * m2**2).sum(axis=1) / 6
    return square, square - 2 * cube + square_of_square


def laplace(logit_std: float) -> tuple[Array, Array]:
    """Points u = log t, and there `1 - M0(t)`, `t M1(t)`, ..., `t**4 M4(t)`."""
    if not 0 <= logit_std <= MAX_LOGIT_STD:
        raise ValueError(
            f"softmax: the logits have standard deviation {logit_std}, "
            f"expected 0 to {MAX_LOGIT_STD:g}."
        )
    # log Z is below log n + s**2 / 2 plus noise, and below the largest logit plus log n.
    below = math.log(MAX_SIZE) + logit_std * min(9.0, logit_std / 2 + 6) + 40
    u = np.arange(-below, 9 * logit_std + 4, STEP)
    z = np.arange(-9, 9, STEP / max(logit_std, 1.0))
    weights = np.exp(-(z**2) / 2)
    weights /= weights.sum()
    rows = []
    for start in u:
        tw = np.exp(np.minimum(start + logit_std * z, 40.0))  # exp(-exp(40)) is 0 already
        alive = np.exp(-tw) * weights
        rows.append(
            [-(np.expm1(-tw) * weights).sum(), *((alive * tw**k).sum() for k in range(1, 5))]
        )
    return u, np.array(rows).T


def power(gone: Array, exponents: Array) -> Array:
    """`(1 - gone) ** exponent`, one row per exponent."""
    return np.exp(exponents[:, None] * np.log1p(-np.minimum(gone, 1 - 1e-16)))


def counts(gone: Array, sizes: Array) -> tuple[Array, Array]:
    """`n q**(n-1)` and `n (n-1) q**(n-2)`, q = 1 - gone: ways to choose one entry, or two."""
    n = sizes[:, None]
    return n * power(gone, sizes - 1), n * (n - 1) * power(gone, sizes - 2)


def causal_counts(gone: Array, sizes: Array) -> tuple[Array, Array]:
    """The mean of `counts` over 1, 2, ..., n, as derivatives of the sum of a geometric series."""
    n = sizes[:, None]
    died = -np.expm1(n * np.log1p(-np.minimum(gone, 1 - 1e-16)))  # 1 - q**n
    last = power(gone, sizes)
    one = (died - n * gone * last) / gone**2
    two = 2 * (died - n * gone * last) / gone**3 - n * (n + 1) * power(gone, sizes - 1) / gone
    return one / n, two / n


def fit_sizes() -> Array:
    """Where `at_size` has the Chebyshev points of its polynomial."""
    log_like = (chebyshev_points() + 1) / 2 * (MAX_SIZE**ROOT - 1)
    sizes: Array = np.exp(np.log1p(log_like) / ROOT)
    return sizes


def chebyshev_points() -> Array:
    """`DEGREE + 1` points in (-1, 1)."""
    return np.cos(math.pi * (np.arange(DEGREE + 1) + 0.5) / (DEGREE + 1))


def fit(values: Array) -> Polynomial:
    """The logarithm of `values` at `fit_sizes()` as a polynomial, highest power first."""
    series = np.polynomial.chebyshev.chebfit(chebyshev_points(), np.log(values), DEGREE)
    return tuple(float(c) for c in reversed(np.polynomial.chebyshev.cheb2poly(series)))
