"""Norms: torch's function, unit gradients for gains and biases."""

import pytest
import torch
from torch import nn

from unitscale import nn as unn

CASES = [
    (unn.LayerNorm(64), (256, 64)),
    (unn.RMSNorm(64), (256, 64)),
    (unn.GroupNorm(4, 64), (32, 64, 16)),
    (unn.BatchNorm1d(64), (256, 64)),
    (unn.BatchNorm2d(64), (16, 64, 8, 8)),
]


@pytest.mark.parametrize(("module", "shape"), CASES, ids=lambda c: type(c).__name__)
def test_norm_is_torchs_with_unit_gradients(module: nn.Module, shape: tuple) -> None:
    torchs = getattr(nn, type(module).__name__)
    x = torch.randn(shape, requires_grad=True)
    y = module(x)
    torch.testing.assert_close(y, torchs.forward(module, x))
    y.backward(torch.randn_like(y))
    for tensor in (y, x.grad, module.weight.grad):  # 64 gains: 3.4 standard errors
        assert 0.7 < tensor.square().mean().sqrt() < 1.3


@pytest.mark.parametrize("momentum", [0.1, None])
@pytest.mark.parametrize("track", [True, False])
def test_batch_norm_keeps_torchs_statistics(momentum: float | None, track: bool) -> None:
    options = {"momentum": momentum, "track_running_stats": track}
    ours, torchs = unn.BatchNorm1d(4, **options), nn.BatchNorm1d(4, **options)
    for _ in range(3):
        x = 3 * torch.randn(16, 4) + 1
        torch.testing.assert_close(ours(x), torchs(x))
    assert ours.state_dict().keys() == torchs.state_dict().keys()
    for name, value in torchs.state_dict().items():
        torch.testing.assert_close(ours.state_dict()[name], value)
    ours.eval(), torchs.eval()
    torch.testing.assert_close(ours(x), torchs(x))


def test_batch_norm_refuses_a_wrong_shape() -> None:
    with pytest.raises(ValueError, match="expected 4D input"):
        unn.BatchNorm2d(4)(torch.randn(2, 4))


def test_norm_without_gain() -> None:
    x = torch.randn(4, 8)
    torch.testing.assert_close(
        unn.LayerNorm(8, elementwise_affine=False)(x), nn.LayerNorm(8, elementwise_affine=False)(x)
    )
