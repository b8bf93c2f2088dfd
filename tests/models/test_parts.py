"""The two sets of parts."""

import copy
import pickle

import pytest
import torch
from torch import nn

from unitscale import nn as unn
from unitscale.models.parts import STANDARD, UNIT_SCALED, Ops


@pytest.mark.parametrize("ops", [STANDARD, UNIT_SCALED], ids=lambda ops: ops.name)
def test_ops_are_copied_by_name(ops: Ops) -> None:
    assert copy.deepcopy(ops) is ops
    assert pickle.loads(pickle.dumps(ops)) is ops


def test_standard_layers_start_as_glorots() -> None:
    linear, conv = STANDARD.linear(64, 256), STANDARD.conv1d(64, 128, 7, groups=8)
    for weight, variance in (
        (linear.weight.detach(), 2 / 320),
        (conv.weight.detach(), 2 / (7 * 8 + 7 * 128)),
    ):
        assert weight.var() == pytest.approx(variance, rel=0.1)
        assert weight.abs().max() <= (3 * variance) ** 0.5
    assert (linear.bias == 0).all()
    assert (conv.bias == 0).all()


def test_standard_residuals_have_their_own_gradient() -> None:
    x, body = torch.randn(4, 8, requires_grad=True), nn.Linear(8, 8)
    torch.testing.assert_close(STANDARD.sum_residual(body)(x), x + body(x))
    y = STANDARD.residual(body, unn.Ratio(ratio=2.0))(x)
    torch.testing.assert_close(y, (x + 2 * body(x)) / 5**0.5)
    y.sum().backward()
    expected = (1 + 2 * body.weight.sum(0)) / 5**0.5
    torch.testing.assert_close(x.grad, expected.expand(4, 8))


def test_standard_scaled_is_the_identity() -> None:
    x = torch.randn(3)
    assert STANDARD.scaled(x, 2.0, 3.0) is x
