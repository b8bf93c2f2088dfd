"""Each number of what-if is that of the step which the recipe itself would have made."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unitscale import units
from unitscale.formats import E4M3FN, E5M2, round_to
from unitscale.record import record

RECIPES = [
    *("fp8", "fp8-none", "fp8-e4m3", "fp8-current", "fp8-delayed", "fp8-amax", "fp8-cscale"),
    *("fp8-rowwise", "fp8-rowwise-hp", "fp8-block", "mxfp8", "mxfp4-even", "fp16", "fp8-bf16"),
]
"""All that round to nearest: what is stochastic has no step to be equal to."""


class Product(nn.Module):
    """One product of an input and a parameter, or of two inputs."""

    def __init__(self, multiply: Callable[..., Tensor], *shape: int) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.multiply = multiply
        self.weight = nn.Parameter(torch.randn(shape) * torch.rand(shape).mul(6).exp2())

    def forward(self, x: Tensor) -> Tensor:
        return self.multiply(x, self.weight)


def attention(x: Tensor, w: Tensor) -> Tensor:
    mask = torch.ones(8, 8, dtype=torch.bool).tril()
    query = x.view(2, 3, 8, 16)
    return F.scaled_dot_product_attention(query, w, w * 0.5, attn_mask=mask)


CASES: dict[str, tuple[Callable[..., Tensor], tuple[int, ...], tuple[int, ...]]] = {
    "linear": (F.linear, (40, 72), (56, 72)),
    "linear of three axes": (F.linear, (5, 8, 72), (56, 72)),
    "matmul": (torch.matmul, (40, 72), (72, 56)),
    "addmm": (lambda x, w: torch.addmm(torch.ones(56), x, w), (40, 72), (72, 56)),
    "weight on the left": (lambda x, w: w @ x, (3, 72, 40), (56, 72)),
    "batched": (torch.bmm, (3, 40, 72), (3, 72, 56)),
    "convolution": (lambda x, w: F.conv1d(x, w, torch.ones(8), padding=1), (2, 4, 16), (8, 4, 3)),
    "attention": (attention, (6, 8, 16), (2, 3, 8, 16)),
    "einsum": (lambda x, w: torch.einsum("bij,jk->bik", x, w), (2, 8, 12), (12, 9)),
    "vector": (torch.mv, (24, 12), (12,)),
    "matrix and vector": (torch.matmul, (4, 24, 72), (72,)),
    "vector and matrix": (torch.matmul, (72,), (72, 24)),
    "two vectors": (torch.matmul, (72,), (72,)),
}

AT_UNITS = ("fp8", "fp8-e4m3", "fp16", "fp8-bf16")

ADDED = ("addmm", "convolution")
"""Those with a bias, which what-if leaves out: their outputs differ by it."""


def results(model: Product, x: Tensor, grad: Tensor | None = None) -> list[Tensor]:
    """The output and the gradients of the input and the parameter."""
    x = x.detach().clone().requires_grad_()
    output = model(x)
    output.backward(torch.ones_like(output) if grad is None else grad)
    assert x.grad is not None
    assert model.weight.grad is not None
    return [output.detach(), x.grad, model.weight.grad]


@pytest.mark.filterwarnings("ignore:record. what_if")  # recipes for matrices alone say so
@pytest.mark.filterwarnings("ignore:.*no product in this call matches")
@pytest.mark.parametrize("case", CASES)
def test_errors_are_those_of_the_recipe_itself(case: str) -> None:
    multiply, shape, weight_shape = CASES[case]
    x = torch.randn(shape, generator=torch.Generator().manual_seed(3))
    plain = Product(multiply, *weight_shape)
    draw = torch.Generator().manual_seed(4)
    grad = torch.randn(plain(x).shape, generator=draw)
    exact = results(plain, x, grad)
    model = Product(multiply, *weight_shape)
    with record(model, every=1, what_if=RECIPES) as recorder:
        given = x.clone().requires_grad_()
        model(given).backward(grad)
    (row,) = [row for row in recorder.rows if "what_if" in row]
    compared = 0
    for name in RECIPES:
        predicted = row["recipes"][name]
        scaled = Product(multiply, *weight_shape)
        give = units.unit_scale if name in AT_UNITS else units.apply_recipe
        give(scaled, name, inner="eager")
        real = results(scaled, x, grad)
        errors = [((a - b).norm() / b.norm()).item() for a, b in zip(real, exact, strict=True)]
        if "why" in predicted:
            assert max(errors) < 1e-6  # in full precision both ways
            continue
        compared += 1
        found = predicted["errors"]
        if case == "attention":
            # Key and value are one parameter there: only what is one tensor's can be compared.
            pairs = [(found["output"], errors[0]), (found["grad_query"], errors[1])]
        else:
            pairs = list(zip(found.values(), errors, strict=True))[case in ADDED :]
        for mine, true in pairs:
            # Four digits; the units of a result are measured, and FP32 sums in another order.
            assert mine == pytest.approx(true, rel=2e-3, abs=2e-6), (name, found, errors)
    assert compared >= 7


def test_shares_and_sqnr_are_those_of_the_format() -> None:
    x = torch.randn(64, 32) * torch.linspace(-16, 16, 32).exp2()
    model = Product(F.linear, 16, 32)
    with record(model, every=1, what_if=["fp8-none"]) as recorder:
        model(x.requires_grad_()).backward(torch.full((64, 16), 2.0**-17))
    (row,) = [row for row in recorder.rows if "what_if" in row]
    found = row["recipes"]["fp8-none"]["operands"]
    true = x.detach()
    rounded = round_to(true, E4M3FN)
    sqnr = 20 * (true.norm() / (true - rounded).norm()).log10().item()
    flushed = ((rounded == 0) & (true != 0)).float().mean().item()
    saturated = (true.abs() > 448).float().mean().item()
    assert min(flushed, saturated) > 0.1
    assert found["output.input"] == pytest.approx([sqnr, flushed, saturated], rel=1e-3)
    # Half of E5M2's smallest value: a tie, which goes to zero. All is lost, and the product too.
    assert round_to(torch.tensor(2.0**-17), E5M2) == 0
    assert found["grad_input.grad_output"] == [0.0, 1.0, 0.0]
    assert row["recipes"]["fp8-none"]["errors"]["grad_input"] == 1.0


def test_overflow_is_saturation_without_a_ratio() -> None:
    x = torch.tensor([[1.0, 1e6], [2.0, 3.0]], requires_grad=True)
    model = Product(F.linear, 2, 2)
    with record(model, every=1, what_if=["fp16-none"]) as recorder:
        model(x).sum().backward()
    (row,) = [row for row in recorder.rows if "what_if" in row]
    found: dict[str, Any] = row["recipes"]["fp16-none"]
    assert found["operands"]["output.input"] == [None, 0.0, 0.25]
    assert found["errors"]["output"] is None
