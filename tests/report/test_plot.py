"""loss.png: smoothing, and curves of every kind drawn without a warning."""

import math
from pathlib import Path

import pytest
from matplotlib import image

from unitscale.recipes import RECIPES
from unitscale.report import Curve, draw_losses
from unitscale.report.plot import legend_label, pick_pens

FALLING = [5.0 - i / 50 for i in range(200)]


def curve(losses: list[float], recipe: str = "fp8", **options: bool) -> Curve:
    """A curve of a unit-scaled run that ended well, unless told otherwise."""
    return Curve(recipe=recipe, losses=losses, **{"diverged": False, "unit_scaled": True} | options)


def test_smoothing_keeps_a_line_and_halves_noise() -> None:
    assert curve(FALLING).smoothed[100] == pytest.approx(FALLING[100])
    noisy = [2.0 + (-1) ** i for i in range(200)]
    assert all(abs(value - 2.0) < 0.3 for value in curve(noisy).smoothed)


def test_smoothing_passes_over_losses_that_are_no_numbers() -> None:
    assert curve([1.0, math.nan, math.inf]).smoothed[0] == 1.0
    assert math.isnan(curve([1.0, math.nan]).smoothed[1])
    assert curve([1.0, math.nan]).end == 1.0
    assert curve([math.nan]).end == math.inf


def test_legend_names_the_diverged() -> None:
    good, bad = curve([2.0, 1.0]), curve([2.0, math.nan], diverged=True)
    assert legend_label("fp8", [good]) == "fp8  1.000"
    assert legend_label("fp8", [bad]) == "fp8  × diverged"  # as the table: no final loss
    assert legend_label("fp8", [good, bad]).endswith("× diverged (1 of 2)")


@pytest.mark.parametrize(
    "curves",
    [
        [curve(FALLING), curve(FALLING, "fp32", unit_scaled=False)],
        [curve(FALLING), curve([5.0, 6.0, 900.0, math.nan], "fp8-none", diverged=True)],
        [curve([math.nan], diverged=True)],
        [curve([5.0])],
        [curve(FALLING), curve(FALLING), curve([5.0, math.nan], diverged=True)],
    ],
    ids=["two", "exploded", "nothing", "one step", "seeds"],
)
def test_every_kind_of_curve_is_drawn(tmp_path: Path, curves: list[Curve]) -> None:
    draw_losses(curves, tmp_path / "loss.png", title="a title")
    height, width, _ = image.imread(tmp_path / "loss.png").shape
    assert (width, height) == (1560, 600)


def test_no_two_recipes_have_one_pen() -> None:
    pens = pick_pens(list(RECIPES))
    assert len({(pen.color, pen.marker) for pen in pens.values()}) == len(RECIPES)
    assert len({pens[name] for name in list(RECIPES)[:11]}) == 11
    assert {pens[name].marker for name in list(RECIPES)[:11]} == {""}  # as before
    assert pens["fp32"].color == "black"
