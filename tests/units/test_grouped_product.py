"""The products of experts are products: linear in both operands, and rounded by a recipe."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from units.training import assert_trains_as_plain, named
from unitscale.units import unit_scale

OFFSETS = torch.tensor([4, 12], dtype=torch.int32)


def draw(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.bfloat16)  # what torch compiles this product for


class Experts(nn.Module):
    """Two experts; the first takes 4 rows and the second 8."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Parameter(draw(2, 16, 32) * 0.02)
        self.down = nn.Parameter(draw(2, 32, 16) * 0.02)

    def forward(self, x: Tensor) -> Tensor:
        hidden = F.grouped_mm(x * 20, self.up, offs=OFFSETS)
        return F.grouped_mm(F.silu(hidden), self.down, offs=OFFSETS).square().mean()


def test_experts_train_as_in_the_plain_model() -> None:
    model = assert_trains_as_plain(Experts, (draw(12, 16),), least_units=4)
    assert 0.5 <= named(model)["_grouped_mm"].rms / named(model)["_grouped_mm"].s <= 2


def test_operands_of_experts_are_rounded() -> None:
    torch.manual_seed(0)
    model, x = Experts(), draw(12, 16)
    exact = model(x)
    unit_scale(model, "fp8", inner="eager", remeasure=[0])
    model(x).backward()
    rounded = model(x)
    assert 1e-4 < abs(rounded / exact - 1) < 0.1
