"""Convolutions: the same function as torch's with the factor applied, in every padding mode."""

import itertools

import pytest
import torch
from torch import nn

from unitscale import nn as unn


@pytest.mark.parametrize(
    ("mode", "padding"),
    [
        *itertools.product(["circular", "reflect", "replicate", "zeros"], [0, 1, 2, "same"]),
        ("circular", "valid"),
    ],
)
@pytest.mark.parametrize("dilation", [1, 2])
@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
def test_conv1d_pads_once(mode: str, padding: int | str, dilation: int) -> None:
    options = {"padding": padding, "padding_mode": mode, "dilation": dilation, "bias": False}
    ours, torchs = unn.Conv1d(4, 6, 4, **options), nn.Conv1d(4, 6, 4, **options)
    torchs.load_state_dict(ours.state_dict())
    x = torch.randn(2, 4, 32)
    torch.testing.assert_close(ours(x), torchs(x) / 4, rtol=1e-5, atol=1e-5)  # fan_in 4 * 4


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
@pytest.mark.parametrize("padding", [(1, 2), "same"])
def test_conv2d_pads_each_axis_by_its_own(padding: tuple | str) -> None:
    options = {"padding": padding, "padding_mode": "circular", "bias": False}
    ours, torchs = unn.Conv2d(4, 6, (2, 3), **options), nn.Conv2d(4, 6, (2, 3), **options)
    torchs.load_state_dict(ours.state_dict())
    x = torch.randn(2, 4, 7, 8)
    torch.testing.assert_close(ours(x), torchs(x) / 24**0.5, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("module", "shape"),
    [
        (unn.Conv1d(32, 32, 7, padding=3, padding_mode="circular", groups=4), (16, 32, 128)),
        (unn.Conv2d(32, 32, 3, padding=1, padding_mode="circular"), (4, 32, 16, 16)),
        (unn.Conv3d(16, 16, 3, padding=1, padding_mode="circular"), (2, 16, 8, 8, 8)),
    ],
    ids=["1d", "2d", "3d"],
)
def test_circular_convolution_has_unit_output_and_gradients(
    module: nn.Module, shape: tuple
) -> None:
    x = torch.randn(shape, requires_grad=True)
    y = module(x)
    y.backward(torch.randn_like(y))
    for tensor in (y, x.grad, module.weight.grad):
        assert 0.9 < tensor.square().mean().sqrt() < 1.1
