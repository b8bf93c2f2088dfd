"""Where factors go that could go to several places."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

from unitscale.units import unit_scale
from unitscale.units.hold import hold


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
