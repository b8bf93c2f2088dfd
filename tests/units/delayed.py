"""A layer with delayed scales, for the tests of its steps and of its state."""

import copy

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from unitscale.formats import E4M3FN, E5M2
from unitscale.recipes import Delayed, Recipe, uniform
from unitscale.units import apply_recipe
from unitscale.units.forward import session_of


def recipe(history: int = 16, margin: int = 0, reduce: str = "max") -> Recipe:
    scale = Delayed(history=history, margin=margin, reduce=reduce)
    return Recipe(name="delayed", rules=uniform(E4M3FN, E5M2, scale=scale))


class Layer(nn.Module):
    """One product, whose output the loss multiplies: its gradient is what the test says."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(8, 8, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)


def scaled(how=apply_recipe, inner: str = "eager", **options) -> nn.Module:
    return how(Layer(), recipe(**options), inner=inner)


def drawn(amplitude: float = 1.0, seed: int = 0) -> Tensor:
    return torch.randn(6, 8, generator=torch.Generator().manual_seed(seed)) * amplitude


def step(model: nn.Module, x: Tensor, g: Tensor, how=None) -> list[Tensor]:
    x = x.clone().requires_grad_()
    model.zero_grad()
    y = model(x) if how is None else checkpoint(model, x, use_reentrant=how)
    y.backward(g)
    return [y.detach(), x.grad, model.layer.weight.grad.clone()]


def amaxes(model: nn.Module) -> dict[str, list[float]]:
    session = session_of(model)
    session.terms.collect()
    return copy.deepcopy(session.store.amaxes.state())


def assert_close(got: list[Tensor], want: list[Tensor]) -> None:
    """Equal but for the order of sums of eight products in float32."""
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=8 * 2.0**-23 * b.abs().max().item())
