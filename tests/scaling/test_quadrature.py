import math
from math import e, erf, exp, pi, sqrt

import numpy as np
import pytest

from unitscale.scaling.curve import CURVES
from unitscale.scaling.quadrature import moments, nodes


def Phi(z):  # noqa: N802 - the normal distribution function by its usual name
    return (1 + erf(z / sqrt(2))) / 2


def hardtanh(c):
    variance = c**2 + (1 - c**2) * erf(c / sqrt(2)) - sqrt(2 / pi) * c * exp(-(c**2) / 2)
    return 0.0, variance, erf(c / sqrt(2))


def leaky(a):
    return (1 - a) / sqrt(2 * pi), (1 + a**2) / 2, (1 + a**2) / 2


# name, parameters: mean, mean square, mean square derivative over N(0, 1), integrated by hand.
CLOSED_FORMS = {
    ("identity", ()): (0, 1, 1),
    ("relu", ()): (1 / sqrt(2 * pi), 1 / 2, 1 / 2),
    ("leaky_relu", (("negative_slope", 0.01),)): leaky(0.01),
    ("leaky_relu", (("negative_slope", 0.2),)): leaky(0.2),
    ("prelu", ()): leaky(0.25),
    ("relu_squared", ()): (1 / 2, 3 / 2, 2),
    ("gelu", ()): (
        1 / (2 * sqrt(pi)),
        1 / 3 + 1 / (2 * pi * sqrt(3)),
        1 / 3 + 2 / (3 * pi * sqrt(3)),
    ),
    ("hardtanh", ()): hardtanh(1.0),
    ("hardtanh", (("min_val", -0.5), ("max_val", 0.5))): hardtanh(0.5),
    ("hardtanh", (("min_val", -2.5), ("max_val", 2.5))): hardtanh(2.5),
    # hardsigmoid is 1/2 + hardtanh(3) / 6
    ("hardsigmoid", ()): (1 / 2, 1 / 4 + hardtanh(3.0)[1] / 36, hardtanh(3.0)[2] / 36),
    ("elu", ()): (
        1 / sqrt(2 * pi) + exp(0.5) * Phi(-1) - 0.5,
        1 + e**2 * Phi(-2) - 2 * exp(0.5) * Phi(-1),
        0.5 + e**2 * Phi(-2),
    ),
    ("exp", ()): (exp(0.5), e**2, e**2),
    ("sin", ()): (0, (1 - exp(-2)) / 2, (1 + exp(-2)) / 2),
    ("cos", ()): (exp(-0.5), (1 + exp(-2)) / 2, (1 - exp(-2)) / 2),
    ("abs", ()): (sqrt(2 / pi), 1, 1),
    ("square", ()): (1, 3, 4),
    # x outside [-c, c], 0 inside: E = 1 - (erf(c / sqrt 2) - 2 c phi(c))
    ("hardshrink", ()): (
        0,
        1 - erf(0.5 / sqrt(2)) + 2 * 0.5 * exp(-0.125) / sqrt(2 * pi),
        1 - erf(0.5 / sqrt(2)),
    ),
    ("softshrink", ()): (
        0,
        (1 + 0.25) * (1 - erf(0.5 / sqrt(2))) - 2 * 0.5 * exp(-0.125) / sqrt(2 * pi),
        1 - erf(0.5 / sqrt(2)),
    ),
    ("threshold", (("threshold", 0.0), ("value", -2.0))): (
        1 / sqrt(2 * pi) - 1,
        1 / 2 + 4 / 2,
        1 / 2,
    ),
    # erf(x)**2 and its derivative by the arcsine law
    ("erf", ()): (0, 2 / pi * math.asin(2 / 3), 4 / pi / sqrt(5)),
}


@pytest.mark.parametrize(("case", "expected"), CLOSED_FORMS.items())
def test_moments_match_closed_forms(case, expected):
    name, params = case
    curve = CURVES[name](**dict(params))
    got = moments(curve.f, kinks=curve.kinks)
    # 900 terms of size at most 1, each rounded to 1e-16.
    for value, exact in zip(
        (got.mean, got.mean_square, got.grad_mean_square), expected, strict=True
    ):
        assert value == pytest.approx(exact, rel=5e-15, abs=5e-15)
    assert got.variance == pytest.approx(got.mean_square - got.mean**2, rel=1e-13)


def test_selu_was_made_to_be_unit():
    curve = CURVES["selu"]()
    got = moments(curve.f, kinks=curve.kinks)
    assert got.mean == pytest.approx(0, abs=5e-15)
    assert got.variance == pytest.approx(1, rel=5e-15)


def test_a_given_derivative_is_used_and_agrees_with_the_interpolant():
    analytic = moments(np.sin, np.cos)
    assert analytic.grad_mean_square == pytest.approx((1 + exp(-2)) / 2, rel=5e-15)
    assert moments(np.sin).grad_mean_square == pytest.approx(analytic.grad_mean_square, rel=1e-14)
    assert moments(np.sin, np.zeros_like).grad_mean_square == 0


def test_a_missing_kink_is_visible():
    off_center = lambda x: np.maximum(x - 0.37, 0)
    exact = moments(off_center, kinks=[0.37])
    blurred = moments(off_center)
    z = 0.37
    density = exp(-z * z / 2) / sqrt(2 * pi)
    assert exact.mean == pytest.approx(density - z * Phi(-z), abs=5e-15)
    assert abs(blurred.mean - exact.mean) > 1e-6
    assert abs(blurred.grad_mean_square - exact.grad_mean_square) > 1e-3


def test_gauss_hermite_is_not_good_enough_for_kinks():
    points, weights = np.polynomial.hermite_e.hermegauss(64)
    values = np.maximum(points, 0)
    weights = weights / weights.sum()
    std = sqrt((weights * values**2).sum() - (weights * values).sum() ** 2)
    assert abs(std - sqrt(0.5 * (1 - 1 / pi))) > 1e-3


def test_kinks_may_repeat_lie_outside_and_come_in_any_order():
    got = moments(np.abs, kinks=[100.0, 0.0, -3.0, 0.0])
    assert got.mean == pytest.approx(sqrt(2 / pi), abs=5e-15)


def test_nodes_integrate_polynomials_and_the_tail_is_negligible():
    points, weights = nodes(kinks=[0.1])
    assert points.ndim == 1
    for power, exact in ((0, 1), (2, 1), (4, 3), (8, 105), (1, 0), (3, 0)):
        assert (weights * points**power).sum() == pytest.approx(exact, rel=2e-15, abs=2e-14)


def test_what_cannot_be_integrated_is_refused():
    with pytest.raises(ValueError, match=r"the function is inf at .*expected finite values"):
        moments(lambda x: np.where(x > 13, np.inf, x))
    with pytest.raises(ValueError, match=r"the function is nan at -1"):
        moments(lambda x: np.where(x < 0, np.nan, x))
    with pytest.raises(ValueError, match=r"shape \(\) for 840 points"):
        moments(np.sum)
