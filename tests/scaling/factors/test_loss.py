"""Gradients are pooled over 2e5 entries or more: 5 standard errors are below .01; cross-entropy at
logits of 0 and L1 are exact."""

import math

import pytest
import torch
import torch.nn.functional as F

from scaling.measure import rms
from unitscale.scaling.factors import (
    bce_with_logits_factors,
    cross_entropy_factors,
    huber_factors,
    kl_div_factors,
    l1_factors,
    mse_factors,
    nll_loss_factors,
    smooth_l1_factors,
    soft_cross_entropy_factors,
)

ROWS, CLASSES = 1024, 256


def assert_unit_gradient(loss, x, factors, rel):
    x = x.detach().requires_grad_()
    (grad,) = torch.autograd.grad(loss(x), x)
    assert factors.output_scale == 1
    assert rms(grad) * factors.grad_input_scale == pytest.approx(1, rel=rel)


def labels(classes=CLASSES):
    return torch.randint(classes, (ROWS,))


@pytest.mark.parametrize("classes", [2, 10, CLASSES])
def test_cross_entropy_at_zero_logits_is_exact(classes):
    got = cross_entropy_factors(classes)
    assert got.grad_input_scale == pytest.approx(classes / math.sqrt(classes - 1))
    loss = lambda x: F.cross_entropy(x, labels(classes), reduction="sum")
    assert_unit_gradient(loss, torch.zeros(ROWS, classes), got, rel=1e-5)


def test_cross_entropy_at_unit_logits():
    loss = lambda x: F.cross_entropy(x, labels(), reduction="sum")
    assert_unit_gradient(loss, torch.randn(ROWS, CLASSES), cross_entropy_factors(CLASSES), rel=0.01)


def test_cross_entropy_mean_is_undone_by_its_divisor():
    got = cross_entropy_factors(CLASSES, divisor=ROWS)
    loss = lambda x: F.cross_entropy(x, labels())
    assert_unit_gradient(loss, torch.zeros(ROWS, CLASSES), got, rel=1e-5)


def test_cross_entropy_with_smoothing_ignored_rows_and_class_weights():
    target = labels()
    target[: ROWS // 4] = -100
    weight = torch.rand(CLASSES) + 0.5
    used = weight[target[ROWS // 4 :]]
    loss = lambda x: F.cross_entropy(x, target, weight, label_smoothing=0.2)
    plain = lambda x: F.cross_entropy(x, target, weight)
    got = cross_entropy_factors(
        CLASSES,
        divisor=used.sum().item(),
        weight_mean_square=used.square().mean().item(),
        valid_fraction=0.75,
    )
    assert_unit_gradient(plain, torch.zeros(ROWS, CLASSES), got, rel=1e-4)
    smooth = cross_entropy_factors(CLASSES, divisor=ROWS, label_smoothing=0.2)
    loss = lambda x: F.cross_entropy(x, labels(), label_smoothing=0.2)
    assert_unit_gradient(loss, torch.zeros(ROWS, CLASSES), smooth, rel=1e-4)


def test_one_class_has_a_finite_factor_and_full_smoothing_none():
    assert cross_entropy_factors(1) == cross_entropy_factors(2)
    with pytest.raises(ValueError, match=r"label_smoothing is 1\.0"):
        cross_entropy_factors(5, label_smoothing=1.0)


def test_soft_targets():
    target = torch.softmax(torch.randn(ROWS, CLASSES), -1)
    loss = lambda x: F.cross_entropy(x, target, reduction="sum")
    got = soft_cross_entropy_factors(CLASSES)
    assert_unit_gradient(loss, torch.zeros(ROWS, CLASSES), got, rel=0.02)
    known = soft_cross_entropy_factors(
        CLASSES, target_square_sum=target.square().sum(-1).mean().item()
    )
    assert_unit_gradient(loss, torch.zeros(ROWS, CLASSES), known, rel=1e-4)
    # Student and teacher both unit: the gradient is the difference of two such softmaxes.
    x = torch.randn(ROWS, CLASSES, requires_grad=True)
    (grad,) = torch.autograd.grad(loss(x), x)
    assert rms(grad) * got.grad_input_scale == pytest.approx(math.sqrt(2), rel=0.03)


def test_divergence_and_likelihood_of_log_probabilities():
    target = torch.softmax(torch.randn(ROWS, CLASSES), -1)
    log_p = torch.log_softmax(torch.randn(ROWS, CLASSES), -1)
    divergence = lambda x: F.kl_div(x, target, reduction="sum")
    assert_unit_gradient(divergence, log_p, kl_div_factors(rms(target)), rel=1e-5)
    likelihood = lambda x: F.nll_loss(x, labels(), reduction="sum")
    assert_unit_gradient(likelihood, log_p, nll_loss_factors(CLASSES), rel=1e-5)


@pytest.mark.parametrize("prior", [0.5, 0.05])
@pytest.mark.parametrize("logit_std", [0.0, 1.0, 3.0])
@pytest.mark.parametrize("pos_weight", [1.0, 4.0])
def test_binary_cross_entropy(prior, logit_std, pos_weight):
    target = (torch.rand(ROWS, CLASSES) < prior).float()
    loss = lambda x: F.binary_cross_entropy_with_logits(
        x, target, pos_weight=torch.tensor(pos_weight), reduction="sum"
    )
    got = bce_with_logits_factors(logit_std=logit_std, pos_weight=pos_weight, prior=prior)
    assert_unit_gradient(loss, logit_std * torch.randn(ROWS, CLASSES), got, rel=0.015)


def test_binary_cross_entropy_constants():
    assert bce_with_logits_factors().grad_input_scale == 2
    assert bce_with_logits_factors(logit_std=1.0).grad_input_scale == pytest.approx(
        1.846229, abs=1e-6
    )


@pytest.mark.parametrize(("delta", "expected"), [(0.5, 2.2164), (1.0, 1.2483), (2.0, 0.8208)])
def test_huber_and_smooth_l1(delta, expected):
    target = torch.randn(ROWS, CLASSES)
    got = huber_factors(delta)
    assert got.grad_input_scale == pytest.approx(expected, abs=1e-4)
    x = torch.randn(ROWS, CLASSES)
    huber = lambda x: F.huber_loss(x, target, reduction="sum", delta=delta)
    assert_unit_gradient(huber, x, got, rel=0.01)
    smooth = lambda x: F.smooth_l1_loss(x, target, reduction="mean", beta=delta)
    assert_unit_gradient(smooth, x, smooth_l1_factors(delta, divisor=ROWS * CLASSES), rel=0.01)
    close = huber_factors(delta, error_std=0.3)
    assert_unit_gradient(huber, target + 0.3 * torch.randn(ROWS, CLASSES), close, rel=0.01)


def test_huber_tends_to_square_and_absolute_error():
    assert 2 * huber_factors(50.0).grad_input_scale ** -1 == pytest.approx(
        mse_factors().grad_input_scale ** -1
    )
    tiny = huber_factors(1e-6).grad_input_scale * 1e-6
    assert tiny == pytest.approx(l1_factors().grad_input_scale, rel=1e-5)
    assert smooth_l1_factors(0.0) == l1_factors()
    with pytest.raises(ValueError, match=r"delta 0\.0 .* must be positive"):
        huber_factors(0.0)


def test_squared_and_absolute_error():
    target = torch.randn(ROWS, CLASSES)
    x = torch.randn(ROWS, CLASSES)
    mse = lambda x: F.mse_loss(x, target, reduction="sum")
    assert mse_factors().grad_input_scale == pytest.approx(8**-0.5)
    assert_unit_gradient(mse, x, mse_factors(), rel=0.01)
    assert_unit_gradient(mse, 0 * x, mse_factors(input_std=0.0), rel=0.01)
    l1 = lambda x: F.l1_loss(x, target)
    assert_unit_gradient(l1, x, l1_factors(divisor=x.numel()), rel=1e-5)
