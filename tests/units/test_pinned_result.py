"""A product whose result keeps its true values takes its gradient at a unit all the same."""

import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import unitscale as us
from units.training import named
from unitscale.graph.capture import MUTATED, REPEATED
from unitscale.graph.tensor import SHARED

SMALL = 1e-7
"""Of the loss: the gradients of the first layer are below 1e-8 then, and E5M2 ends at 2^-17."""


def assigned(y: Tensor) -> Tensor:
    y[:, :4] = 0
    return y


def written_in_part(y: Tensor) -> Tensor:
    y[:, :4].mul_(0.5)
    return y


WAYS = {
    "normalized, and added": (lambda y: F.normalize(y, dim=-1) + y, REPEATED),
    "by itself, and added": (lambda y: torch.einsum("ij,kj->ik", y, y) + y, None),
    "assigned to": (assigned, MUTATED),
    "a square, assigned to": (lambda y: assigned(y @ y), None),
    "written to in part": (written_in_part, MUTATED),
    "in vmap and outside": (lambda y: torch.vmap(lambda r: r * y.mean())(y) + y, SHARED),
    "not pinned": (torch.tanh, None),
}


class Between(nn.Module):
    """Two layers, and something between them."""

    def __init__(self, function) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last, self.function = nn.Linear(16, 16), nn.Linear(16, 16), function

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.function(self.first(x))).square().mean() * SMALL


def gradient(model: nn.Module, x: Tensor) -> Tensor:
    model.zero_grad()
    model(x).backward()
    return model.first.weight.grad.clone()


@pytest.mark.parametrize("inner", ["eager", "aot_eager"])
@pytest.mark.parametrize("recipe", ["fp8", "fp8-e4m3", "fp16"])
@pytest.mark.parametrize("way", WAYS)
def test_its_gradient_is_not_flushed(way, recipe, inner):
    function, why = WAYS[way]
    model = us.unit_scale(Between(function), recipe, inner=inner)
    x = torch.randn(16, 16, generator=torch.Generator().manual_seed(1))
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*went to zero")
        found = [gradient(model, x) for _ in range(4)]
    with us.full_precision(model):
        exact = gradient(model, x)
    for each in found:
        # An operand is off by 2^-3 at most in E5M2, and three roundings make one value: at a phi of
        # 1 all of it is zero, and this is 1.
        assert (each - exact).norm() < 0.25 * exact.norm()
        assert torch.equal(each, found[0])  # a measuring step is a step like the others
    assert not torch.equal(found[0], exact)
    row = named(model)["first.linear"]
    assert row.reason == why
    assert row.s == 1 or why is None
    assert row.phi > 2**20


def test_where_nothing_is_rounded_it_is_pinned_whole():
    model = us.unit_scale(Between(WAYS["assigned to"][0]), "fp32-units", inner="eager")
    gradient(model, torch.randn(16, 16))
    row = named(model)["first.linear"]
    assert (row.s, row.phi, row.reason) == (1, 1, MUTATED)
