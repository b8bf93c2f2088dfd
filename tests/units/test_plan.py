"""Where factors go that could go to several places."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

from unitscale.graph.tensor import tensor_nodes
from unitscale.units import unit_scale
from unitscale.units.assign import Unit
from unitscale.units.hold import hold
from unitscale.units.plan import NodePlan, Symbols, plan_node


def build() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 8))


def products(recipe: str, x: Tensor) -> list[fx.Node]:
    """The linear products of the rewritten graph."""
    found: list[fx.Node] = []

    def keep(module: fx.GraphModule, inputs: Sequence[Any]) -> Callable[..., Any]:
        found.extend(n for n in module.graph.nodes if "linear" in str(n.target))
        return module.forward

    unit_scale(build(), recipe, inner=keep, remeasure=[0])(x).sum().backward()
    return found


@pytest.mark.parametrize(
    ("recipe", "is_folded"), [("fp32-units", True), ("fp8", False), ("fp16", False)]
)
def test_gradient_of_a_weight_has_no_factor_of_its_own_where_nothing_is_rounded(recipe, is_folded):
    """It would be a pass over all weights; a rounded operand must be at its unit, though."""
    found = products(recipe, torch.randn(4, 16))
    assert len(found) == 2
    for product in found:
        weight = product.args[1]
        assert weight.op == ("placeholder" if is_folded else "call_function")
        assert is_folded or weight.target is hold


def test_gradients_are_those_of_the_plain_model():
    x = torch.randn(4, 16)
    plain, model = build(), unit_scale(build(), "fp32-units", inner="eager", remeasure=[0])
    for _ in range(2):  # the first step measures
        plain.zero_grad(), model.zero_grad()
        (1e-3 * plain(x)).sum().backward(), (1e-3 * model(x)).sum().backward()
    for a, b in zip(plain.parameters(), model.parameters(), strict=True):
        assert torch.equal(a.grad, b.grad)


class Layer(nn.Module):
    """One linear layer y = x w + b between two other ops."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(1, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x.sin()).cos().sum()


UNITS = {
    "sin": Unit(-3, 5),
    "layer.weight": Unit(-2, 0),
    "layer.bias": Unit(0, 0),
    "layer.linear": Unit(1, 4),
}


def plan_of_layer(*, is_rounded: bool) -> tuple[NodePlan, dict[str, dict[str, float]]]:
    """The plan of the layer's product under UNITS, and its factors by tensor as numbers."""
    found: list[tuple[NodePlan, dict[str, dict[str, float]]]] = []

    def backend(module: fx.GraphModule, inputs: Sequence[Any]) -> Callable[..., Any]:
        tensors = tensor_nodes(module.graph)
        node = next(n for n in tensors if tensors[n].name == "layer.linear")
        plan = plan_node(node, Symbols(tensors, scale=True), is_rounded=is_rounded)
        numbers = {
            half: {tensors[x].name: 2.0 ** m.log2(UNITS) for x, m in getattr(plan, half).items()}
            for half in ("before", "inside", "backward")
        }
        found.append((plan, numbers))
        return module.forward

    torch.compile(Layer(), backend=backend)(torch.ones(1, 1, requires_grad=True))
    return found[0]


def test_worked_example_has_the_numbers_of_the_docstring():
    plan, numbers = plan_of_layer(is_rounded=True)
    x, w, b = "sin", "layer.weight", "layer.bias"
    assert numbers["before"] == {x: 1, w: 4}
    assert numbers["inside"] == {x: 1, w: 1, b: 32}
    assert numbers["backward"] == {x: 1 / 2, w: 1 / 128, b: 1 / 16}
    after = 2.0 ** plan.after.log2(UNITS)
    assert after == 1 / 64
    # One element goes through: value and gradients are those that the units promise.
    true_x, true_w, true_b, grad = 0.25, 0.5, 1.0, 1 / 16
    held_x, held_w, held_b = true_x * 8, true_w * 4, true_b * 32
    assert held_x * held_w + held_b == 36
    assert (held_x * held_w + held_b) * after == (true_x * true_w + true_b) / 2 == 0.5625
    carried = grad * 16
    assert carried * held_w * numbers["backward"][x] == 32 * (grad * true_w) == 1
    assert carried * held_x * numbers["backward"][w] == grad * true_x == 1 / 64
    assert carried * numbers["backward"][b] == grad


def test_worked_example_without_rounding():
    plan, numbers = plan_of_layer(is_rounded=False)
    x, w, b = "sin", "layer.weight", "layer.bias"
    assert numbers["before"] == {x: 1, w: 1}
    assert numbers["inside"] == {x: 1, w: 1, b: 8}
    assert numbers["backward"] == {x: 2, w: 1 / 128, b: 1 / 16}
    assert 2.0 ** plan.after.log2(UNITS) == 1 / 16


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_model_of_two_bytes_is_at_least_as_near_to_float32(dtype):
    """Gradients below float16's normal range are lost by the plain model, and held by units."""

    def gradient(recipe: str | None, dtype: torch.dtype) -> Tensor:
        torch.manual_seed(0)
        model = nn.Sequential(*(nn.Linear(32, 32) for _ in range(4))).to(dtype)
        if recipe:
            unit_scale(model, recipe, inner="eager", remeasure=[0])
        else:
            model.compile(backend="eager")
        x = torch.randn(64, 32).to(dtype)
        for _ in range(2):  # the first step measures
            model.zero_grad()
            (model(x).float().square().mean() * 2.0**-8).backward()
        torch._dynamo.reset()
        return torch.cat([p.grad.flatten().float() for p in model.parameters()])

    exact = gradient(None, torch.float32)
    plain = (gradient(None, dtype) - exact).norm()
    held = (gradient("fp32-units", dtype) - exact).norm()
    if dtype == torch.bfloat16:
        assert held == plain  # its range is float32's: the same to the bit
    else:
        assert held < 0.5 * plain
