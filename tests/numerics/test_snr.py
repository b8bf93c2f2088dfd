"""SNR against scale: plateau and knees of each format, measured and in closed form."""

import math

import pytest

from unitscale.formats import BF16, E4M3, E4M3FN, E5M2, FP16
from unitscale.numerics.snr import expected_snr, knees, measure_snr, plateau_db

FORMATS = (E4M3FN, E5M2, FP16, BF16)


@pytest.mark.parametrize("fmt", FORMATS, ids=lambda fmt: fmt.name)
def test_plateau_and_knees_are_those_of_the_closed_form(fmt):
    plateau, (low, high) = plateau_db(fmt), knees(fmt)
    middle = (fmt.min_exponent + fmt.max_exponent) // 2
    octave = [10 ** (x / 10) for x in measure_snr(fmt, [middle + i / 8 for i in range(8)])]
    assert 10 * math.log10(sum(octave) / 8) == pytest.approx(plateau, abs=0.1)
    half = plateau - 10 * math.log10(2)
    assert measure_snr(fmt, [low, high]) == pytest.approx([half, half], abs=0.1)
    assert min(measure_snr(fmt, [low + 0.5, high - 0.25])) > half
    assert max(measure_snr(fmt, [low - 0.5, high + 0.25])) < half


@pytest.mark.parametrize("fmt", FORMATS, ids=lambda fmt: fmt.name)
def test_plateau_is_that_of_uniform_noise_in_each_binade(fmt):
    # A mantissa spread evenly over its octave has E x**2 = 7/3 and E x = 3/2 in units of 2**e,
    # noise epsilon**2 / 12: 28 / epsilon**2 in power, and a Gaussian is within 1.5 dB of it.
    assert plateau_db(fmt) == pytest.approx(10 * math.log10(28 / fmt.epsilon**2), abs=1.5)


@pytest.mark.parametrize("fmt", FORMATS, ids=lambda fmt: fmt.name)
def test_lower_knee_is_where_subnormal_noise_equals_the_plateaus(fmt):
    # min_subnormal**2 / 12 = sigma**2 / plateau, to within half an octave: at the
    # knee some values are still normal, with less noise.
    simple = (
        math.log2(fmt.min_subnormal) + (plateau_db(fmt) / 10 * math.log2(10) - math.log2(12)) / 2
    )
    assert knees(fmt)[0] == pytest.approx(simple, abs=0.5)
    low = knees(fmt)[0]
    assert expected_snr(fmt, low - 2.5) - expected_snr(fmt, low - 3.5) == pytest.approx(
        6.02, abs=0.1
    )


def test_two_e4m3_differ_by_an_octave_above():
    assert knees(E4M3FN)[0] == pytest.approx(knees(E4M3)[0], abs=1e-4)
    assert knees(E4M3FN)[1] - knees(E4M3)[1] == pytest.approx(math.log2(448 / 240), abs=0.05)
