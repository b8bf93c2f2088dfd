"""Executors under a converted model: the same function, and units as scale arguments."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from unitscale import gemm
from unitscale.formats import BF16, E4M3FN, E5M2
from unitscale.recipes import Unit, parse, uniform
from unitscale.units import apply_recipe, rows, unit_scale

# 2026-11-24: torch 2.13's Dynamo instantiates the Function that it traces.
pytestmark = pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")


class Projection(nn.Module):
    """One product of each kind that has an FP8 kernel, each read by the loss alone.

    So no rounding comes after a sum, and two machines differ by the order of sums only.
    """

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(40, 24)
        self.matrix = nn.Parameter(torch.randn(40, 8) / 7)

    def forward(self, x: Tensor) -> Tensor:
        added = torch.addmm(self.linear.bias[:8], x, self.matrix)
        return self.linear(x).mean() + (3 * x @ self.matrix).mean() + added.mean()


def second_step(model: nn.Module, executor: str, *, recipe: str, inner: str) -> list[Tensor]:
    """The loss and all gradients of the step after the one that measures."""
    x = (torch.randn(31, 40, generator=torch.Generator().manual_seed(1)) * 30).requires_grad_()
    unit_scale(model, replace(parse(recipe), executor=executor), inner=inner, remeasure="once")
    for _ in range(2):
        model.zero_grad()
        x.grad = None
        loss = model(x)
        loss.backward()
    torch._dynamo.reset()
    return [loss.detach(), x.grad, *(p.grad for p in model.parameters())]


def compare(executor: str, recipe: str, inner: str, tolerance: float) -> None:
    """Relative error of every result against the emulated one."""
    runs = []
    for name in (executor, "emulated"):
        torch.manual_seed(0)
        runs.append(second_step(Projection(), name, recipe=recipe, inner=inner))
    for got, want in zip(*runs, strict=True):
        assert want.count_nonzero() > 0
        assert (got - want).norm() <= tolerance * want.norm()


# float32 sums of up to 93 terms: 93 * 2^-24 at most, and their cancellation in the mean.
@pytest.mark.parametrize("inner", ["eager", "aot_eager"])
@pytest.mark.parametrize("recipe", ["fp8", "fp8-e4m3"])
def test_fp8_products_with_units_as_scales_are_the_emulated_ones(recipe, inner):
    compare("scaled_mm", recipe, inner, 1e-4)


# BF16 results rounded once or, with a bias, twice: 2^-8 of a value at most, 2^-9 each.
@pytest.mark.parametrize("executor", ["bf16", "scaled_mm"])
def test_bf16_results_are_the_emulated_ones_to_their_rounding(executor):
    compare(executor, "fp8-bf16", "eager", 2.0**-6)


def test_units_are_arguments_of_the_kernel(monkeypatch):
    """Units other than 1 reach `linear` as factors, and nothing is multiplied after it."""
    seen = []
    linear = gemm.product.ScaledProduct.apply

    def watched(x, weight, bias, factors, *others):
        seen.append([None if f is None else f.item() for f in factors])
        return linear(x, weight, bias, factors, *others)

    monkeypatch.setattr(gemm.product.ScaledProduct, "apply", watched)
    model = nn.Sequential(nn.Linear(40, 24))
    x = torch.randn(31, 40) * 30
    x.requires_grad_()
    unit_scale(model, replace(parse("fp8"), executor="scaled_mm"), inner="eager", remeasure="once")
    for _ in range(2):
        model(x).square().mean().backward()
    unit = {row.name: row for row in rows(model)}
    none, factors = seen  # a measuring step learns the factors on gradients in its backward pass
    assert none == [None] * 3
    x, weight, y = unit["input"], unit["0.weight"], unit["0.linear"]
    # The operands are held at x / s and w / s, the gradient of the output at phi * g.
    assert factors == [x.s * weight.s / y.s, weight.s / y.phi, x.s / y.phi]
    assert 1.0 not in factors


def test_executor_that_the_device_lacks_is_refused_before_anything_is_compiled():
    recipe = replace(parse("bf16"), executor="scaled_mm")
    with pytest.raises(
        ValueError, match=r"apply_recipe, recipe 'bf16': executor 'scaled_mm' .*8-bit formats"
    ):
        apply_recipe(nn.Linear(4, 4), recipe)


@pytest.mark.parametrize("scaler", [unit_scale, apply_recipe])
@pytest.mark.parametrize("recipe", ["fp8", "fp8-e4m3"])
def test_executor_that_breaks_the_promise_of_the_recipe_is_refused_there_too(recipe, scaler):
    recipe = replace(parse(recipe), executor="bf16")
    with pytest.raises(ValueError, match=rf"{scaler.__name__}, recipe .*executor 'bf16' .*BF16"):
        scaler(nn.Linear(4, 4), recipe)


def test_recipe_in_place_of_a_name_may_promise_bf16():
    recipe = replace(parse("fp8"), rules=uniform(E4M3FN, E5M2, BF16, Unit()))
    assert replace(recipe, name="fp8-bf16") == parse("fp8-bf16")
