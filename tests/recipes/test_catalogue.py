"""The recipes by name."""

import pytest

from unitscale.formats import BF16, E4M3FN, E5M2, FP16
from unitscale.recipes import RECIPES, STATIC_LOSS_SCALE, Recipe, parse

# The names that the command line promises: (forward, backward, result, source, loss scale).
CONTRACT = {
    "fp32": (None, None, None, "none", None),
    "bf16": (BF16, BF16, BF16, "none", None),
    "fp16-none": (FP16, FP16, FP16, "none", None),
    "fp16-loss": (FP16, FP16, FP16, "loss", 2048.0),
    "fp16-loss-dynamic": (FP16, FP16, FP16, "loss", "dynamic"),
    "fp8-none": (E4M3FN, E5M2, None, "none", None),
    "fp8-bf16-none": (E4M3FN, E5M2, BF16, "none", None),
    "fp8-e4m3-none": (E4M3FN, E4M3FN, None, "none", None),
    "fp8-current": (E4M3FN, E5M2, None, "current", None),
    "fp8-e4m3-current": (E4M3FN, E4M3FN, None, "current", None),
    "fp32-units": (None, None, None, "unit", None),
    "bf16-units": (BF16, BF16, BF16, "unit", None),
    "fp16": (FP16, FP16, FP16, "unit", None),
    "fp8": (E4M3FN, E5M2, None, "unit", None),
    "fp8-bf16": (E4M3FN, E5M2, BF16, "unit", None),
    "fp8-e4m3": (E4M3FN, E4M3FN, None, "unit", None),
}


def test_names_are_those_of_the_command_line():
    assert RECIPES.keys() == CONTRACT.keys()


@pytest.mark.parametrize("name", CONTRACT)
def test_recipe_is_what_its_name_says(name):
    recipe = RECIPES[name]
    found = (recipe.forward, recipe.backward, recipe.result, recipe.source, recipe.loss_scale)
    assert found == CONTRACT[name]
    assert recipe.name == name
    assert recipe.activations is None
    assert recipe.skip == ()
    assert recipe.executor == "auto"


def test_loss_scale_is_that_of_the_paper():
    assert STATIC_LOSS_SCALE == 2048.0


@pytest.mark.parametrize("name", CONTRACT)
def test_units_are_held_without_a_suffix_and_with_units(name):
    standard = {"fp32", "bf16"}
    suffixed = name.endswith(("-none", "-loss", "-dynamic", "-current"))
    assert parse(name).unit_scaled == (name not in standard and not suffixed)


def test_parse_gives_a_recipe_back_as_it_is():
    recipe = Recipe(name="mine", forward=FP16)
    assert parse(recipe) is recipe
    assert parse("fp8") is RECIPES["fp8"]


@pytest.mark.parametrize(
    ("wrong", "near"), [("fp8-e4m", "fp8-e4m3"), ("FP8-NONE", None), ("fp-16", "fp16")]
)
def test_parse_refuses_an_unknown_name_and_suggests_the_nearest(wrong, near):
    with pytest.raises(ValueError, match=f"unknown recipe '{wrong}'") as error:
        parse(wrong)
    message = str(error.value)
    assert all(name in message for name in CONTRACT)
    assert message.endswith(f"Did you mean {near!r}?" if near else "fp8-e4m3.")
