"""Block formats as data, and calls that are refused."""

import pytest
import torch

from unitscale.formats import (
    BLOCK_FORMATS,
    E4M3FN,
    E5M2,
    E8M0FNU,
    FP16,
    MX_E5M2,
    NVFP4,
    BlockFormat,
    dequantize_blocks,
    quantize_blocks,
    round_to_blocks,
)


def test_bits_per_value():
    assert [fmt.bits_per_value for fmt in BLOCK_FORMATS.values()] == [
        8.25,
        8.25,
        6.25,
        6.25,
        4.25,
        4.5,
    ]


@pytest.mark.parametrize(
    ("function", "error", "message"),
    [
        (lambda x: quantize_blocks(x.double(), NVFP4), TypeError, "dtype is torch.float64"),
        (lambda x: quantize_blocks(x, NVFP4, 1), ValueError, "dim is 1; x has 1 dimensions"),
        (lambda x: round_to_blocks(x[0], NVFP4), ValueError, "dim is -1; x has 0 dimensions"),
        (
            lambda x: quantize_blocks(x, NVFP4, -1, "toward_zero"),
            ValueError,
            r"rounding is 'toward_zero'; expected one of \('nearest', 'stochastic'\)",
        ),
        (lambda x: quantize_blocks(x, NVFP4, seed=1), ValueError, "a seed is of no use"),
        (
            lambda x: quantize_blocks(x, MX_E5M2, tensor_scale=1.0),
            ValueError,
            "MX_E5M2 has no tensor_scale",
        ),
        (
            lambda x: quantize_blocks(x, NVFP4, tensor_scale=x[:2]),
            ValueError,
            r"tensor_scale has shape \(2,\); expected one element",
        ),
        (
            lambda x: round_to_blocks(x, NVFP4, out=x[:3]),
            ValueError,
            r"out is torch.float32 \(3,\); expected torch.float32 \(32,\)",
        ),
        (
            lambda x: dequantize_blocks(quantize_blocks(x, NVFP4), torch.float64),
            TypeError,
            "dequantize_blocks: dtype is torch.float64",
        ),
    ],
)
def test_wrong_calls_are_refused(function, error, message):
    with pytest.raises(error, match=message):
        function(torch.randn(32))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"element": FP16}, "element is FP16; expected a signed format with zero, 8 bits"),
        ({"element": E8M0FNU}, "element is E8M0FNU"),
        ({"size": 24}, "size is 24; expected a power of two"),
        ({"scale": E5M2}, "scale is E5M2; expected E8M0FNU or E4M3FN"),
        ({"scale": E4M3FN}, "has_tensor_scale is False"),
    ],
)
def test_impossible_formats_are_refused(changes, message):
    fields = {"name": "X", "element": E4M3FN, "size": 32, "scale": E8M0FNU} | changes
    with pytest.raises(ValueError, match=f"X: {message}"):
        BlockFormat(**fields)
