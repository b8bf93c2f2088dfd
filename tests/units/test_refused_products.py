"""Products whose tensors are rounded once: which recipes they take, and what they say else."""

import pytest
import torch
from torch import nn

import unitscale as us
from unitscale.formats import E4M3FN, E5M2
from unitscale.recipes import Current, Gemm, Operand, PerAxis, Recipe, Rule

X = Operand(E4M3FN, Current())
BY_CHANCE = Operand(E5M2, Current(), rounding="stochastic")


class Kinds(nn.Module):
    """A convolution, attention, and an op that `gemm` does not compute."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(8, 8, 3, padding=1)
        self.attn = nn.MultiheadAttention(8, 2, batch_first=True)
        self.weight = nn.Parameter(torch.randn(8, 8))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.conv(x.mT).mT
        x = self.attn(x, x, x, need_weights=False)[0]
        return torch.einsum("bsd,de->bse", x, self.weight)


def run(gemm: Gemm) -> nn.Module:
    model = us.apply_recipe(Kinds(), Recipe(name="own", rules=(Rule(gemm=gemm),)))
    model(torch.randn(2, 5, 8)).square().mean().backward()
    return model


def test_gradients_by_chance_are_for_every_kind_of_product():
    model = run(Gemm.of(X, BY_CHANCE))
    assert us.coverage(model) == 1.0
    assert all(p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize(
    ("gemm", "why"),
    [
        (Gemm.of(Operand(E4M3FN, Current(), PerAxis())), "E4M3FN current row needs the axis it"),
        (Gemm((X, X), (X, X), (BY_CHANCE, X)), "one is taken as E4M3FN current and E5M2 current"),
    ],
    ids=["rows", "taken in two ways"],
)
def test_what_is_refused_says_why(gemm, why):
    products = [row.product for row in us.unit_rows(run(gemm)) if row.product]
    reasons = [p.why for p in products if p.why]
    assert len(reasons) == 3
    assert all(why in reason for reason in reasons)
