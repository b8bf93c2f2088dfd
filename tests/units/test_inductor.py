"""The rewritten graph through torch's own compiler, and what it is given."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from units.training import Trace, named, train
from unitscale.formats import E4M3FN
from unitscale.units import unit_scale
from unitscale.units.hold import hold, times


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(8, 16), nn.Linear(16, 8)

    def forward(self, x: Tensor) -> Tensor:
        return (x + self.down(F.gelu(self.up(x) * 20))).square().mean() * 1e-4


def run(
    recipe: str, inner: Any, dtype: torch.dtype = torch.float32, **options: Any
) -> tuple[Trace, nn.Module]:
    """Two measuring steps and two of the compiled graph, which must not compile again."""
    torch.manual_seed(0)
    model = unit_scale(Model().to(dtype), recipe, inner=inner, remeasure=[0, 2], **options)
    generator = torch.Generator().manual_seed(0)
    batches = [(torch.randn(4, 8, generator=generator).to(dtype) * s,) for s in (1, 2, 4, 8)]
    return train(model, batches), model


@pytest.mark.parametrize("recipe", ["fp32-units", "fp8"])
def test_inductor_trains_as_eager(recipe):
    """To float32's rounding: its kernels sum in another order, and 2 of 100 values may round up."""
    got, compiled = run(recipe, "inductor")
    torch._dynamo.reset()
    want, eager = run(recipe, "eager")
    tolerance = {"fp32-units": 1e-5, "fp8": 1e-2}[recipe]
    torch.testing.assert_close(got.losses, want.losses, rtol=tolerance, atol=0)
    for a, b in zip(got.gradients, want.gradients, strict=True):
        for name in a:
            assert (a[name] - b[name]).norm() <= tolerance * b[name].norm(), name
    assert named(compiled).keys() == named(eager).keys()
    assert {n: (r.s, r.phi) for n, r in named(compiled).items()} == {
        n: (r.s, r.phi) for n, r in named(eager).items()
    }


def given_to_a_compiler(recipe: str, **options: Any) -> list[tuple[fx.Graph, list[Any]]]:
    """The graphs that a compiler gets, with its example inputs; equal to eager to the bit."""
    found: list[tuple[fx.Graph, list[Any]]] = []

    def inner(module: fx.GraphModule, inputs: Any) -> Any:
        found.append((module.graph, inputs))
        return module.forward

    got, _ = run(recipe, inner, **options)
    torch._dynamo.reset()
    want, _ = run(recipe, "eager", **options)
    torch.testing.assert_close(got.losses, want.losses, rtol=0, atol=0)
    for a, b in zip(got.gradients, want.gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)
    assert found
    return found


@pytest.mark.parametrize("recipe", ["fp32-units", "fp8"])
def test_each_factor_is_an_input_of_its_own(recipe):
    """An op that reads it is traced and compiled, and an index in a kernel makes it one of a kind.

    In turn the graph reads nothing but inputs, so that two equal layers are equal kernels.
    """
    for graph, inputs in given_to_a_compiler(recipe):
        placeholders = list(graph.find_nodes(op="placeholder"))
        assert len(placeholders) == len(inputs)
        pairs = zip(placeholders, inputs, strict=True)
        factors = {n: x for n, x in pairs if n.name.startswith("factor_")}
        assert factors
        assert all(n.users and x.dim() == 0 for n, x in factors.items())
        assert not placeholders[0].users  # the vector itself


@pytest.mark.parametrize(("recipe", "count"), [("fp32-units", 3), ("fp8", 8)])
def test_products_alone_see_units_in_a_compiled_graph(recipe, count):
    """A product's operands, its bias and its result: of `down` without its weight, of both with.

    Where nothing is rounded, a weight and the input of the graph are taken as they are.
    """
    for graph, _ in given_to_a_compiler(recipe):
        scaling = [n for n in graph.nodes if n.target in (hold, times)]
        assert len(scaling) == count, scaling


@pytest.mark.parametrize(
    ("recipe", "options"),
    [
        ("fp32-units", {"dtype": torch.float16}),
        ("fp8", {"saved": E4M3FN}),
        ("fp8", {"activations": E4M3FN}),
    ],
    ids=str,
)
def test_every_tensor_has_its_unit_where_something_depends_on_it(recipe, options):
    """In float16, whose range is narrow, and where others than products round."""
    for graph, _ in given_to_a_compiler(recipe, **options):
        assert sum(n.target in (hold, times) for n in graph.nodes) > 8
