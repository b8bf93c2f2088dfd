"""A recipe as data."""

from dataclasses import FrozenInstanceError

import pytest

from unitscale.formats import E4M3FN, E5M2, FP16
from unitscale.recipes import Recipe, parse


def test_recipe_is_frozen_and_takes_keywords_only():
    recipe = Recipe(name="mine")
    with pytest.raises(FrozenInstanceError):
        recipe.name = "yours"
    with pytest.raises(TypeError, match="positional"):
        Recipe("mine")


@pytest.mark.parametrize(
    ("source", "loss_scale"), [("none", 2.0), ("unit", "dynamic"), ("current", 1.0), ("loss", None)]
)
def test_loss_scale_goes_with_its_source_and_with_no_other(source, loss_scale):
    with pytest.raises(ValueError, match=r"a loss scale goes with source='loss'") as error:
        Recipe(name="mine", source=source, loss_scale=loss_scale)
    assert f"source is {source!r} and loss_scale is {loss_scale!r}" in str(error.value)


def test_unknown_executor_is_refused_with_those_there_are():
    with pytest.raises(ValueError, match="executor is 'fp32'; expected one of auto, emulated"):
        Recipe(name="mine", executor="fp32")


@pytest.mark.parametrize(
    ("changes", "rounds"),
    [
        ({}, False),
        ({"forward": E4M3FN}, True),
        ({"backward": E5M2}, True),
        ({"result": FP16}, True),
        ({"activations": FP16}, False),
        ({"source": "unit"}, False),
    ],
)
def test_recipe_rounds_if_it_changes_a_product(changes, rounds):
    assert Recipe(name="mine", **changes).rounds == rounds


@pytest.mark.parametrize(
    ("name", "rows"),
    [
        (
            "fp32",
            [
                ("output", "as is", "as is", "as is"),
                ("grad_input", "as is", "as is", "as is"),
                ("grad_weight", "as is", "as is", "as is"),
            ],
        ),
        (
            "fp16",
            [
                ("output", "FP16", "FP16", "FP16"),
                ("grad_input", "FP16", "FP16", "FP16"),
                ("grad_weight", "FP16", "FP16", "FP16"),
            ],
        ),
        (
            "fp8",
            [
                ("output", "E4M3FN", "E4M3FN", "as is"),
                ("grad_input", "E5M2", "E4M3FN", "as is"),
                ("grad_weight", "E5M2", "E4M3FN", "as is"),
            ],
        ),
    ],
)
def test_products_are_three_rows_of_left_right_and_result(name, rows):
    assert parse(name).products() == rows
