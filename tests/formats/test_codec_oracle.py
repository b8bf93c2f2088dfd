"""Codecs against an independent implementation in numpy: every format, rule and granularity."""

import math

import numpy as np
import pytest
import torch

from formats.codec_oracle import (
    RULES,
    assert_encodes,
    hard_rows,
    power_of_two,
    reference,
    rows_of_floats,
    rows_of_mx,
    rows_of_nvfp4,
)
from formats.oracle import table
from unitscale.formats import (
    BLOCK_FORMATS,
    E2M1FN,
    E4M3FN,
    E4M3FNUZ,
    E5M2,
    FP16,
    MX_E4M3FN,
    NVFP4,
    Codec,
    PerAxis,
    PerBlock,
    PerTensor,
    PerTile,
)

MX = [fmt for fmt in BLOCK_FORMATS.values() if fmt != NVFP4]
QUICK, MANY = 2_000, 100_000
counts = pytest.mark.parametrize(
    "count", [QUICK, pytest.param(MANY, marks=pytest.mark.slow)], ids=["quick", "many"]
)


@counts
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("fmt", MX, ids=str)
def test_mx_rows(fmt, rule, count):
    codec = Codec(format=fmt, power_of_two=rule)
    x = hard_rows(fmt.size, count, fmt.element)
    data, scale = rows_of_mx(x.numpy(), codec)
    e = codec.grid(x)
    assert_rows(codec, x, e, data, scale)


@counts
@pytest.mark.parametrize("tensor_scale", [None, 2.0**-9, 0.1])
def test_nvfp4_rows(tensor_scale, count):
    codec = Codec(format=NVFP4)
    x = hard_rows(16, count, E2M1FN)
    x = torch.where(x.abs() > 1e6, x * 2.0**-100, x)  # one tensor scale for all
    e = codec.grid(x, tensor_scale=tensor_scale)
    if tensor_scale is None:
        assert e.tensor_scale == x[x.isfinite()].abs().max() / (6 * 448)
    data, scale = rows_of_nvfp4(x.numpy(), codec, e.tensor_scale.item())
    assert_rows(codec, x, e, data, scale)


@counts
@pytest.mark.parametrize("rule", [None, *RULES])
@pytest.mark.parametrize("fmt", [E4M3FN, E5M2, E4M3FNUZ, E2M1FN], ids=str)
def test_rows_of_a_float_format(fmt, rule, count):
    codec = Codec(format=fmt, granularity=PerAxis(), power_of_two=rule)
    x = hard_rows(32, count // 10, fmt)
    data, scale = rows_of_floats(x.numpy(), codec)
    assert_rows(codec, x, codec.grid(x), data, scale)


def assert_rows(codec, x, e, data, scale):
    """Grid, packed and decoded, of rows of one group each."""
    pairs = [(e.data, data), (e.scale[:, 0], scale)]
    outer = np.float32(1.0 if e.tensor_scale is None else e.tensor_scale.item())
    with np.errstate(all="ignore"):
        values = data.astype(np.float32) * (scale.astype(np.float32) * outer)[:, None]
    for encoded in (e, codec.pack(e)):
        pairs.append((codec.decode(encoded), values))
    for got, expected in pairs:
        expected = torch.from_numpy(expected.astype(np.float64))
        got = got.double()
        assert torch.equal(got.isnan(), expected.isnan())
        same = (got == expected) & (got.signbit() == expected.signbit())
        assert (same | got.isnan()).all()


def test_assert_rows_can_fail():
    codec = Codec(format=MX_E4M3FN)
    x = torch.randn(3, 32)
    data, scale = rows_of_mx(x.numpy(), codec)
    data[1, 1] *= 2
    with pytest.raises(AssertionError):
        assert_rows(codec, x, codec.grid(x), data, scale)


# Every granularity, odd and short.

SHAPES = [(1,), (33,), (5, 70), (37, 45), (2, 3, 34), (3, 17, 19)]
GRANULARITIES = [
    PerTensor(),
    PerAxis(),
    PerAxis(0),
    PerBlock(16),
    PerBlock(7, 0),
    PerTile(16, 16),
    PerTile(5, 3),
    PerTile(128, 128),
]


def spread_over(shape):
    """Gaussian values of many magnitudes, with a zero and a subnormal."""
    x = torch.randn(shape) * torch.exp2(torch.randint(-30, 30, shape).float())
    x.view(-1)[0] = 0.0
    x.view(-1)[-1] = 2.0**-140
    return x


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("granularity", GRANULARITIES, ids=repr)
def test_float_formats_by_any_granularity(granularity, shape):
    if isinstance(granularity, PerTile) and len(shape) < 2:
        pytest.skip("has no tiles")
    for rule, fmt, margin in ((None, E4M3FN, 0), ("rceil", E5M2, 3), ("floor", E2M1FN, 1)):
        codec = Codec(format=fmt, granularity=granularity, power_of_two=rule, margin=margin)
        x = spread_over(shape)
        assert_encodes(codec, x, *reference(x.numpy(), codec))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("fmt", BLOCK_FORMATS.values(), ids=str)
def test_block_formats_along_any_axis_and_by_tiles(fmt, shape):
    size = fmt.size
    kinds = [PerTensor(), *(PerBlock(size, axis) for axis in range(-len(shape), len(shape)))]
    kinds += [PerTile(size, size)] if len(shape) > 1 else []
    for kind, margin in zip(kinds, (0, 2, 0, 1, 0, 3, 0, 0), strict=False):
        codec = Codec(format=fmt, granularity=kind, margin=margin)
        x = spread_over(shape)
        outer = codec.grid(x).tensor_scale
        if outer is not None and outer != 2.0**margin:  # which stands for one that is below float32
            assert outer == x.abs().max() / (6 * 448) * 2.0**margin
        assert_encodes(codec, x, *reference(x.numpy(), codec, outer))


@pytest.mark.parametrize("special", [math.nan, math.inf, -math.inf], ids=str)
@pytest.mark.parametrize("rule", [None, "rceil"])
@pytest.mark.parametrize("granularity", GRANULARITIES, ids=repr)
def test_a_special_value_spoils_its_own_group_alone(granularity, rule, special):
    x = torch.randn(37, 45)
    x[20, 17] = special
    for fmt in (E4M3FN, E2M1FN):
        codec = Codec(format=fmt, granularity=granularity, power_of_two=rule)
        assert_encodes(codec, x, *reference(x.numpy(), codec))
        is_nan = codec.round(x).isnan()
        assert is_nan[20, 17]
        assert is_nan.all() == (granularity in (PerTensor(), PerTile(128, 128)))
        without = codec.round(torch.where(x.isfinite(), x, 0))
        assert torch.equal(codec.round(x)[~is_nan], without[~is_nan])


def test_fp16_per_tensor():
    """The largest magnitude is at the largest value; nothing overflows."""
    for rule in (None, *RULES):
        codec = Codec(format=FP16, power_of_two=rule)
        x = torch.randn(500)
        assert_encodes(codec, x, *reference(x.numpy(), codec))
        x = torch.tensor([1.9999, 1e-3])
        assert codec.round(x).isfinite().all()


def test_the_oracle_knows_the_rules():
    """By hand, for E4M3FN: largest exponent 8, largest value 1.75 * 2**8, three mantissa bits."""
    amax = np.array([1.0, 1.75, 1.7500001, 1.9374999, 1.9375, 1.99])
    expected = {
        "floor": [0, 0, 0, 0, 0, 0],
        "rceil": [0, 0, 1, 1, 1, 1],
        "ceil": [0, 1, 1, 1, 1, 1],
        "even": [0, 0, 0, 0, 1, 1],
    }
    for rule, exponents in expected.items():
        assert (power_of_two(amax, E4M3FN, rule) + 8).tolist() == exponents


def test_assert_encodes_can_fail():
    codec = Codec(format=MX_E4M3FN)
    x = torch.randn(2, 40)
    data, scale = reference(x.numpy(), codec)
    assert_encodes(codec, x, data, scale)
    for wrong_data, wrong_scale in ((data * 2, scale), (data, scale * 2)):
        with pytest.raises(AssertionError):
            assert_encodes(codec, x, wrong_data, wrong_scale)
    unrounded = table(x.double().numpy(), E4M3FN, rounding="nearest", saturate=True)
    with pytest.raises(AssertionError):
        assert_encodes(codec, x, unrounded, scale)
