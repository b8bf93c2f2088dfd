"""How a recording says that the recipe rounds a tensor, and what it is judged in then."""

import pytest
import torch
from torch import nn

import unitscale as us
from unitscale.formats import E4M3FN, E5M2, round_to
from unitscale.recipes import Constant, Gemm, Operand, Recipe, Rule
from unitscale.record import record
from unitscale.report import group, judge


def recorded(recipe: str | Recipe | None, size: float = 1.0):
    """The rows of one step of a small model, by tensor and direction."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 32))
    if recipe is not None:
        us.apply_recipe(model, recipe, inner="eager")
    with record(model) as recorder:
        (model(torch.randn(64, 32) * size).square().mean() / 64).backward()
    return recorder, {(row["name"], row["direction"]): row for row in recorder.rows}


@pytest.mark.parametrize(
    ("recipe", "value", "gradient"),
    [
        ("fp8-current", "E4M3FN current", "E5M2 current"),
        ("mxfp8", "MX_E4M3FN current floor 1x32", "MX_E4M3FN current floor 1x32"),
        ("fp16-none", "FP16 cast", "FP16 cast"),
    ],
)
def test_row_says_how_its_tensor_is_rounded(recipe: str, value: str, gradient: str) -> None:
    recorder, rows = recorded(recipe)
    assert rows["1.relu", "value"]["rounded_as"] == value
    assert rows["0.linear", "gradient"]["rounded_as"] == gradient
    assert "rounded_as" not in rows["1.relu", "gradient"]
    assert not rows["1.relu", "gradient"]["operand"]
    assert "rounded_as" not in rows["0.bias", "value"]
    assert recorder.sink.header["recipe"] == recipe


def test_plain_model_is_rounded_nowhere() -> None:
    recorder, rows = recorded(None)
    assert not any("rounded_as" in row for row in rows.values())
    assert rows["1.relu", "value"]["operand"]
    assert "recipe" not in recorder.sink.header


@pytest.mark.parametrize(
    ("recipe", "formats"),
    [
        (None, {"E4M3FN", "E5M2"}),
        ("fp8-current", {"E4M3FN", "E5M2"}),
        ("mxfp8", {"E4M3FN"}),  # and no E5M2, in which its gradients never are
        ("fp16-none", {"FP16"}),
        ("fp8-amax-fnuz", {"E4M3FNUZ", "E5M2FNUZ"}),
    ],
)
def test_formats_are_those_of_the_recipe(recipe: str | None, formats: set[str]) -> None:
    _, rows = recorded(recipe)
    assert set(rows["1.relu", "value"]["formats"]) == formats


@pytest.mark.parametrize(("log2", "is_lost"), [(0, False), (-3, False), (12, True), (-12, True)])
def test_constant_is_applied_before_anything_is_judged(log2: int, is_lost: bool) -> None:
    operand = Operand(E4M3FN, Constant(log2))
    wide = Operand(E5M2, Constant(-20))
    mine = Recipe(name="mine", rules=(Rule(op="linear", gemm=Gemm.of(operand, wide)),))
    recorder, rows = recorded(mine)
    row = rows["0.weight", "value"]
    assert row["held_log2"] == -log2
    torch.manual_seed(0)
    held = nn.Linear(32, 32).weight.detach() * 2.0**-log2
    flushed = (round_to(held, E4M3FN) == 0).float().mean().item()
    assert row["formats"]["E4M3FN"]["flushed"] == pytest.approx(flushed, abs=1e-6)
    saturated = (held.abs() > E4M3FN.max).float().mean().item()
    assert row["formats"]["E4M3FN"]["saturated"] == pytest.approx(saturated, abs=1e-6)
    losses = judge(group([recorder.sink.header, *recorder.rows])).losses
    assert any(x.series.name == "0.weight" for x in losses) == is_lost


def test_own_what_if_is_the_verdict_of_a_model_that_computes_its_scales() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 32))
    us.apply_recipe(model, "mxfp8", inner="eager")
    with record(model, what_if=["mxfp8"]) as recorder:
        model(torch.randn(64, 32)).square().mean().backward()
    verdict = judge(group([recorder.sink.header, *recorder.rows]))
    assert verdict.sentences[0].startswith("At the scales that mxfp8 computes, ")
    assert "of 2 products" in verdict.sentences[0]
