"""Values to codes and back, every code of every format of 8 bits and fewer."""

import numpy as np
import pytest
import torch

from formats.oracle import CARRIERS, ML_DTYPES, SMALL, assert_same, patterns
from unitscale.formats import (
    E2M1FN,
    E4M3FN,
    E5M2,
    E8M0FNU,
    FORMATS,
    FP16,
    INT8,
    decode,
    encode,
    round_to,
    torch_dtype,
)
from unitscale.formats.dtypes import CARRIERS as CARRIER_FORMATS
from unitscale.formats.dtypes import TORCH_DTYPES

each_small = pytest.mark.parametrize("fmt", SMALL, ids=str)


def all_codes(fmt):
    return torch.arange(1 << fmt.bits).to(torch.uint8)


@pytest.mark.parametrize("dtype", CARRIERS, ids=str)
@each_small
def test_every_code_decodes_to_its_value(fmt, dtype):
    if not fmt.fits_in(CARRIER_FORMATS[dtype]):
        with pytest.raises(ValueError, match=f"{dtype} does not hold every value of {fmt}"):
            decode(all_codes(fmt), fmt, dtype)
        return
    values = decode(all_codes(fmt), fmt, dtype)
    assert values.dtype == dtype
    assert_same(values, np.array(fmt.values()), all_codes(fmt))


@pytest.mark.parametrize("dtype", CARRIERS, ids=str)
@each_small
def test_every_code_survives_the_round_trip(fmt, dtype):
    if not fmt.fits_in(CARRIER_FORMATS[dtype]):
        pytest.skip("the dtype does not hold the format")
    codes = all_codes(fmt)
    values = decode(codes, fmt, dtype)
    again = encode(values, fmt, saturate=False)
    assert again.dtype == torch.uint8
    is_nan = values.isnan()
    assert torch.equal(again[~is_nan], codes[~is_nan])
    assert decode(again, fmt, dtype)[is_nan].isnan().all()


@pytest.mark.parametrize("source", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("fmt", [fmt for fmt in SMALL if fmt.name in ML_DTYPES], ids=str)
def test_every_input_gets_ml_dtypes_code(fmt, source):
    x = patterns(source).float()
    x = x[x.isnan() | (x.abs() <= fmt.max)]
    if fmt == E8M0FNU:  # wrong in ml_dtypes below 1.5 * 2**-127
        x = x[(x > 1.5 * 2.0**-127) | (x <= 0)]
    with np.errstate(all="ignore"):
        expected = x.numpy().astype(ML_DTYPES[fmt.name]).view(np.uint8)
    codes = encode(x, fmt, saturate=False).numpy()
    is_nan = x.isnan().numpy()
    assert np.array_equal(codes[~is_nan], expected[~is_nan])
    if fmt.has_nan:
        assert np.isnan(np.array(fmt.values())[codes[is_nan]]).all()
    else:
        assert (codes[is_nan] == 1 << (fmt.bits - 1)).all()


def test_a_code_of_int8_is_sign_and_magnitude():
    whole = torch.arange(-127, 128)
    codes = encode(whole.float(), INT8).int()
    assert torch.equal(codes & 0x7F, whole.abs())
    assert torch.equal((codes & 0x80) != 0, whole < 0)
    assert encode(torch.tensor([float("nan")]), INT8).item() == 0x80


@each_small
def test_unused_bits_are_zero(fmt):
    assert encode(torch.randn(1000) * 100, fmt).int().max() < 1 << fmt.bits


@each_small
def test_encode_rounds_as_asked(fmt):
    x = torch.randn(1000).abs()
    for options in ({}, {"rounding": "toward_zero"}, {"saturate": False}):
        assert_same(
            decode(encode(x, fmt, **options), fmt),
            round_to(x, fmt, **options).double().numpy(),
            x,
        )
    seeds = [torch.Generator().manual_seed(0) for _ in "12"]
    codes = encode(x, fmt, rounding="stochastic", generator=seeds[0])
    y = round_to(x, fmt, "stochastic", generator=seeds[1])
    assert torch.equal(decode(codes, fmt), y)


@pytest.mark.parametrize("fmt", [E4M3FN, E2M1FN], ids=str)
def test_any_shape_and_stride(fmt):
    x = torch.randn(6, 4)
    codes = encode(x, fmt)
    assert torch.equal(encode(x.t(), fmt), codes.t())
    assert torch.equal(decode(codes.t(), fmt), decode(codes, fmt).t())
    assert encode(x[0, 0], fmt).shape == ()
    assert decode(codes[:0], fmt).shape == (0, 4)


def test_torch_dtype_is_the_one_with_these_values():
    for fmt, dtype in TORCH_DTYPES.items():
        assert torch_dtype(fmt) is dtype
        if fmt.bits == 8:
            assert_same(all_codes(fmt).view(dtype).float(), np.array(fmt.values()), all_codes(fmt))
        else:
            assert fmt.max == torch.finfo(dtype).max
    assert torch_dtype(E2M1FN) is None
    assert torch_dtype(FORMATS["E4M3"]) is None


def test_wide_formats_are_refused():
    with pytest.raises(ValueError, match="encode: FP16 has 16 bits; expected a format of 8"):
        encode(torch.zeros(1), FP16)
    with pytest.raises(ValueError, match="decode: FP16 has 16 bits"):
        decode(torch.zeros(1, dtype=torch.uint8), FP16)


def test_other_dtypes_are_refused():
    with pytest.raises(TypeError, match=r"round_to: dtype is torch.int64"):
        encode(torch.zeros(1, dtype=torch.int64), E5M2)
    with pytest.raises(TypeError, match=r"decode: codes are torch.int32; expected uint8"):
        decode(torch.zeros(1, dtype=torch.int32), E5M2)
    with pytest.raises(TypeError, match=r"decode: dtype is torch.int32; expected float64"):
        decode(torch.zeros(1, dtype=torch.uint8), E5M2, torch.int32)


def test_a_code_that_does_not_exist_is_refused():
    with pytest.raises(IndexError):
        decode(torch.tensor([16], dtype=torch.uint8), E2M1FN)
