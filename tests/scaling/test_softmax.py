import math

import numpy as np
import pytest
import torch

from unitscale.scaling.softmax import at_size, exact_moments, log_sum_law, softmax_law

SIZES = np.array([1.0, 2.0, 3.0, 16.0, 1000.0, 2.0**20])


def harmonic(n):
    return sum(1 / i for i in range(1, n + 1))


def test_equal_logits_have_closed_forms():
    """s = 0: every p is 1 / n, so sum p**2 = 1 / n and the Jacobian has (n - 1) / n**2."""
    square, jacobian = exact_moments(0.0, SIZES)
    np.testing.assert_allclose(square, 1 / SIZES, rtol=1e-12)
    np.testing.assert_allclose(jacobian, (SIZES - 1) / SIZES**2, rtol=1e-12, atol=1e-15)


def test_causal_rows_give_harmonic_numbers():
    square, jacobian = exact_moments(0.0, SIZES[:-1], is_causal=True)
    for got, size in zip(square, SIZES, strict=False):
        assert got == pytest.approx(harmonic(int(size)) / size, rel=1e-12)
    rows = np.arange(1, 1001)
    assert jacobian[-1] == pytest.approx(((rows - 1) / rows**2).mean(), rel=1e-12)


def test_causal_law_is_the_mean_of_the_rows():
    rows = np.arange(1.0, 65.0)
    each = exact_moments(1.5, rows)
    causal = exact_moments(1.5, rows, is_causal=True)
    for one, mean in zip(each, causal, strict=True):
        np.testing.assert_allclose(mean, np.cumsum(one) / rows, rtol=1e-10, atol=1e-15)


def test_two_logits_match_direct_integration():
    """p = sigmoid(d) with d ~ N(0, 2 s**2): one integral without any Laplace transform."""
    x = np.linspace(-12, 12, 20001)
    weights = np.exp(-(x**2) / 2) / math.sqrt(2 * math.pi) * (x[1] - x[0])
    for s in (0.3, 1.0, 3.0):
        p = 1 / (1 + np.exp(-math.sqrt(2) * s * x))
        square, jacobian = exact_moments(s, np.array([2.0]))
        assert square[0] == pytest.approx((weights * (p**2 + (1 - p) ** 2)).sum(), rel=1e-10)
        assert jacobian[0] == pytest.approx((weights * 4 * (p * (1 - p)) ** 2).sum(), rel=1e-10)


@pytest.mark.parametrize("logit_std", [0.25, 1.0, 2.0, 4.0])
@pytest.mark.parametrize("size", [4, 64, 1024])
def test_exact_moments_match_sampling(logit_std, size):
    """Within 5 standard errors of 2000 rows, which the rows themselves tell."""
    p = torch.softmax(logit_std * torch.randn(2000, size, dtype=torch.float64), -1)
    square = (p**2).sum(-1)
    jacobian = square - 2 * (p**3).sum(-1) + square**2
    for got, rows in zip(
        exact_moments(logit_std, np.array([size * 1.0])), (square, jacobian), strict=True
    ):
        error = rows.std().item() / math.sqrt(2000)
        assert abs(got[0] - rows.mean().item()) < 5 * error


@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize("logit_std", [0.0, 0.125, 0.5, 1.0, 2.0, 5.0, 16.0])
def test_law_reproduces_the_integral(logit_std, is_causal):
    sizes = np.exp(np.linspace(math.log(2), math.log(2**24), 33))
    square, jacobian = exact_moments(logit_std, sizes, is_causal=is_causal)
    law = softmax_law(logit_std, is_causal)
    for size, s, j in zip(sizes, square, jacobian, strict=True):
        assert at_size(law.square, size) == pytest.approx(s, rel=2e-4)
        assert at_size(law.jacobian, size) * (size - 1) / size == pytest.approx(j, rel=2e-4)


def test_long_rows_follow_the_usual_estimate_and_short_ones_do_not():
    law = softmax_law(1.0)
    assert at_size(law.square, 2**20) == pytest.approx(math.e / 2**20, rel=1e-3)
    assert math.sqrt(math.e / 4 / at_size(law.square, 4)) == pytest.approx(1.32, abs=0.01)
    at_256 = at_size(softmax_law(2.0).square, 256)
    assert math.sqrt(math.exp(4) / 256 / at_256) == pytest.approx(1.71, abs=0.01)


@pytest.mark.parametrize("size", [1, 2, 16, 256])
def test_log_sum_law_matches_sampling(size):
    """The variance of a variance estimate over n near-normal rows is 2 / n of its square."""
    n = 20_000
    sample = torch.logsumexp(torch.randn(n, size, dtype=torch.float64), -1).var().item()
    assert at_size(log_sum_law(1.0), size) / size == pytest.approx(sample, rel=5 * math.sqrt(2 / n))


@pytest.mark.parametrize("logit_std", [-1.0, 65.0, math.nan])
def test_logits_out_of_range_are_refused(logit_std):
    with pytest.raises(ValueError, match=rf"standard deviation {logit_std}, expected 0 to 64"):
        softmax_law(logit_std)
