"""Tolerances: 5 standard errors of the smaller of output and gradient, `5 * (2 n)**-0.5`."""

import pytest
import torch
import torch.nn.functional as F

from scaling.measure import assert_unit
from unitscale.scaling.factors import (
    add_factors,
    avg_pool_factors,
    cumsum_factors,
    dropout_factors,
    fixed_sum_factors,
    logsumexp_factors,
    max_pool_factors,
    mean_factors,
    mul_factors,
    reuse_factors,
    slice_factors,
    sum_factors,
    upsample_factors,
    weighted_sum_weights,
)

X = (256, 128)
WEIGHTS = torch.tensor([0.5, -2.0, 3.0])


@pytest.mark.parametrize(
    ("call", "factors", "shape", "rel"),
    [
        (lambda x: x.sum(-1), sum_factors(128), (4096, 128), 0.06),
        (lambda x: x @ WEIGHTS, fixed_sum_factors(WEIGHTS.tolist()), (4096, 3), 0.06),
        (lambda x: x.mean(-1), mean_factors(128), (4096, 128), 0.06),
        (lambda x: x.logsumexp(-1), logsumexp_factors(128), (4096, 128), 0.06),
        (lambda x: x.logsumexp(-1), logsumexp_factors(3), (16384, 3), 0.03),
        (lambda x: x.cumsum(-1), cumsum_factors(64), (4096, 64), 0.06),
        (lambda x: x[:, :32], slice_factors(0.25), X, 0.04),
        (lambda x: F.dropout(x, 0.3), dropout_factors(0.3), X, 0.03),
        (lambda x: F.interpolate(x, scale_factor=2), upsample_factors(4), (8, 16, 8, 8), 0.04),
        (lambda x: F.avg_pool2d(x, 2), avg_pool_factors(4, 4), (8, 16, 16, 16), 0.05),
        (lambda x: F.avg_pool2d(x, 3, 2), avg_pool_factors(9, 4), (16, 16, 33, 33), 0.06),
        (lambda x: F.max_pool2d(x, 2), max_pool_factors(4, 4), (8, 16, 16, 16), 0.05),
        (
            lambda x: F.max_pool2d(x, 3, 1),
            max_pool_factors(9, 32**2 / 30**2),
            (8, 16, 32, 32),
            0.03,
        ),
    ],
)
def test_operation_is_unit(call, factors, shape, rel):
    assert_unit(
        call, (torch.randn(shape),), factors.output_scale, (factors.grad_input_scale,), rel=rel
    )


def test_sums_and_products_of_two_are_unit():
    x, y, row = torch.randn(X), torch.randn(X), torch.randn(1, 128)
    for op, factors in ((torch.add, add_factors), (torch.mul, mul_factors)):
        got = factors()
        grads = (got.grad_left_scale, got.grad_right_scale)
        assert_unit(op, (x, y), got.output_scale, grads, rel=0.03)
        broadcast = factors(right_copies=256)
        assert broadcast.grad_right_scale == 1 / 16
    got = add_factors(right_copies=256)
    # 128 entries of the row: 5 standard errors are .3
    grads = (got.grad_left_scale, got.grad_right_scale)
    assert_unit(torch.add, (x, row), got.output_scale, grads, rel=0.3)


def test_a_tensor_used_three_times_gets_a_unit_gradient():
    got = reuse_factors(3)
    call = lambda x: torch.cat([x, x, x])
    assert_unit(call, (torch.randn(X),), got.output_scale, (got.grad_input_scale,), rel=0.03)


def test_dropout_keeps_its_factor_in_evaluation():
    assert dropout_factors(0.36).output_scale == pytest.approx(0.8)
    assert dropout_factors(0.0).output_scale == 1
    with pytest.raises(ValueError, match=r"p is 1\.5, expected a probability"):
        dropout_factors(1.5)


def test_weights_of_a_sum_are_normalized():
    assert weighted_sum_weights(1, 1) == pytest.approx((0.5**0.5, 0.5**0.5))
    assert weighted_sum_weights(3, -4) == pytest.approx((0.6, -0.8))
    with pytest.raises(ValueError, match=r"weights are \(0, 0\)"):
        weighted_sum_weights(0, 0)
    with pytest.raises(ValueError, match=r"weights are \(\)"):
        weighted_sum_weights()
    with pytest.raises(ValueError, match=r"weights are \[0\.0\]"):
        fixed_sum_factors([0.0])
