"""What a recipe costs beside its losses, as counted."""

import pytest

from unitscale.recipes import RECIPES
from unitscale.train.cost import cost_of, passes_of


@pytest.mark.parametrize(
    ("name", "amax", "casts", "transposes"),
    [
        ("fp32", 0, 0, 0),
        ("bf16", 0, 3, 0),
        # x, w and g once each; w for grad_input, g and x for grad_weight in columns.
        ("fp8", 0, 3, 3),
        ("fp8-current", 3, 3, 3),
        ("fp8-delayed", 0, 3, 3),
        # Every operand is cast from its tensor, along its own contraction.
        ("mxfp8", 0, 6, 0),
        ("fp8-rowwise", 0, 6, 0),
        # The weight's tiles serve both products.
        ("nvfp4", 5, 5, 0),
        ("nvfp4-units", 0, 5, 0),
        ("fp8-block", 0, 5, 0),
    ],
)
def test_passes_are_counted(name, amax, casts, transposes):
    assert passes_of(RECIPES[name].main) == {
        "amax": amax,
        "casts": casts,
        "transposes": transposes,
    }


def test_hardware_is_where_each_product_has_a_kernel():
    hardware = {name: cost_of(recipe)["hardware"] for name, recipe in RECIPES.items()}
    assert hardware["fp32"] == "any"
    assert hardware["bf16"] == "any GPU"
    assert hardware["fp8"] == hardware["fp8-rowwise"] == "CUDA 8.9+, gfx95, gfx12"
    assert hardware["fp8-rowwise-hp"] == "CUDA 8.9+, gfx95, gfx12 | any GPU"
    assert hardware["fp8-amax-fnuz"] == "gfx94"
    assert hardware["mxfp8"] == hardware["nvfp4"] == "CUDA 10.0+"
    assert hardware["mxfp6"] == "emulated"


def test_units_need_no_choice():
    assert cost_of(RECIPES["fp8"])["chosen"] == []
    assert cost_of(RECIPES["fp8-delayed"])["chosen"] == ["history 1024", "reduce max"]
