"""Code under vmap has tensors that exist in one lane only: they are left alone and reported."""

import copy

import pytest
import torch
from torch import Tensor, nn

from units.training import assert_trains_as_plain, named
from unitscale.graph.capture import TRANSFORMED
from unitscale.units import coverage, unit_scale
from unitscale.units.forward import session_of

# 2026-11-28: torch 2.13's Dynamo reads `.grad` of what crosses a graph break.
pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")


def two_in_a_row(x: Tensor, y: Tensor) -> Tensor:
    first = torch.vmap(lambda a, b: a * b + a, in_dims=(0, None))(x, y)
    return torch.vmap(torch.sin)(first) + first


def product(x: Tensor, y: Tensor) -> Tensor:
    return torch.vmap(lambda a: a @ y + a)(x)


def nested(x: Tensor, y: Tensor) -> Tensor:
    return torch.vmap(torch.vmap(lambda a, b: a * b.sum() - a, in_dims=(0, None)))(x, x) * y.sum()


class Mapped(nn.Module):
    def __init__(self, function) -> None:
        super().__init__()
        self.function = function
        self.first, self.second = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x) * 20
        y = self.function(x, self.first.weight * 3)
        return self.second(y + x).square().mean() * 1e-3


@pytest.mark.parametrize("function", [two_in_a_row, product, nested])
def test_a_function_transform_trains_as_in_the_plain_model(function) -> None:
    torch.manual_seed(0)
    model = assert_trains_as_plain(lambda: Mapped(function), (torch.randn(8, 8),), least_units=4)
    rows = named(model).values()
    inner = [row for row in rows if row.reason == TRANSFORMED]
    assert inner
    assert all((row.s, row.phi, row.rms) == (1.0, 1.0, None) for row in inner)


def test_evaluation_after_a_function_transform_does_not_measure_again() -> None:
    torch.manual_seed(0)
    x = torch.randn(8, 8)
    model = assert_trains_as_plain(lambda: Mapped(product), (x,))
    store = session_of(model).store
    with torch.no_grad():
        first = model(x)
        version = store.version
        second = model(x)
    assert torch.equal(first, second)
    assert store.version == version


class Layers(nn.Module):
    """A loop that breaks the graph: each layer has a graph of its own."""

    def __init__(self, *, breaks: bool) -> None:
        super().__init__()
        self.layers, self.breaks = nn.ModuleList(nn.Linear(8, 8) for _ in range(2)), breaks

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            if self.breaks:
                torch._dynamo.graph_break()
            x = layer(x).tanh()
        return x


def mapped(model: nn.Module, x: Tensor) -> Tensor:
    return torch.vmap(model)(x)


def differentiated(model: nn.Module, x: Tensor) -> Tensor:
    parameters = {name: p.detach() for name, p in model.named_parameters()}
    loss = lambda given: torch.func.functional_call(model, given, (x,)).sum()
    return torch.func.grad(loss)(parameters)["layers.0.weight"]


@pytest.mark.parametrize("call", [mapped, differentiated])
@pytest.mark.parametrize("before", [0, 1])
@pytest.mark.parametrize("breaks", [False, True])
def test_a_call_under_a_transform_is_plain_and_says_so_and_leaves_later_ones_rounded(
    breaks, before, call
) -> None:
    torch.manual_seed(0)
    plain, x = Layers(breaks=breaks), torch.randn(6, 8)
    model = unit_scale(copy.deepcopy(plain), "fp8", inner="eager")
    for _ in range(before):
        model(x)
    with pytest.warns(UserWarning, match=r"Layers runs without its.*a function transform") as told:
        got = call(model, x)
    assert len(told) == 1
    assert torch.equal(got, call(plain, x))
    for _ in range(3):
        assert not torch.equal(model(x), plain(x))
    assert coverage(model) == 1.0


def test_a_functional_call_without_a_transform_is_rounded() -> None:
    torch.manual_seed(0)
    plain, x = Layers(breaks=False), torch.randn(6, 8)
    model = unit_scale(copy.deepcopy(plain), "fp8", inner="eager")
    given = {name: p.detach() * 2 for name, p in plain.named_parameters()}
    for _ in range(3):
        got = torch.func.functional_call(model, given, (x,))
        want = torch.func.functional_call(plain, given, (x,))
        assert 2.0**-9 < (got - want).norm() / want.norm() < 0.25
