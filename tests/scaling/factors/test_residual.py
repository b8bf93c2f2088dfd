from math import sqrt

import pytest

from unitscale.scaling.factors import (
    fixed_residual,
    ratio_from_fixed,
    ratio_residual,
    running_mean_residual,
    umup_residual,
)


def shares(residuals):
    """Share of the variance that the input and each branch have at the end of the stack."""
    parts = [1.0]
    for residual in residuals:
        parts = [part * residual.skip**2 for part in parts] + [residual.branch**2]
    return parts


@pytest.mark.parametrize(
    "residual",
    [fixed_residual(0.4), running_mean_residual(3), ratio_residual(0.7), umup_residual(1, 4)],
)
def test_squares_sum_to_one(residual):
    assert residual.skip**2 + residual.branch**2 == pytest.approx(1, rel=1e-15)


def test_fixed_and_ratio_are_two_names_for_one_family():
    fixed, ratio = fixed_residual(0.2), ratio_residual(ratio_from_fixed(0.2))
    assert (fixed.skip, fixed.branch) == pytest.approx((sqrt(0.8), sqrt(0.2)))
    assert (ratio.skip, ratio.branch) == pytest.approx((fixed.skip, fixed.branch))
    assert ratio_residual(0.0).skip == 1


def test_running_mean_gives_equal_shares():
    got = shares([running_mean_residual(index) for index in range(1, 8)])
    assert got == pytest.approx([1 / 8] * 8)


@pytest.mark.parametrize("branches", [4, 24])
def test_umup_scheme_divides_the_variance(branches):
    got = shares([umup_residual(index, branches) for index in range(branches)])
    attention, mlp = got[1::2], got[2::2]
    assert got[0] == pytest.approx(1 / 3)
    assert sum(attention) == pytest.approx(1 / 3)
    assert attention == pytest.approx([attention[0]] * len(attention))
    assert mlp == pytest.approx([mlp[0]] * len(mlp))


@pytest.mark.parametrize("branches", [4, 24])
def test_umup_hyperparameters_set_the_ratios(branches):
    options = {"alpha_res": 0.5, "alpha_res_attn_ratio": 2.0}
    got = shares([umup_residual(index, branches, **options) for index in range(branches)])
    attention, mlp = sum(got[1::2]), sum(got[2::2])
    assert (attention + mlp) / 2 / got[0] == pytest.approx(0.5**2)
    assert attention / mlp == pytest.approx(2.0**2)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: fixed_residual(1.5), r"tau is 1\.5, expected a share"),
        (lambda: ratio_from_fixed(1.0), r"tau is 1\.0"),
        (lambda: running_mean_residual(0), "index is 0, expected 1"),
        (lambda: ratio_residual(-1.0), r"tau is -1\.0, expected 0 or more"),
        (lambda: umup_residual(4, 4), "index is 4, expected 0 to 3"),
        (lambda: umup_residual(0, 3), "num_branches is 3, expected an even number"),
    ],
)
def test_arguments_out_of_range_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
