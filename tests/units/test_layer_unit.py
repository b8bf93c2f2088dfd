"""Units by layer: read from a scaled model, given to one, and shared by those that servers join."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import unitscale as us
from unitscale.recipes import RECIPES, Recipe
from unitscale.units import fused_weights, give_units, layer_units


class Gated(nn.Module):
    """A gated MLP whose two joined weights are 2^-8 apart."""

    def __init__(self) -> None:
        super().__init__()
        self.gate_proj, self.up_proj = nn.Linear(16, 32), nn.Linear(16, 32)
        self.down_proj = nn.Linear(32, 16)
        with torch.no_grad():
            self.gate_proj.weight /= 256

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


def inputs() -> Tensor:
    return torch.randn(4, 16, generator=torch.Generator().manual_seed(0))


def step(model: nn.Module) -> Tensor:
    out: Tensor = model(inputs())
    out.sum().backward()
    return out.detach()


def weights(model: nn.Module) -> dict[str, int | None]:
    return {row.path: row.weight_log2 for row in layer_units(model)}


def test_joined_weights_share_the_largest_unit_from_the_first_call_on() -> None:
    model = us.unit_scale(Gated(), "fp8-serve")
    first = step(model)
    assert weights(model)["gate_proj"] == weights(model)["up_proj"] == -3
    assert torch.equal(step(model), first)  # of a measuring step and of an ordinary one


def test_weights_keep_units_of_their_own_where_nobody_joins_them() -> None:
    model = us.unit_scale(Gated(), "fp8")
    step(model)
    assert (weights(model)["gate_proj"], weights(model)["up_proj"]) == (-11, -3)


def test_a_shared_unit_follows_the_weights_down_too() -> None:
    model = us.unit_scale(Gated(), "fp8-serve")
    step(model)
    with torch.no_grad():
        model.up_proj.weight /= 16
    us.recalibrate(model)
    step(model)
    step(model)
    assert weights(model)["gate_proj"] == weights(model)["up_proj"] == -7


def test_groups_are_of_names_side_by_side() -> None:
    model = nn.ModuleDict({"a": Gated(), "b": Gated(), "up_proj": nn.Linear(2, 2)})
    assert fused_weights(model, RECIPES["fp8-serve"].fused) == (
        frozenset({"a.gate_proj.weight", "a.up_proj.weight"}),
        frozenset({"b.gate_proj.weight", "b.up_proj.weight"}),
    )


def test_a_copy_and_another_recipe_have_the_groups() -> None:
    model = us.unit_scale(Gated(), "fp8")
    step(model)
    us.set_recipe(model, "fp8-serve")
    step(model)
    assert weights(model)["gate_proj"] == weights(model)["up_proj"] == -3
    model = copy.deepcopy(model)
    us.recalibrate(model)
    step(model)
    step(model)
    assert weights(model)["gate_proj"] == weights(model)["up_proj"] == -3


def test_units_that_were_saved_apart_are_joined_when_they_are_loaded(tmp_path: Path) -> None:
    apart = us.unit_scale(Gated(), "fp8")
    step(apart)
    us.save_units(apart, tmp_path / "units.json")
    model = us.unit_scale(Gated(), "fp8-serve", remeasure="never")
    us.load_units(model, tmp_path / "units.json")
    step(model)
    assert weights(model)["gate_proj"] == weights(model)["up_proj"] == -3


def test_rows_name_the_tensors_of_each_layer() -> None:
    model = us.unit_scale(Gated(), "fp8-serve")
    step(model)
    rows = {row.path: row for row in layer_units(model)}
    assert rows.keys() == {"gate_proj", "up_proj", "down_proj"}
    assert rows["gate_proj"].input == rows["up_proj"].input == "x"
    assert rows["down_proj"].weight == "down_proj.weight"
    assert (
        rows["down_proj"].input_log2
        == {row.name: round(torch.tensor(row.s).log2().item()) for row in us.unit_rows(model)}[
            rows["down_proj"].input or ""
        ]
    )
    assert all(row.is_training and row.op == "linear" for row in rows.values())


UNITS = {f"{name}_proj.weight": (-3, 1) for name in ("gate", "up", "down")}


def given(units: dict[str, tuple[int, int]]) -> Any:
    model = us.unit_scale(Gated().eval(), "fp8-serve", remeasure="never")
    give_units(model, units)
    return model


def test_given_units_hold_in_every_graph() -> None:
    model = given(UNITS)
    assert us.summary(model).units == len(UNITS)  # its inputs have no names yet
    step(model)
    assert us.summary(model).units > len(UNITS)
    with torch.no_grad():
        model(inputs()[:1])
    rows = layer_units(model)
    assert {row.is_training for row in rows} == {False, True}
    assert {(row.weight_log2, row.input_log2) for row in rows} == {(-3, 1)}


def test_two_units_of_one_input_are_refused() -> None:
    model = given(UNITS | {"up_proj.weight": (-3, 2)})
    with pytest.raises(ValueError, match=r"'x' is taken at 2\^1 and by the layer of 'up_proj"):
        model(inputs())


def test_units_are_given_to_known_weights_before_the_first_call() -> None:
    with pytest.raises(ValueError, match=r"'sideways\.weight' is no parameter of the model"):
        given({"sideways.weight": (0, 0)})
    model = given(UNITS)
    step(model)
    with pytest.raises(ValueError, match="has run already; scale it anew"):
        give_units(model, UNITS)


def test_what_is_no_layer_is_not_rounded() -> None:
    """A product with a bare parameter, as a router's, and one that the recipe spares by name."""

    class Routed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight, self.inner = nn.Parameter(torch.randn(8, 16)), nn.Linear(16, 16)
            self.mlp = nn.ModuleDict({"gate": nn.Linear(16, 4)})

        def forward(self, x: Tensor) -> Tensor:
            h = self.inner(x)
            return F.linear(h, self.weight).sum() + self.mlp["gate"](h).sum()

    model = us.unit_scale(Routed(), "fp8-serve")
    model(inputs()).backward()
    assert [row.path for row in layer_units(model)] == ["inner"]


@pytest.mark.parametrize("fused", [("gate_proj", "up_proj"), (("alone",),), ((1, 2),)])
def test_groups_of_another_form_are_refused(fused: Any) -> None:
    with pytest.raises(TypeError, match=r"fused is .*; expected a tuple of groups of two or more"):
        Recipe(name="mine", fused=fused)


def test_spare_is_a_tuple_of_patterns() -> None:
    with pytest.raises(TypeError, match="spare is 'lm_head'; expected a tuple of patterns"):
        Recipe(name="mine", spare="lm_head")  # type: ignore[arg-type]
