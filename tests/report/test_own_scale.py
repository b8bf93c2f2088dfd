"""Scales that are computed from a tensor: no share of it is drawn or ranked as lost."""

from pathlib import Path
from typing import Any

import pytest

from report.sample import recording_rows
from unitscale.recipes import RECIPES
from unitscale.report import group
from unitscale.report.figure import draw_exponents
from unitscale.report.page import page_data
from unitscale.report.point import labeled
from unitscale.report.recording import Recording


def recording(recipe: str) -> Recording:
    """Of a run under a recipe, whose layers lose their gradients as they are held."""
    texts = {"value": str(RECIPES[recipe].value), "gradient": str(RECIPES[recipe].gradient)}
    rows: list[dict[str, Any]] = [
        row | {"operand": True, "rounded_as": texts[row["direction"]]}
        if row.get("op") == "linear"
        else row | ({"operand": False} if "name" in row else {})
        for row in recording_rows(steps=[0, 50], fault_at=0, layer=2)
    ]
    return group(rows, recipe=recipe)


@pytest.mark.parametrize(("recipe", "is_own"), [("fp8-current", True), ("fp8", False)])
def test_page_has_no_shares_of_what_is_scaled_by_itself(recipe: str, is_own: bool) -> None:
    (data,) = page_data([recording(recipe)], [])["recordings"]
    place = data["tensors"].index(["layers.2.linear", "linear", "gradient"])
    assert data["ownScale"][place] == is_own
    for kind in ("flushed", "saturated", "sqnr"):
        known = [x is not None for x in data["shares"]["E5M2"][kind][place]]
        assert known == [not is_own] * 2
    other = data["tensors"].index(["layers.2.add", "add", "value"])
    assert not data["ownScale"][other]
    assert data["shares"]["E4M3FN"]["flushed"][other] == [0.0, 0.0]


@pytest.mark.parametrize(("recipe", "is_own"), [("fp8-current", True), ("fp8", False)])
def test_figure_says_that_its_limits_hold_after_the_scale(
    recipe: str, is_own: bool, tmp_path: Path
) -> None:
    draw_exponents(recording(recipe), tmp_path / "e.svg")
    text = (tmp_path / "e.svg").read_text()
    assert "limits of E5M2" in text
    assert ("each tensor is scaled into them" in text) == is_own


def test_worst_tensor_is_none_that_is_scaled_by_itself() -> None:
    for recipe, worst in (("fp8", "layers.2.linear (gradient)"), ("fp8-current", None)):
        found = recording(recipe)
        rows = [(series, series.rows[-1]) for series in found.series]
        # Of equal losses the RMS decides: a gradient of 2**-30 is the furthest from 1 in any case.
        (label,) = labeled(rows, found, 1)
        assert label == "layers.2.linear (gradient)"
        healthy = [(s, r | {"rms": 1.0}) for s, r in rows]
        (label,) = labeled(healthy, found, 1)
        assert (label == "layers.2.linear (gradient)") == (worst is not None)
