"""Rows say which tensors a matrix product takes, so that a report counts what is rounded."""

import pytest
import torch
from torch import Tensor, nn

from unitscale import units
from unitscale.record import record

# These plain models take a recipe of units as one written unit-scaled would: cast as it is.
pytestmark = pytest.mark.filterwarnings("ignore:.*rounds tensors at their units")


class Gated(nn.Module):
    """Two linear layers, with a norm and a gate between them that no product takes."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(4), nn.Linear(4, 8), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        gate, value = self.up(self.norm(x)).chunk(2, -1)
        return self.down((torch.sigmoid(gate) * value).flatten(1)).sum()


def taken(model: nn.Module) -> set[str]:
    with record(model, every=1) as recorder:
        for _ in range(3):
            model(torch.randn(5, 4, requires_grad=True)).backward()
    step = recorder.rows[-1]["step"]
    rows = [row for row in recorder.rows if row["step"] == step and row["operand"]]
    return {f"{row['name']} {row['direction']}" for row in rows}


EXPECTED = {
    *("norm.layer_norm value", "up.weight value", "up.linear gradient"),
    *("mul value", "down.weight value", "down.linear gradient"),
}


def test_products_take_their_operands_and_nothing_else() -> None:
    assert taken(Gated()) == EXPECTED


def test_what_the_recipe_skips_is_no_operand() -> None:
    model = units.apply_recipe(Gated(), "fp8", skip=["down"], inner="eager")
    left = {name for name in EXPECTED if "down" not in name} - {"mul value"}
    assert taken(model) == left
