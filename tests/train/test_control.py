"""A comparison has the run that says which part of a difference is the format."""

import pytest

from unitscale.train import TrainConfig
from unitscale.train.planned import with_control


@pytest.mark.parametrize(
    ("recipes", "expected"),
    [
        (["fp32", "fp8"], ["fp32", "fp32-units", "fp8"]),
        (["fp8", "fp32", "fp16"], ["fp8", "fp32", "fp32-units", "fp16"]),
        (["fp32", "fp8-none"], ["fp32", "fp8-none"]),
        (["fp8"], ["fp8"]),
        (["fp32", "fp8", "fp32-units"], ["fp32", "fp8", "fp32-units"]),
        (["fp32"], ["fp32"]),
    ],
)
def test_control_is_added_where_two_things_differ(recipes, expected):
    assert with_control(TrainConfig(recipe="fp32"), recipes) == expected


def test_existing_model_is_its_own_control():
    base = TrainConfig(recipe="fp32", existing="llama")
    assert with_control(base, ["fp32", "fp8"]) == ["fp32", "fp8"]
