"""Recipes on whole models: what is rounded, where, at which scale, and what it costs in memory."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

import unitscale.functional as U
from gemm.edges import assert_on_grid, saved_bytes
from unitscale import nn as unn
from unitscale.formats import E4M3FN, FP16, round_to
from unitscale.gemm import rounded
from unitscale.units import apply_recipe, measure, rows, unit_scale

# These plain models take a recipe of units as one written unit-scaled would: cast as it is.
pytestmark = pytest.mark.filterwarnings("ignore:.*rounds tensors at their units")


class Products(nn.Module):
    """Every kind of product; activations around 1e-4 and gradients around 1e-9."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.conv = nn.Linear(8, 8), nn.Conv1d(4, 4, 1)
        self.matrix, self.core = (nn.Parameter(torch.randn(8, 8) * 1e-3) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(self.linear(x))
        heads = x.view(-1, 4, 2, 4).transpose(1, 2)
        attended = F.scaled_dot_product_attention(heads * 3, heads, heads * 0.01)
        x = attended.transpose(1, 2).flatten(2)
        x = torch.einsum("bti,ij->btj", x, self.core) + x
        x = torch.bmm(x @ x.mT, x) * 1e3 + x @ self.matrix
        return torch.addmm(self.linear.bias, x.flatten(0, 1), self.matrix).square().mean() * 1e-6


def x() -> Tensor:
    return torch.randn(5, 4, 8, generator=torch.Generator().manual_seed(0))


def test_every_held_tensor_is_on_the_grid_of_the_activations_format():
    """And its gradient: each passes a rounding of its own in both directions."""
    forward: list[Tensor] = []
    backward: list[Tensor] = []

    def inner(module: fx.GraphModule, inputs: list[Any]) -> Callable[..., Any]:
        class Recorder(fx.Interpreter):
            def run_node(self, n: fx.Node) -> Any:
                value = super().run_node(n)
                if n.target is rounded:
                    forward.append(value.detach())
                    argument = self.env[n.args[0]]
                    if argument.requires_grad:
                        argument.register_hook(lambda grad: backward.append(grad))
                return value

        return Recorder(module).run

    model = unit_scale(Products(), "fp32-units", inner=inner, remeasure="once", activations=FP16)
    for _ in range(2):
        model(x()).backward()
    held = [row for row in rows(model) if row.reason is None and row.rms is not None]
    assert len(held) > 15
    assert len(forward) >= len(held)
    assert len(backward) > 15
    for value in (*forward, *backward):
        if value.count_nonzero():
            assert_on_grid(value, "FP16")


def test_activations_in_fp16_are_safe_with_units_and_not_without():
    """Gradients are below 1e-9: FP16 without units flushes all of them to zero."""
    losses, norms = {}, {}
    for name, format_ in (("fp32-units", None), ("fp16", FP16), ("fp16-none", FP16)):
        torch.manual_seed(0)
        model = Products()
        if name == "fp16-none":
            apply_recipe(model, name, inner="eager")
        else:
            unit_scale(model, name, inner="eager", remeasure="once", activations=format_)
        for _ in range(2):
            model.zero_grad()
            loss = model(x())
            loss.backward()
        losses[name], norms[name] = loss.item(), model.linear.weight.grad.norm().item()
    assert losses["fp16"] == pytest.approx(losses["fp32-units"], rel=0.02)
    assert norms["fp16"] == pytest.approx(norms["fp32-units"], rel=0.02)
    assert norms["fp16-none"] == 0.0


RECIPES = {
    "fp8": (0.1, 0.7),
    "fp8-e4m3": (0.03, 0.3),
    "fp16": (5e-4, 0.005),
    "bf16-units": (4e-3, 0.04),
}


def gradient_error(recipe: str, scaler: Callable[..., nn.Module]) -> float:
    """Relative error of all gradients against float64, after the measuring step."""
    torch.manual_seed(0)
    model, exact = Products(), Products().double()
    exact.load_state_dict(model.state_dict())
    exact(x().double()).backward()
    scaler(model, recipe, inner="eager", remeasure="once" if scaler is unit_scale else "never")
    for _ in range(2):
        model.zero_grad()
        model(x()).backward()
    errors = [
        (p.grad - q.grad).norm() / q.grad.norm()
        for p, q in zip(model.parameters(), exact.parameters(), strict=True)
    ]
    return max(errors).item()


@pytest.mark.parametrize("recipe", RECIPES)
def test_gradients_through_eight_products_are_good_at_units(recipe):
    low, high = RECIPES[recipe]
    assert low < gradient_error(recipe, unit_scale) < high


@pytest.mark.parametrize("recipe", ["fp8-none", "fp16-none"])
def test_gradients_are_lost_without_units(recipe):
    """Every gradient of some parameter is flushed to zero: an error of 1."""
    assert gradient_error(recipe, apply_recipe) > 0.9


def test_current_scaling_is_as_good_as_units_at_a_badly_scaled_model():
    assert 0.005 < gradient_error("fp8-current", apply_recipe) < 0.3


class Linears(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(16, 64), nn.Linear(64, 16)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x)).square().mean()


def test_apply_recipe_casts_operands_as_they_are():
    """For a model written unit-scaled: no factor, no amax."""
    model = Linears()
    x = torch.randn(8, 16)
    with torch.no_grad():
        q = lambda t: round_to(t, E4M3FN)
        hidden = F.linear(q(x), q(model.first.weight), model.first.bias)
        output = F.linear(q(hidden), q(model.second.weight), model.second.bias)
        assert torch.equal(apply_recipe(model, "fp8", inner="eager")(x), output.square().mean())


class WrittenUnitScaled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = unn.Linear(16, 64), unn.Linear(64, 16)

    def forward(self, x: Tensor) -> Tensor:
        return U.mse_loss(self.second(U.gelu(self.first(x))), x)


def test_model_written_unit_scaled_is_cast_as_it_is_and_stays_in_range():
    """The products see the unit-scaled tensors: hardly a value is lost, without any unit."""
    model, x = WrittenUnitScaled(), torch.randn(64, 16)
    q = lambda t: round_to(t, E4M3FN)
    with torch.no_grad():
        hidden = U.gelu(U.linear(q(x), q(model.first.weight), model.first.bias))
        output = U.linear(q(hidden), q(model.second.weight), model.second.bias)
        wanted = U.mse_loss(output, x)
    apply_recipe(model, "fp8", inner="eager")
    assert torch.equal(model(x), wanted)
    products = [row for row in measure(model, x) if row.saturated is not None]
    assert len(products) >= 4
    assert all((row.s, row.phi) == (1.0, 1.0) for row in products)
    assert all(row.saturated == 0.0 and row.flushed < 0.01 for row in products)


def test_apply_recipe_leaves_a_recipe_that_rounds_nothing_alone():
    model, x = Linears(), torch.randn(8, 16)
    wanted = model(x)
    assert torch.equal(apply_recipe(model, "fp32", inner="eager")(x), wanted)


@pytest.mark.filterwarnings("ignore:.*went to zero")  # of what apply_recipe casts as it is
@pytest.mark.filterwarnings("ignore:fp8-e4m3. of the .* of 'first.linear'")
@pytest.mark.parametrize("scaler", [unit_scale, apply_recipe])
def test_skipped_products_stay_in_full_precision(scaler):
    x = torch.randn(8, 16)
    losses = {}
    for skip in ((), ("first",), ("second",), ("f*",), ("*d",)):
        torch.manual_seed(0)
        model = Linears()
        exact = model(x)
        scaler(model, "fp8-e4m3", inner="eager", remeasure=[0], skip=skip)
        model(x).backward()
        losses[skip] = (model(x) / exact).item()
    assert (losses[("f*",)], losses[("*d",)]) == (losses[("first",)], losses[("second",)])
    assert len({losses[()], losses[("first",)], losses[("second",)], 1.0}) == 4


@pytest.mark.parametrize(("recipe", "size"), [("fp8", 1), ("fp16", 2)])
def test_operands_are_saved_for_backward_in_the_recipes_bytes(recipe, size):
    """Input, hidden and two weights in the format; the square's input as it is."""
    model, x = Linears(), torch.randn(8, 16, requires_grad=True)
    unit_scale(model, recipe, inner="eager", remeasure="once")
    model(x).backward()
    kept = saved_bytes(lambda: model(x))
    operands = 8 * 16 + 16 * 64 + 8 * 64 + 64 * 16
    assert size * operands <= kept < size * operands + 3000


def test_watched_shares_are_those_of_the_products():
    model = unit_scale(Linears(), "fp8", inner="eager")
    found = {row.name: row for row in measure(model, torch.randn(8, 16))}
    assert found["first.linear"].saturated is not None
    assert found["first.linear"].grad_saturated is not None
    assert found["x"].flushed is not None
    assert found["first.weight"].saturated is not None
    assert found["first.bias"].saturated is None
    assert found["square"].saturated is None


@pytest.mark.parametrize("recipe", ["fp32-units", "fp8"])
def test_weights_are_multiplied_only_where_they_are_rounded(recipe):
    """Without rounding the products take the parameters themselves, and save no copy of them."""
    model, x = Linears(), torch.randn(8, 16, requires_grad=True)
    unit_scale(model, recipe, inner="eager", remeasure="once")
    model(x).backward()
    saved: set[int] = set()
    with torch.autograd.graph.saved_tensors_hooks(
        lambda t: saved.add(t.untyped_storage().data_ptr()) or t, lambda t: t
    ):
        loss = model(x)
    memory = {w.untyped_storage().data_ptr() for w in (model.first.weight, model.second.weight)}
    assert (memory <= saved) == (recipe == "fp32-units")
    loss.backward()
