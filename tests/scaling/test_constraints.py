import math

import pytest

from unitscale.scaling.constraints import (
    CONSTRAINTS,
    amean,
    apply_constraint,
    fan_amean,
    gmean,
    hmean,
    smallest,
)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("gmean", (2 * 4 * 0.5) ** (1 / 3)),
        ("hmean", 3 / (1 / 2 + 1 / 4 + 1 / 0.5)),
        ("amean", (2 + 4 + 0.5) / 3),
        ("fan_amean", (3 / (1 / 4 + 1 / 16 + 4)) ** 0.5),
        ("min", 0.5),
        ("to_output_scale", 2),
        ("to_left_grad_scale", 4),
        ("to_right_grad_scale", 0.5),
    ],
)
def test_constraint_ties_all_factors_to_one(name, expected):
    got = apply_constraint(name, 2.0, 4.0, 0.5)
    assert got == pytest.approx((expected,) * 3, rel=1e-15)
    assert len(set(got)) == 1


def test_to_grad_input_scale_ties_two():
    assert apply_constraint("to_grad_input_scale", 2.0, 4.0) == (4.0, 4.0)


def test_unconstrained_factors_come_back_as_they_were():
    assert apply_constraint(None, 2.0, 4.0, 0.5) == (2.0, 4.0, 0.5)
    assert apply_constraint(None, 2.0) == (2.0,)


@pytest.mark.parametrize("name", ["gmean", "hmean", "amean", "fan_amean", "min", "to_output_scale"])
def test_output_alone_keeps_its_factor(name):
    assert apply_constraint(name, 2.0) == (2.0,)


def test_means_are_ordered_and_agree_on_equal_factors():
    assert smallest(2, 8) < fan_amean(2, 8) < hmean(2, 8) < gmean(2, 8) < amean(2, 8)
    for mean in (smallest, fan_amean, hmean, gmean, amean):
        assert mean(3.0, 3.0) == pytest.approx(3.0, rel=1e-15)


def test_gmean_of_a_linear_layer_restores_scale_up_and_back():
    """`(fan_in * fan_out)**-1/4`: the errors of m -> n and n -> m cancel."""
    m, n = 256, 1024
    there = gmean(m**-0.5, n**-0.5)
    assert there == pytest.approx((m * n) ** -0.25, rel=1e-15)
    assert there * math.sqrt(m) * gmean(n**-0.5, m**-0.5) * math.sqrt(n) == pytest.approx(1)


@pytest.mark.parametrize(("m", "n"), [(256, 1024), (1024, 256), (64, 64)])
def test_rules_of_the_demo_for_a_linear_layer(m, n):
    """Its `both`, `both_arithmetic`, `both_min`, by their own formulas."""
    scales = (m**-0.5, n**-0.5)
    assert gmean(*scales) == pytest.approx((m * n) ** -0.25, rel=1e-14)
    assert fan_amean(*scales) == pytest.approx(((m + n) / 2) ** -0.5, rel=1e-14)
    assert smallest(*scales) == max(m, n) ** -0.5


def test_unknown_name_lists_the_legal_ones_and_the_nearest():
    with pytest.raises(ValueError, match=r"'geman'.*nearest: 'gmean'") as error:
        apply_constraint("geman", 1.0, 1.0)
    assert all(repr(name) in str(error.value) for name in CONSTRAINTS)
    with pytest.raises(ValueError, match=r"unknown constraint ''"):
        apply_constraint("", 1.0)


def test_constraint_that_names_a_gradient_needs_it():
    with pytest.raises(ValueError, match=r"'to_left_grad_scale' goes with 2 .* has 1"):
        apply_constraint("to_left_grad_scale", 1.0, 2.0)
    with pytest.raises(ValueError, match=r"'to_grad_input_scale' goes with 1 .* has 3"):
        apply_constraint("to_grad_input_scale", 1.0, 2.0, 3.0, 4.0)
    with pytest.raises(ValueError, match=r"'to_grad_input_scale' goes with 1 .* has 0"):
        apply_constraint("to_grad_input_scale", 1.0)
