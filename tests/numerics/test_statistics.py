"""Statistics against closed forms and numpy, and what they say of zero, NaN, Inf and nothing."""

import math

import numpy as np
import pytest
import torch

from numerics.allocation import largest_allocation
from unitscale.formats import E2M1FN, E4M3FN, E5M2, FP16, FP64, round_to
from unitscale.numerics import (
    amax,
    exponent_histogram,
    flushed_fraction,
    kurtosis,
    rms,
    saturated_fraction,
    sqnr_db,
    subnormal_fraction,
)
from unitscale.numerics import chunk as chunk_module

NAN, INF = math.nan, math.inf
FLOATS = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
each_float = pytest.mark.parametrize("dtype", FLOATS, ids=str)
with_format = [flushed_fraction, subnormal_fraction, saturated_fraction]


@pytest.fixture(autouse=True, params=[chunk_module.CHUNK, 7], ids=["whole", "in chunks"])
def _chunk(request, monkeypatch):
    """Everything holds in one chunk and in many."""
    monkeypatch.setattr(chunk_module, "CHUNK", request.param)


def same(actual, expected):
    """Equal, NaN to NaN, and a 0-dim float64 tensor."""
    assert actual.dtype == torch.float64
    assert actual.shape == ()
    return actual.item() == expected or (math.isnan(actual) and math.isnan(expected))


@each_float
def test_rms_and_amax_equal_numpy(dtype):
    x = (torch.randn(50, 40) * 3).to(dtype)
    exact = x.double().numpy()
    # float64 sums of 2,000 terms in another order: 2,000 ulps at the very most
    expected = pytest.approx(np.sqrt((exact**2).mean()), rel=2000 * 2.0**-53)
    for view in (x, x.t(), x[:, None]):
        assert rms(view).item() == expected
        assert same(amax(view), np.abs(exact).max())


@pytest.mark.parametrize("value", [1e30, 3e38, 1e-30, 1e-38, 1e-45])
@pytest.mark.parametrize("skip_fill", [False, True])
def test_rms_neither_overflows_nor_underflows(value, skip_fill):
    x = torch.full((1000,), value)
    if skip_fill and value >= 2.0**64:
        assert same(rms(x, skip_fill=True), 0.0)
    else:
        assert rms(x, skip_fill=skip_fill).item() == pytest.approx(x[0].item(), rel=1e-12)


@pytest.mark.parametrize(
    ("x", "expected_rms", "expected_amax"),
    [
        ([], 0.0, 0.0),
        ([0.0, -0.0], 0.0, 0.0),
        ([-2.0], 2.0, 2.0),
        ([1.0, NAN], NAN, NAN),
        ([1.0, -INF], INF, INF),
    ],
)
def test_rms_and_amax_of_special_values(x, expected_rms, expected_amax):
    assert same(rms(torch.tensor(x)), expected_rms)
    assert same(amax(torch.tensor(x)), expected_amax)


@pytest.mark.parametrize("fill", [torch.finfo(torch.float32).min, -INF, INF, NAN, 2.0**64, -1e30])
def test_skip_fill_leaves_masks_out(fill):
    x = torch.tensor([3.0, fill, -4.0, fill])
    assert rms(x, skip_fill=True).item() == pytest.approx(math.sqrt(12.5), rel=1e-15)
    assert same(amax(x, skip_fill=True), 4.0)
    assert same(kurtosis(x, skip_fill=True), 1.0)


def test_skip_fill_keeps_what_is_just_data():
    x = torch.tensor([2.0**64 * (1 - 2.0**-24)])
    assert same(amax(x, skip_fill=True), x.item())
    assert same(rms(torch.full((3,), NAN), skip_fill=True), 0.0)


@each_float
def test_skip_fill_in_every_dtype(dtype):
    x = torch.tensor([3.0, -INF, NAN, 4.0], dtype=dtype)
    assert rms(x, skip_fill=True).item() == pytest.approx(math.sqrt(12.5), rel=1e-15)


def test_kurtosis_of_known_distributions():
    """Standard error of a Gaussian's is sqrt(24 / n) = 0.011; 5 of them allowed."""
    assert kurtosis(torch.randn(200_000)).item() == pytest.approx(3.0, abs=0.055)
    assert kurtosis(torch.tensor([-1.0, 1.0] * 10)).item() == 1.0
    n = 1000  # one outlier among zeros: (n - 1) + 1 / (n - 1) - 1
    x = torch.zeros(n)
    x[0] = 1e30
    assert kurtosis(x).item() == pytest.approx(n - 2 + 1 / (n - 1), rel=1e-9)


@pytest.mark.parametrize("x", [[], [2.0, 2.0], [1.0, NAN], [1.0, INF]])
def test_kurtosis_is_nan_where_undefined(x):
    assert math.isnan(kurtosis(torch.tensor(x)))


def test_sqnr_of_a_known_error():
    x = torch.tensor([3.0, 4.0])
    assert sqnr_db(x, x + torch.tensor([0.3, 0.4])).item() == pytest.approx(20.0, rel=1e-6)


@pytest.mark.parametrize(("fmt", "db"), [(E4M3FN, 31.5), (E5M2, 25.6)])
def test_sqnr_of_fp8_on_gaussian_data(fmt, db):
    """A band, so that neither no rounding (Inf) nor the other format passes."""
    x = torch.randn(100_000)
    assert sqnr_db(x, round_to(x, fmt)).item() == pytest.approx(db, abs=0.15)


@pytest.mark.parametrize(
    ("x", "x_rounded", "expected"),
    [
        ([1.0], [1.0], INF),
        ([0.0], [0.0], INF),
        ([], [], INF),
        ([0.0], [1.0], -INF),
        ([1.0], [NAN], NAN),
        ([INF], [1.0], NAN),
    ],
)
def test_sqnr_of_special_values(x, x_rounded, expected):
    assert same(sqnr_db(torch.tensor(x), torch.tensor(x_rounded)), expected)


def test_sqnr_refuses_other_shapes():
    with pytest.raises(ValueError, match=r"x_rounded is \(3,\); expected x's shape \(2,\)"):
        sqnr_db(torch.zeros(2), torch.zeros(3))


@each_float
def test_shares_of_each_end(dtype):
    """E4M3FN: up to 2**-10 is flushed, below 2**-6 is subnormal, above 448 saturates."""
    x = torch.tensor([0.0, 2.0**-10, -(2.0**-12), 2.0**-9, 2.0**-7, 2.0**-6, 448, 464], dtype=dtype)
    assert same(flushed_fraction(x, E4M3FN), 2 / 8)
    assert same(subnormal_fraction(x, E4M3FN), 2 / 8)
    assert same(saturated_fraction(x, E4M3FN), 1 / 8)


def test_shares_depend_on_the_format():
    x = torch.tensor([2.0**-12, 500.0])
    assert same(flushed_fraction(x, E5M2), 0.0)
    assert same(saturated_fraction(x, E5M2), 0.0)
    assert same(saturated_fraction(x, E2M1FN), 0.5)
    assert same(subnormal_fraction(torch.tensor([2.0**-15]), FP16), 1.0)
    assert same(saturated_fraction(x, FP64), 0.0)


def test_a_value_that_rounds_up_to_normal_is_not_subnormal():
    x = torch.tensor([2.0**-6 * (1 - 2.0**-10)])
    assert same(subnormal_fraction(x, E4M3FN), 0.0)


@pytest.mark.parametrize("share", with_format)
def test_shares_of_special_values(share):
    assert same(share(torch.tensor([]), E4M3FN), 0.0)
    assert same(share(torch.zeros(3), E4M3FN), 0.0)
    assert same(share(torch.tensor([NAN]), E4M3FN), 0.0)
    assert same(share(torch.tensor([INF, -INF]), E4M3FN), float(share is saturated_fraction))


def test_exponent_histogram_counts_binades():
    x = torch.tensor([1.0, 1.99, -2.0, 0.75, 2.0**-149, 0.0, -0.0, INF, NAN])
    histogram = exponent_histogram(x)
    assert histogram == {-149: 1, -1: 1, 0: 2, 1: 1}
    assert list(histogram) == sorted(histogram)
    assert exponent_histogram(torch.tensor([])) == exponent_histogram(torch.zeros(2)) == {}
    assert exponent_histogram(torch.tensor([2.0**-1074], dtype=torch.float64)) == {-1074: 1}


@pytest.mark.parametrize("function", [rms, amax, kurtosis, exponent_histogram])
@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.complex64], ids=str)
def test_other_dtypes_are_refused(function, dtype):
    with pytest.raises(TypeError, match=f"{function.__name__}: dtype is {dtype}; expected float64"):
        function(torch.zeros(3, dtype=dtype))


@pytest.mark.parametrize("share", with_format)
def test_shares_refuse_other_dtypes(share):
    with pytest.raises(TypeError, match=f"{share.__name__}: dtype is torch.int64"):
        share(torch.zeros(3, dtype=torch.int64), E4M3FN)
    with pytest.raises(TypeError, match=r"sqnr_db: dtype is torch.int64"):
        sqnr_db(torch.zeros(3), torch.zeros(3, dtype=torch.int64))


def test_the_input_is_a_constant():
    x = torch.randn(10, requires_grad=True)
    results = [rms(x), amax(x), kurtosis(x), sqnr_db(x, x * 2)]
    results += [share(x, E4M3FN) for share in with_format]
    assert not any(result.requires_grad for result in results)


@pytest.mark.parametrize("skip_fill", [False, True])
def test_a_long_sum_does_not_stall(skip_fill, monkeypatch):
    """A sum of ones in float32 stands still at 2**24."""
    monkeypatch.setattr(chunk_module, "CHUNK", 2**20)
    ones = torch.ones(()).expand(2**20, 32)
    assert same(rms(ones, skip_fill=skip_fill), 1.0)
    stalled = torch.linalg.vector_norm(ones, dtype=torch.float32)
    assert stalled / 2.0**12.5 == pytest.approx(0.5**0.5)


@pytest.mark.parametrize("view", [lambda x: x, torch.t, lambda x: x[:, 1:]], ids=["", "t", "part"])
def test_no_statistic_copies_the_tensor(view, monkeypatch):
    size = 4096
    monkeypatch.setattr(chunk_module, "CHUNK", size)
    x = view(torch.randn(40, size + 1))
    single = [rms, amax, kurtosis, exponent_histogram]
    calls = [(f, x) for f in single] + [(f, x, E4M3FN) for f in with_format]
    for function, *args in [*calls, (sqnr_db, x, x.clone().t().contiguous().t())]:
        assert largest_allocation(function, *args) <= size
    for function in (rms, amax, kurtosis):
        assert largest_allocation(function, x, skip_fill=True) <= size
    assert largest_allocation(lambda: x.double()) == x.numel()


def test_statistics_of_two_layouts():
    x = torch.randn(30, 20)
    y = round_to(x, E4M3FN)
    expected = pytest.approx(sqnr_db(x, y).item(), rel=1e-12)
    for other in (y.t().contiguous().t(), torch.stack([y, y], -1)[..., 0]):
        assert sqnr_db(x, other).item() == expected
        assert sqnr_db(x.t(), other.t()).item() == expected
