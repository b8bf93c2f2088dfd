from math import sqrt

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from unitscale.scaling.curve import CURVES
from unitscale.scaling.factors import (
    activation_factors,
    activation_moments,
    factors_from_moments,
    gated_factors,
)
from unitscale.scaling.quadrature import Moments, moments, nodes

# Mean, std, rms of the derivative, output factor, gradient factor, their geometric mean. Published
# values (Blake et al. 2023) for relu, gelu, tanh and sigmoid; the others confirmed by sampling.
TABLE = """
identity        0       1        1        1         1        1
relu            .398942 .583819  .707107  1.712859  1.414214 1.556389
relu6           .398942 .583819  .707107  1.712859  1.414214 1.556389
leaky_relu      .394953 .586568  .707142  1.704832  1.414143 1.552699
gelu            .282095 .587915  .675167  1.700926  1.481114 1.587220
quick_gelu      .282331 .585015  .670484  1.709359  1.491459 1.596696
silu            .206621 .559538  .616021  1.787187  1.623320 1.703284
mish            .240404 .628131  .692159  1.592025  1.444755 1.516604
tanh            0       .627929  .681471  1.592537  1.467414 1.528696
sigmoid         .5      .208276  .211746  4.801313  4.722646 4.761817
elu             .160521 .786879  .817375  1.270843  1.223429 1.246911
celu            .160521 .786879  .817375  1.270843  1.223429 1.246911
selu            0       1        1.035169 1         .966026  .982866
softplus        .806059 .521071  .541645  1.919126  1.846229 1.882324
logsigmoid     -.806059 .521071  .541645  1.919126  1.846229 1.882324
hardswish       .166217 .551307  .598775  1.813871  1.670076 1.740490
hardsigmoid     .5      .166250  .166442  6.015034  6.008116 6.011574
hardtanh        0       .718372  .826250  1.392036  1.210287 1.297984
softsign        0       .427801  .477149  2.337533  2.095781 2.213359
relu_squared    .5      1.118034 1.414214 .894427   .707107  .795271
abs             .797885 .602810  1        1.658897  1        1.287982
square          1       1.414214 2        .707107   .5       .594604
exp             1.648721 2.161197 2.718282 .462706  .367879  .412577
sin             0       .657520  .753437  1.520867  1.327251 1.420764
cos             .606531 .446977  .657520  2.237253  1.520867 1.844604
tanhshrink      0       .427649  .502983  2.338368  1.988139 2.156154
softshrink      0       .647517  .785541  1.544361  1.273008 1.402135
hardshrink      0       .984449  .785541  1.015796  1.273008 1.137153
"""
VARIANTS = {
    ("gelu", ("approximate", "tanh")): (1.700917, 1.481168),
    ("leaky_relu", ("negative_slope", 0.2)): (1.546460, 1.386750),
}


@pytest.mark.parametrize("row", TABLE.strip().splitlines(), ids=lambda row: row.split()[0])
def test_factors_match_the_table(row):
    name, *values = row.split()
    known, got = activation_moments(name), activation_factors(name)
    actual = (
        known.mean,
        sqrt(known.variance),
        sqrt(known.grad_mean_square),
        got.output_scale,
        got.grad_input_scale,
        sqrt(got.output_scale * got.grad_input_scale),
    )
    assert actual == pytest.approx([float(value) for value in values], abs=1e-6)


@pytest.mark.parametrize(("case", "expected"), VARIANTS.items())
def test_variants_match_the_table(case, expected):
    name, (parameter, value) = case
    got = activation_factors(name, **{parameter: value})
    assert (got.output_scale, got.grad_input_scale) == pytest.approx(expected, abs=1e-6)


PARAMS = {
    "leaky_relu": {"negative_slope": 0.3},
    "elu": {"alpha": 0.7},
    "celu": {"alpha": 0.05},
    "softplus": {"beta": 3.0, "threshold": 2.0},
    "hardtanh": {"min_val": -0.4, "max_val": 1.3},
    "softshrink": {"lambd": 0.3},
    "hardshrink": {"lambd": 0.8},
    "threshold": {"threshold": 0.2, "value": -1.0},
    "gelu": {"approximate": "tanh"},
}
BY_OTHER_MEANS = {
    "identity": lambda x: x * 1,
    "relu_squared": lambda x: F.relu(x) ** 2,
    "quick_gelu": lambda x: x * torch.sigmoid(1.702 * x),
    "prelu": lambda x: F.leaky_relu(x, 0.25),
    "softsign": F.softsign,
    **{name: getattr(torch, name) for name in ("abs", "square", "exp", "sin", "cos", "erf")},
}


@pytest.mark.parametrize("name", CURVES)
def test_curves_are_the_functions_of_torch(name):
    """At every quadrature node, value and (by autograd) mean square derivative.

    torch rounds the slope of hardsigmoid and the alpha of celu to float32, which is 6e-8.
    """
    params = PARAMS.get(name, {})
    fn = BY_OTHER_MEANS.get(name) or getattr(F, name)
    curve = CURVES[name](**params)
    points, weights = nodes(curve.kinks)
    x = torch.from_numpy(points).requires_grad_()
    y = fn(x, **params)
    (slope,) = torch.autograd.grad(y.sum(), x)
    np.testing.assert_allclose(curve.f(points), y.detach().numpy(), rtol=1e-12, atol=1e-14)
    got = moments(curve.f, kinks=curve.kinks).grad_mean_square
    assert got == pytest.approx((weights * slope.numpy() ** 2).sum(), rel=1e-7)


@pytest.mark.parametrize("name", ["gelu", "relu", "tanh", "sigmoid", "softplus"])
@pytest.mark.parametrize("mult", [0.25, 1.0, 8.0, 100.0, -2.0])
def test_mult_squeezes_the_function(name, mult):
    """Against a trapezoid rule with 2e5 points: its error is the step squared, 1e-8, and at a jump
    of the derivative the step, 1e-4."""
    x = np.linspace(-12, 12, 200_001)
    weights = np.exp(-(x**2) / 2) / sqrt(2 * np.pi) * (x[1] - x[0])
    f = lambda x: getattr(F, name)(torch.from_numpy(mult * x)).numpy()
    values = f(x)
    got = activation_moments(name, mult=mult)
    assert got.mean_square == pytest.approx((weights * values**2).sum(), rel=1e-6)
    slope = np.gradient(values, x)
    assert got.grad_mean_square == pytest.approx((weights * slope**2).sum(), rel=1e-3)


def test_rms_keeps_the_mean_inside():
    got = activation_factors("relu", center="rms")
    assert got.output_scale == pytest.approx(sqrt(2), rel=1e-14)
    assert got.grad_input_scale == activation_factors("relu").grad_input_scale


@pytest.mark.parametrize(
    ("name", "output", "gate"),
    [
        ("sigmoid", 1.846229, 4.722646),
        ("gelu", 1.533530, 1.481114),
        ("relu", 1.414214, 1.414214),
        ("silu", 1.676532, 1.623320),
        ("identity", 1, 1),
        ("mish", 1.486848, 1.444755),
    ],
)
def test_gated_factors_match_the_table(name, output, gate):
    got = gated_factors(name)
    assert (got.output_scale, got.grad_input_scale) == pytest.approx((output, output), abs=1e-6)
    assert got.grad_gate_scale == pytest.approx(gate, abs=1e-6)


def test_results_are_remembered_and_frozen():
    assert activation_moments("mish") is activation_moments("mish")
    with pytest.raises(AttributeError):
        activation_factors("mish").output_scale = 1.0


def test_unknown_name_parameter_or_center_is_refused():
    with pytest.raises(ValueError, match=r"unknown activation 'gelo'.*nearest: 'gelu'"):
        activation_factors("gelo")
    with pytest.raises(TypeError, match="leaky_relu: unknown parameter 'slope', expected negative"):
        activation_factors("leaky_relu", slope=0.1)
    with pytest.raises(TypeError, match="relu: unknown parameter 'alpha', expected none"):
        activation_factors("relu", alpha=0.1)
    with pytest.raises(ValueError, match="approximate is 'erf', expected 'none' or 'tanh'"):
        activation_factors("gelu", approximate="erf")
    with pytest.raises(ValueError, match="center is 'mean', expected 'std' or 'rms'"):
        activation_factors("relu", center="mean")


def test_functions_without_a_scale_are_refused():
    with pytest.raises(ValueError, match=r"mult is 0\.0, expected a finite number other than 0"):
        activation_factors("relu", mult=0)
    with pytest.raises(ValueError, match="the function is constant"):
        factors_from_moments(Moments(mean=2.0, mean_square=4.0, variance=0.0, grad_mean_square=0.0))
    with pytest.raises(ValueError, match="rms squared 400, mean square derivative"):
        activation_factors("hardtanh", min_val=20.0, max_val=21.0, center="rms")
