"""From measured RMS to units, and the algebra of factors."""

import importlib.util
import math
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from unitscale.units import assign as theory
from unitscale.units.assign import (
    FILL,
    MAX_EXPONENT,
    ONE,
    ZERO_RMS,
    Monomial,
    Unit,
    assign,
    exponent,
    limit_for,
    product,
    reason,
)

SILENT = [None, 0.0, math.nan, math.inf, ZERO_RMS / 2]


def test_theory_imports_no_torch():
    code = f"""
import importlib.util, sys
spec = importlib.util.spec_from_file_location("theory", {theory.__file__!r})
module = sys.modules["theory"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
assert "torch" not in sys.modules
assert module.assign(8.0, None) == module.Unit(3, 0)
"""
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("power", range(-MAX_EXPONENT, MAX_EXPONENT + 1))
def test_exponent_of_a_power_of_two_is_exact(power):
    assert exponent(2.0**power) == power


@given(st.floats(2.0**-MAX_EXPONENT, 2.0**MAX_EXPONENT))
def test_held_rms_is_within_half_an_octave_of_one(rms):
    held = rms / 2.0 ** exponent(rms)
    assert 2**-0.5 * (1 - 1e-15) <= held <= 2**0.5 * (1 + 1e-15)


@given(st.floats(2.0**-MAX_EXPONENT, 2.0**MAX_EXPONENT))
def test_held_gradient_is_within_half_an_octave_of_one(grad_rms):
    held = grad_rms * 2.0 ** assign(None, grad_rms).phi
    assert 2**-0.5 * (1 - 1e-15) <= held <= 2**0.5 * (1 + 1e-15)


@given(st.floats(2.0**-20, 2.0**20), st.integers(-15, 15))
def test_scaling_a_tensor_scales_its_unit_by_the_same_power(rms, power):
    assert exponent(rms * 2.0**power) == exponent(rms) + power


@pytest.mark.parametrize("rms", SILENT)
def test_what_has_no_scale_keeps_one(rms):
    assert exponent(rms) == 0
    assert assign(rms, rms) == ONE


def test_zero_rms_is_the_first_that_counts():
    assert exponent(ZERO_RMS) == -MAX_EXPONENT  # clamped
    assert exponent(math.nextafter(ZERO_RMS, 0)) == 0


@pytest.mark.parametrize(
    ("rms", "expected"), [(1e-15, -MAX_EXPONENT), (1e15, MAX_EXPONENT), (1e300, MAX_EXPONENT)]
)
def test_exponents_are_clamped(rms, expected):
    assert exponent(rms) == expected


def test_product_of_three_extreme_units_is_in_range_of_float32():
    assert 2.0 ** (3 * MAX_EXPONENT) < 3.4e38
    assert 2.0 ** (-3 * MAX_EXPONENT) > 1.2e-38


def test_unit_is_the_pair():
    assert assign(8.0, 2.0**-10) == Unit(s=3, phi=10)
    assert assign(0.25, 4.0) == Unit(s=-2, phi=-2)
    assert assign(8.0, None) == Unit(s=3, phi=0)


@pytest.mark.parametrize("amax", [FILL, 3.4e38])
def test_fill_values_allow_no_s_below_one(amax):
    """finfo.min / s would be an infinity."""
    assert assign(0.01, 1.0, amax).s == 0
    assert assign(8.0, 1.0, amax).s == 3
    assert assign(0.01, 1.0, math.nextafter(FILL, 0)).s < 0


@pytest.mark.parametrize(
    ("measured", "expected"),
    [
        ((1.0, 1.0, 3.0), None),
        ((1.0, None, None), None),
        ((0.0, 1.0, 0.0), "value is zero"),
        ((1.0, 0.0, 1.0), "gradient is zero"),
        ((1.0, 1e-40, 1.0), "gradient is zero"),
        ((math.inf, 1.0, 1.0), "value is not finite"),
        ((math.nan, 1.0, 1.0), "value is not finite"),
        ((1.0, math.nan, 1.0), "gradient is not finite"),
        ((0.01, 1.0, 3.4e38), "holds fill values of 3.4e+38"),
        ((8.0, 1.0, 3.4e38), None),
        ((2.0**-40, 2.0**40, 1.0), None),
        ((2.0**-41, 1.0, 1.0), "value of 4.5e-13 is beyond the range of units"),
        ((1.0, 2.0**-41, 1.0), "gradient of 4.5e-13 is beyond the range of units"),
        ((1.0, 2.0**41, 1.0), "gradient of 2.2e+12 is beyond the range of units"),
    ],
)
def test_reason_says_why_a_tensor_is_not_held_at_one(measured, expected):
    assert reason(*measured) == expected


@pytest.mark.parametrize("rms", [x for x in SILENT if x is not None])
def test_what_has_no_scale_has_a_reason(rms):
    assert reason(rms, 1.0) is not None
    assert reason(1.0, rms) is not None


SYMBOLS = [(half, tensor) for half in ("s", "phi") for tensor in "abc"]
MONOMIALS = st.dictionaries(
    st.sampled_from(SYMBOLS), st.integers(-3, 3).filter(bool), max_size=4
).map(Monomial)
UNITS = st.dictionaries(
    st.sampled_from("abc"), st.builds(Unit, st.integers(-40, 40), st.integers(-40, 40))
)


@given(MONOMIALS, MONOMIALS, UNITS)
def test_log2_takes_products_to_sums(a, b, units):
    assert (a * b).log2(units) == a.log2(units) + b.log2(units)
    assert (a / b).log2(units) == a.log2(units) - b.log2(units)


@given(MONOMIALS, MONOMIALS, MONOMIALS)
def test_monomials_are_an_abelian_group(a, b, c):
    assert a * b == b * a
    assert (a * b) * c == a * (b * c)
    assert a * Monomial() == a
    assert (a / a).is_one
    assert hash(a * b) == hash(b * a)
    assert product([a, b, c]) == a * b * c


@given(MONOMIALS)
def test_only_the_empty_product_is_one_for_every_assignment(monomial):
    units = {tensor: Unit(s=7 * i + 1, phi=1000 ** (i + 1)) for i, tensor in enumerate("abc")}
    assert monomial.is_one == (monomial.log2(units) == 0) == (not monomial.powers)


def test_no_property_depends_on_the_speed_of_the_machine():
    """Drawing examples slowly, as on a loaded machine, failed a health check of Hypothesis."""

    @given(st.builds(lambda x: time.sleep(0.03) or x, st.integers()))
    @settings(max_examples=2)
    def check(x):
        time.sleep(0.25)  # the deadline is 0.2 s by default

    check()
    assert settings().deadline is None
    assert HealthCheck.too_slow in settings().suppress_health_check


def test_product_of_nothing_is_one():
    assert product([]).is_one


def test_tensors_without_a_unit_count_as_one():
    monomial = Monomial({("s", "a"): 2, ("phi", "b"): -1})
    assert monomial.log2({}) == 0
    assert monomial.log2({"a": Unit(s=3)}) == 6
    assert monomial.log2({"a": Unit(s=3), "b": Unit(s=5, phi=1)}) == 5


def test_theory_is_beside_the_paper():
    """One file, readable without the rest: it imports the standard library alone."""
    spec = importlib.util.find_spec("unitscale.units.assign")
    lines = Path(spec.origin).read_text().splitlines()
    imports = [line for line in lines if line.startswith(("import ", "from "))]
    assert {line.split()[1] for line in imports} <= {
        "math",
        "collections.abc",
        "dataclasses",
        "typing",
    }


@pytest.mark.parametrize(("least", "limit"), [(-14, 14), (-126, MAX_EXPONENT)])
def test_units_stay_in_the_normal_range_of_a_dtype(least, limit):
    assert limit_for(least) == limit
    assert assign(2.0**-30, 2.0**-35, limit=limit) == Unit(-min(30, limit), min(35, limit))
    assert (reason(2.0**-30, None, limit=limit) is None) == (limit >= 30)
