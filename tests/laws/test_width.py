import pytest

from unitscale.laws.width import kind_of, width_of

KNOWN = {
    "fp32": (32, "fp32"),
    "bf16": (16, "bf16"),
    "fp16": (16, "fp16"),
    "fp8": (8, "fp8"),
    "fp8-rowwise-hp": (8, "fp8"),
    "mxfp8": (8, "fp8"),
    "mxfp6": (6, "fp6"),
    "mxfp4": (4, "fp4"),
    "nvfp4-units": (4, "fp4"),
    "mine.py:A": (None, None),
}


@pytest.mark.parametrize("recipe", KNOWN)
def test_bits_and_kind_are_those_of_the_operands(recipe):
    assert (width_of(recipe), kind_of(recipe)) == KNOWN[recipe]
