"""Code under vmap has tensors that exist in one lane only: they are left alone and reported."""

import pytest
import torch
from torch import Tensor, nn

from units.training import assert_trains_as_plain, named
from unitscale.graph.capture import TRANSFORMED
from unitscale.units.api import session_of


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
