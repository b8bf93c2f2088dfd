"""Why a tensor of a captured graph keeps the unit (1, 1): the ways a gradient may be summed."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from units.training import assert_trains_as_plain, named
from unitscale.graph.capture import REPEATED
from unitscale.graph.tensor import reorders, repeats, tensor_nodes


class Sharing(nn.Module):
    """A tensor that one op takes, and others too if `shared`."""

    def __init__(self, function, *, shared: bool) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(8, 8), nn.Linear(8, 8)
        self.function, self.shared = function, shared

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x) * 20
        z = self.function(y)
        z = z + y.sin() * y if self.shared else z
        return self.second(z).square().mean() * 1e-3


REPEATING = {
    "normalize": lambda x: F.normalize(x, dim=-1),
    "softsign": F.softsign,
    "tanhshrink": F.tanhshrink,
    # One op of the graph, which hands over its gradients in the order of its own steps.
    "einsum": lambda x: torch.einsum("ij,kj->ik", x, x)[:, :8],
    "inner": lambda x: torch.inner(x, x)[:, :8],
    "three": lambda x: torch.einsum("ij,kj,lj->ik", x, x, x)[:, :8],
    "bilinear": lambda x: F.bilinear(x, x, torch.eye(8).expand(8, 8, 8)),
}
ONCE = {"tanh": torch.tanh, "softmax": lambda x: x.softmax(-1), "gelu": F.gelu, "silu": F.silu}


def pinned(model: nn.Module) -> list[str]:
    return [name for name, row in named(model).items() if row.reason == REPEATED]


@pytest.mark.parametrize("name", REPEATING)
def test_what_an_op_takes_several_times_keeps_one_where_it_is_shared(name) -> None:
    x = (torch.randn(64, 8, generator=torch.Generator().manual_seed(0)),)
    model = assert_trains_as_plain(lambda: Sharing(REPEATING[name], shared=True), x)
    assert pinned(model) == ["mul"]


def test_a_tensor_that_is_not_shared_has_its_unit() -> None:
    x = (torch.randn(64, 8),)
    model = assert_trains_as_plain(lambda: Sharing(F.softsign, shared=False), x, least_units=4)
    assert pinned(model) == []


def test_the_sum_of_two_gradients_keeps_its_strides() -> None:
    x = (torch.randn(64, 8, generator=torch.Generator().manual_seed(0)),)
    model = assert_trains_as_plain(lambda: Sharing(REPEATING["einsum"], shared=False), x)
    assert pinned(model) == ["mul"]


def test_an_op_that_takes_it_once_leaves_its_unit() -> None:
    x = (torch.randn(64, 8),)
    model = assert_trains_as_plain(lambda: Sharing(torch.tanh, shared=True), x, least_units=4)
    assert pinned(model) == []


def graph_of(function) -> fx.Graph:
    found: list[fx.Graph] = []

    def backend(module: fx.GraphModule, inputs):
        tensor_nodes(module.graph)
        found.append(module.graph)
        return module.forward

    x = torch.randn(4, 8, requires_grad=True)
    torch.compile(lambda x: function(x.exp()).sum(), backend=backend)(x)
    return found[0]


@pytest.mark.parametrize("function", ONCE.values(), ids=ONCE)
def test_repeats_is_false_of_an_op_of_one_kernel(function) -> None:
    _, x, node, *_ = graph_of(function).nodes
    assert not repeats(node, x)


@pytest.mark.parametrize(
    "function", [lambda x: x * x, lambda x: torch.cat([x, x])], ids=["mul", "cat"]
)
def test_repeats_does_not_count_what_the_graph_shows(function) -> None:
    """Each time that a call takes a tensor has an edge of its own."""
    _, x, node, *_ = graph_of(function).nodes
    assert node.all_input_nodes == [x]
    assert not repeats(node, x)


def test_repeats_is_true_of_a_composed_op_beside_another() -> None:
    _, x, node, *_ = graph_of(lambda x: F.softsign(x) * x).nodes
    assert repeats(node, x)
    _, x, node, *_ = graph_of(F.softsign).nodes
    assert not repeats(node, x)  # a factor is one over the sum


def test_reorders_is_true_of_gradients_from_several_steps() -> None:
    def found(function) -> bool:
        _, x, node, *_ = graph_of(function).nodes
        return reorders(node, x)

    assert found(lambda x: torch.einsum("ij,kj->ik", x, x) * x.mean())
    assert found(lambda x: torch.einsum("ij,kj,lj->i", x, x, x))
    assert found(lambda x: torch.einsum("ij,kj->ik", x, x))  # one sum, of other strides
    assert not found(lambda x: torch.cat([x, x, x]) * x.mean())  # one step, in order
