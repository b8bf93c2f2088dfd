"""The rewritten graph through torch's own compiler, and what it is given."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from units.training import Trace, named, train
from unitscale.units import unit_scale


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(8, 16), nn.Linear(16, 8)

    def forward(self, x: Tensor) -> Tensor:
        return (x + self.down(F.gelu(self.up(x) * 20))).square().mean() * 1e-4


def run(recipe: str, inner: Any) -> tuple[Trace, nn.Module]:
    """Two measuring steps and two of the compiled graph, which must not compile again."""
    torch.manual_seed(0)
    model = unit_scale(Model(), recipe, inner=inner, remeasure=[0, 2])
    generator = torch.Generator().manual_seed(0)
    batches = [(torch.randn(4, 8, generator=generator) * scale,) for scale in (1, 2, 4, 8)]
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


@pytest.mark.parametrize("recipe", ["fp32-units", "fp8"])
def test_a_compiler_reads_each_factor_once_and_one_by_one(recipe):
    """Whatever it does with each result of `unbind`, for each of them, takes the square of time."""
    graphs: list[fx.Graph] = []

    def inner(module: fx.GraphModule, inputs: Any) -> Any:
        graphs.append(module.graph)
        return module.forward

    got, _ = run(recipe, inner)
    torch._dynamo.reset()
    want, _ = run(recipe, "eager")
    torch.testing.assert_close(got.losses, want.losses, rtol=0, atol=0)
    for a, b in zip(got.gradients, want.gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)
    for graph in graphs:
        vector = next(iter(graph.nodes))
        assert {node.target for node in vector.users} == {torch.select}
        read = [node.args[2] for node in vector.users]
        assert len(read) == len(set(read)) > 0
    assert graphs
