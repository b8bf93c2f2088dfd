"""Stochastic rounding: a Bernoulli draw between two neighbours, unbiased to 2**-24 of the spacing.

A share of n draws of Bernoulli(p) has the standard error `sqrt(p (1 - p) / n)`; tolerances are 5 of
them, and seeds are fixed.
"""

import math

import pytest
import torch

from formats.oracle import SMALL, not_negative
from unitscale.formats import E4M3FN, E5M2, E8M0FNU, FORMATS, FP16, kernel, round_to

N = 200_000

# Format, lower neighbour, upper neighbour: normals, subnormals, the last binade.
GAPS = [
    (E4M3FN, 1.0, 1.125),
    (E4M3FN, 0.0, 2.0**-9),
    (E4M3FN, 2.0**-9, 2.0**-8),
    (E4M3FN, 416.0, 448.0),
    (E5M2, 1.75, 2.0),
    (E5M2, 0.0, 2.0**-16),
    (FP16, 1.0, 1.0 + 2.0**-10),
    (FP16, 2.0**-24, 2.0**-23),
    (E8M0FNU, 2.0, 4.0),
    (FORMATS["E2M1FN"], 4.0, 6.0),
]


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def draw(x, fmt, n=N, dtype=torch.float32, **options):
    given = torch.full((n,), x, dtype=dtype)
    return round_to(given, fmt, "stochastic", generator=generator(), **options).double()


def assert_unbiased(y, lo, hi, p):
    """y takes only the values lo and hi, hi in a share p of the cases, within 5 standard errors."""
    assert set(y.tolist()) <= {lo, hi}
    share = (y == hi).double().mean().item()
    assert abs(share - p) <= 5 * math.sqrt(p * (1 - p) / y.numel())


def test_assert_unbiased_fails_on_bias_and_on_foreign_values():
    y = draw(1.0, E4M3FN)
    with pytest.raises(AssertionError):
        assert_unbiased(y, 1.0, 1.125, 0.01)
    with pytest.raises(AssertionError):
        assert_unbiased(y + 1e-3, 1.0, 1.125, 0.0)


@pytest.mark.parametrize("p", [1 / 64, 0.3, 0.5, 0.9])
@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize(("fmt", "lo", "hi"), GAPS)
def test_up_with_the_probability_of_the_distance(fmt, lo, hi, sign, p):
    if sign < 0 and not fmt.is_signed:
        pytest.skip("unsigned")
    x = torch.tensor(lo + p * (hi - lo), dtype=torch.float32).item()
    p = (x - lo) / (hi - lo)  # of the float32 that x became
    assert_unbiased(draw(sign * x, fmt), sign * lo, sign * hi, p)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16], ids=str)
def test_other_dtypes(dtype):
    x = torch.tensor(1.04, dtype=dtype).item()
    assert_unbiased(draw(x, E4M3FN, dtype=dtype), 1.0, 1.125, (x - 1) / 0.125)


def test_mean_error_of_two_million_draws():
    """5 standard errors are 5 sqrt(0.3 * 0.7 / 2e6) = 0.0016 of the spacing."""
    x = torch.tensor(1 + 0.3 * 0.125).item()
    error = (draw(x, E4M3FN, 2_000_000).mean().item() - x) / 0.125
    assert abs(error) < 0.0016


def test_sum_of_gradients_below_half_a_step_survives():
    """Rounded to nearest, each of these is lost."""
    x = torch.full((N,), 2.0**-9 * 0.1)
    assert round_to(x, E4M3FN).sum() == 0
    mean = round_to(x, E4M3FN, "stochastic", generator=generator()).mean().item() / 2.0**-9
    assert abs(mean - 0.1) < 5 * math.sqrt(0.1 * 0.9 / N)


def test_too_few_random_bits_are_noticed(monkeypatch):
    """With 4 bits a probability of 1/64 is rounded to 0."""
    monkeypatch.setattr(kernel, "RANDOM_BITS", 4)
    with pytest.raises(AssertionError):
        assert_unbiased(draw(1 + 0.125 / 64, E4M3FN), 1.0, 1.125, 1 / 64)


@pytest.mark.parametrize("excess", [-1 / 64, 0.0, 1 / 64])
def test_the_probability_is_rounded_to_nearest(monkeypatch, excess):
    """Seen at 4 bits: 3/16 and what is nearest to it."""
    monkeypatch.setattr(kernel, "RANDOM_BITS", 4)
    y = draw(1 + 0.125 * (3 / 16 + excess), E4M3FN)
    assert_unbiased(y, 1.0, 1.125, 3 / 16)


@pytest.mark.parametrize("fmt", [*SMALL, FP16], ids=str)
def test_values_of_the_format_never_move(fmt):
    values = torch.tensor(fmt.values())
    values = values[values.isfinite()].repeat(max(1, 10_000 // 2**fmt.bits))
    for saturate in (True, False):
        y = round_to(values, fmt, "stochastic", saturate, generator())
        assert torch.equal(y, values)
        assert torch.equal(y.signbit(), values.signbit())


@pytest.mark.parametrize("fmt", SMALL, ids=str)
def test_only_the_two_neighbours(fmt):
    x = torch.randn(20_000) * torch.exp2(torch.randint(-20, 10, (20_000,)).float())
    x = x.abs() if not fmt.is_signed else x
    y = round_to(x, fmt, "stochastic", generator=generator())
    down = round_to(x, fmt, "toward_zero")
    values = torch.from_numpy(not_negative(fmt)).float()
    next_up = values[(torch.searchsorted(values, down.abs()) + 1).clamp(max=len(values) - 1)]
    assert ((y == down) | (y.abs() == next_up)).all()
    assert ((y.signbit() == x.signbit()) | (y == 0)).all()


def test_past_the_largest_value():
    assert set(draw(460.0, E4M3FN).tolist()) == {448.0}
    assert set(draw(math.inf, E4M3FN).tolist()) == {448.0}
    assert draw(math.nan, E4M3FN).isnan().all()
    y = draw(456.0, E4M3FN, saturate=False)  # a quarter of the way to 480, which is NaN
    assert_unbiased(y.nan_to_num(480.0), 448.0, 480.0, 0.25)
    y = draw(-59392.0, E5M2, saturate=False)  # a quarter of the way to 65536, which is Inf
    assert_unbiased(y.nan_to_num(neginf=-65536.0), -57344.0, -65536.0, 0.25)


def test_sign_of_zero_is_kept():
    y = draw(-(2.0**-12), E4M3FN)
    assert y[y == 0].signbit().all()
    assert not draw(-(2.0**-14), FORMATS["E4M3FNUZ"]).eq(0).logical_and(y.signbit()).all()


def test_a_generator_decides_everything():
    x = torch.randn(50, 20)
    first = round_to(x, E4M3FN, "stochastic", generator=generator(1))
    assert torch.equal(first, round_to(x, E4M3FN, "stochastic", generator=generator(1)))
    assert torch.equal(
        first, round_to(x.t().contiguous().t(), E4M3FN, "stochastic", generator=generator(1))
    )
    assert not torch.equal(first, round_to(x, E4M3FN, "stochastic", generator=generator(2)))


def test_without_a_generator_torchs_global_one_is_used():
    x = torch.randn(1000)
    torch.manual_seed(3)
    first = round_to(x, E4M3FN, "stochastic")
    second = round_to(x, E4M3FN, "stochastic")
    torch.manual_seed(3)
    assert torch.equal(first, round_to(x, E4M3FN, "stochastic"))
    assert not torch.equal(first, second)
