"""Dropout: unit scale in training, the same mean and nothing dropped in evaluation."""

import torch

from unitscale import nn as unn


def test_training_output_has_unit_scale() -> None:
    y = unn.Dropout(0.3)(torch.randn(2**16))
    assert 0.28 < (y == 0).float().mean() < 0.32
    assert 0.97 < y.square().mean().sqrt() < 1.03


def test_evaluation_drops_nothing_and_keeps_the_factor() -> None:
    x = torch.randn(64)
    torch.testing.assert_close(unn.Dropout(0.3).eval()(x), x * 0.7**0.5)
