"""Pooling: torch's function times a constant, at unit scale."""

import pickle

import pytest
import torch
from torch import nn

from unitscale import nn as unn

CASES = [
    (unn.AvgPool1d(2), (64, 8, 64)),
    (unn.AvgPool2d((2, 3), 2, (1, 0), ceil_mode=True, count_include_pad=False), (16, 8, 30, 31)),
    (unn.AvgPool3d(2), (8, 8, 8, 8, 8)),
    (unn.MaxPool1d(3, 2, 1), (64, 8, 64)),
    (unn.MaxPool2d(2, dilation=2, ceil_mode=True), (16, 8, 30, 31)),
    (unn.MaxPool3d(2), (8, 8, 16, 16, 16)),
    (unn.AdaptiveAvgPool1d(8), (64, 8, 64)),
    (unn.AdaptiveAvgPool2d((4, None)), (16, 8, 32, 32)),
    (unn.AdaptiveAvgPool3d(4), (16, 8, 8, 8, 8)),
]


@pytest.mark.parametrize(("module", "shape"), CASES, ids=lambda c: type(c).__name__)
def test_pooling_is_torchs_times_a_constant_and_has_unit_std(
    module: nn.Module, shape: tuple
) -> None:
    x = torch.randn(shape)
    y = module(x)
    plain = getattr(nn, type(module).__name__).forward(module, x)
    torch.testing.assert_close(y, plain * (y.norm() / plain.norm()))
    assert 0.9 < y.std() < 1.15  # a padded average has fewer terms at the border
    torch.testing.assert_close(pickle.loads(pickle.dumps(module))(x), y, rtol=0, atol=0)


def test_indices_and_divisors_are_refused() -> None:
    with pytest.raises(ValueError, match="MaxPool2d: return_indices=True is not supported"):
        unn.MaxPool2d(2, return_indices=True)
    with pytest.raises(ValueError, match="AvgPool2d: divisor_override=3 is not supported"):
        unn.AvgPool2d(2, divisor_override=3)
