"""The validity check itself: what it lets pass, and what it must not."""

import pytest
import torch
from torch import Tensor, nn

import unitscale.functional as U
from unitscale import nn as unn
from unitscale.scaling import scaled
from validity import assert_valid_gradients


class Regression(nn.Module):
    """A layer, a residual branch, a read-out and a loss."""

    def __init__(self, branch: nn.Module) -> None:
        super().__init__()
        self.input = unn.Linear(8, 16)
        self.residual = branch
        self.readout = unn.LinearReadout(16, 3)

    def forward(self, x: Tensor, target: Tensor) -> Tensor:
        return U.mse_loss(self.readout(self.residual(self.input(x))), target)


class UnweightedAdd(nn.Module):
    """A residual whose U.add is left free: either operand then has a factor of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.body = unn.Linear(16, 16)

    def forward(self, x: Tensor) -> Tensor:
        return U.add(x, self.body(x), (2.0, 1.0), constraint=None)


class FreeFactor(nn.Module):
    """One branch of two whose gradient is multiplied, its value not."""

    def __init__(self, bwd: float) -> None:
        super().__init__()
        self.bwd = bwd

    def forward(self, x: Tensor) -> Tensor:
        return x + scaled(x.tanh(), 1.0, self.bwd)


def data() -> tuple[Tensor, Tensor]:
    return torch.randn(32, 8, dtype=torch.float64), torch.randn(32, 3, dtype=torch.float64)


def up(expansion: int) -> nn.Module:
    return nn.Sequential(
        unn.Linear(16, 16 * expansion, constraint=None),
        unn.GELU(),
        unn.Linear(16 * expansion, 16),
    )


@pytest.mark.parametrize(
    "branch",
    [
        pytest.param(nn.Identity(), id="chain"),
        pytest.param(unn.Residual(unn.Linear(16, 16)), id="residual"),
        pytest.param(unn.Residual(unn.MLP(16)), id="mirrored pair"),
        pytest.param(up(4), id="free factor in a chain"),
        pytest.param(FreeFactor(1.0), id="a factor of 1"),
    ],
)
def test_valid_model_passes(branch: nn.Module) -> None:
    assert_valid_gradients(Regression(branch).double(), *data())


@pytest.mark.parametrize(
    "branch",
    [
        pytest.param(unn.Residual(up(4)), id="half of a mirrored pair"),
        pytest.param(unn.Residual(unn.GELU(constraint=None)), id="free activation in a branch"),
        pytest.param(UnweightedAdd(), id="free add"),
        pytest.param(FreeFactor(1.5), id="free factor in a branch"),
    ],
)
def test_invalid_model_fails(branch: nn.Module) -> None:
    model = Regression(branch).double()
    with pytest.raises(AssertionError, match=r"input\.weight: cosine to the true gradient is 0\."):
        assert_valid_gradients(model, *data())


def test_reversed_gradient_fails() -> None:
    with pytest.raises(AssertionError, match="cosine to the true gradient is -1"):
        assert_valid_gradients(Regression(Reversed()).double(), *data())


class Reversed(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return scaled(x, 1.0, -1.0)
