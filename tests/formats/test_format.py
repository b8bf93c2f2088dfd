"""Formats as data: constants typed from their documents, and every code of every small format."""

import copy
import dataclasses
import functools
import math
import pickle

import numpy as np
import pytest
import torch

from formats.oracle import ML_DTYPES, SMALL, TABULATED, count_differences
from unitscale.formats import (
    BF16,
    E4M3FN,
    E5M2,
    E8M0FNU,
    FORMATS,
    FP16,
    FP32,
    FloatFormat,
    Specials,
)

# name: max, min_normal, min_subnormal, epsilon, Inf, NaN, -0
CONSTANTS = {
    "FP64": (1.7976931348623157e308, 2.0**-1022, 2.0**-1074, 2.0**-52, True, True, True),
    "FP32": (3.4028234663852886e38, 2.0**-126, 2.0**-149, 2.0**-23, True, True, True),
    "TF32": (3.4011621342146535e38, 2.0**-126, 2.0**-136, 2.0**-10, True, True, True),
    "BF16": (3.3895313892515355e38, 2.0**-126, 2.0**-133, 2.0**-7, True, True, True),
    "FP16": (65504, 2.0**-14, 2.0**-24, 2.0**-10, True, True, True),
    "E5M2": (57344, 2.0**-14, 2.0**-16, 2.0**-2, True, True, True),
    "E4M3FN": (448, 2.0**-6, 2.0**-9, 2.0**-3, False, True, True),
    "E4M3": (240, 2.0**-6, 2.0**-9, 2.0**-3, True, True, True),
    "E3M4": (15.5, 2.0**-2, 2.0**-6, 2.0**-4, True, True, True),
    "E5M2FNUZ": (57344, 2.0**-15, 2.0**-17, 2.0**-2, False, True, False),
    "E4M3FNUZ": (240, 2.0**-7, 2.0**-10, 2.0**-3, False, True, False),
    "E4M3B11FNUZ": (30, 2.0**-10, 2.0**-13, 2.0**-3, False, True, False),
    "E3M2FN": (28, 2.0**-2, 2.0**-4, 2.0**-2, False, False, True),
    "E2M3FN": (7.5, 1.0, 2.0**-3, 2.0**-3, False, False, True),
    "E2M1FN": (6, 1.0, 0.5, 0.5, False, False, True),
    "INT8": (127, 64, 1, 2.0**-6, False, True, False),
    "E8M0FNU": (2.0**127, 2.0**-127, 2.0**-127, 1.0, False, True, False),
}


@pytest.mark.parametrize("fmt", FORMATS.values(), ids=str)
def test_constants_are_those_of_the_documents(fmt):
    constants = (
        *(fmt.max, fmt.min_normal, fmt.min_subnormal, fmt.epsilon),
        *(fmt.has_inf, fmt.has_nan, fmt.has_negative_zero),
    )
    assert constants == CONSTANTS[fmt.name]
    assert 1 <= fmt.max / 2.0**fmt.max_exponent < 2
    assert fmt.min_normal == 2.0**fmt.min_exponent
    assert fmt.source


def test_every_format_has_constants():
    assert set(CONSTANTS) == set(FORMATS)


@pytest.mark.parametrize("fmt", [fmt for fmt in TABULATED if fmt.name in ML_DTYPES], ids=str)
def test_every_code_decodes_as_in_ml_dtypes(fmt):
    codes = np.arange(1 << fmt.bits).astype(np.uint8 if fmt.bits <= 8 else np.uint16)
    with np.errstate(invalid="ignore"):  # numpy warns of NaNs in bfloat16
        expected = codes.view(ML_DTYPES[fmt.name]).astype(np.float64)
    assert count_differences(np.array(fmt.values()), expected) == 0


def test_the_codes_of_int8_are_the_whole_numbers_to_127():
    values = FORMATS["INT8"].values()
    assert values[:128] == [float(i) for i in range(128)]
    assert values[129:] == [-float(i) for i in range(1, 128)]
    assert math.isnan(values[128])
    assert [fmt.name for fmt in FORMATS.values() if fmt.is_uniform] == ["INT8"]


def test_the_largest_shared_value_of_an_integer_is_whole():
    """15.5 has as few bits as INT8 holds, and is no integer."""
    assert FORMATS["E3M4"].max == 15.5
    assert FORMATS["E3M4"].max_within(FORMATS["INT8"]) == 15


@pytest.mark.parametrize("fmt", SMALL, ids=str)
def test_max_and_min_are_those_of_the_decoded_codes(fmt):
    finite = [value for value in fmt.values() if math.isfinite(value)]
    assert max(finite) == fmt.max
    assert min(value for value in finite if value > 0) == fmt.min_subnormal


@pytest.mark.parametrize("fmt", SMALL, ids=str)
def test_nan_code_is_nan(fmt):
    if fmt.has_nan:
        assert math.isnan(fmt.decode(fmt.nan_code))
    else:
        assert fmt.nan_code is None


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_constants_equal_torch_finfo(dtype):
    info = torch.finfo(dtype)
    by_max = {fmt.max: fmt for fmt in FORMATS.values() if fmt.bits == info.bits}
    fmt = by_max[info.max]
    assert (fmt.min_normal, fmt.epsilon) == (info.tiny, info.eps)


def test_decode_refuses_a_code_that_does_not_exist():
    with pytest.raises(ValueError, match="E2M1FN: code is 16; expected 0 to 15"):
        FORMATS["E2M1FN"].decode(16)
    with pytest.raises(ValueError, match="code is -1"):
        E4M3FN.decode(-1)


def test_values_refuses_a_wide_format():
    with pytest.raises(ValueError, match=r"FP32 has 2\*\*32 codes"):
        FP32.values()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"exponent_bits": 1}, "exponent_bits is 1; expected 2 to 11"),
        ({"mantissa_bits": 53}, "mantissa_bits is 53; expected 0 to 52"),
        ({"mantissa_bits": 0, "specials": Specials.IEEE}, "mantissa_bits is 0"),
        ({"has_zero": False}, "must be unsigned"),
        ({"is_signed": False, "specials": Specials.NEGATIVE_ZERO_NAN}, "unsigned"),
        ({"bias": 2000}, "bias 2000 gives exponents -1999 to -1985"),
    ],
)
def test_impossible_fields_are_refused(change, message):
    with pytest.raises(ValueError, match=f"E4M3FN: .*{message}"):
        dataclasses.replace(E4M3FN, **change)


def test_a_format_is_a_value():
    assert pickle.loads(pickle.dumps(E4M3FN)) == copy.deepcopy(E4M3FN) == E4M3FN
    assert len({E4M3FN, E5M2, copy.deepcopy(E4M3FN)}) == 2
    assert str(E4M3FN) == "E4M3FN"
    with pytest.raises(dataclasses.FrozenInstanceError):
        E4M3FN.bias = 8


def test_an_unsigned_format_with_zero_decodes():
    """NVFP4's scales are E4M3FN without the sign."""
    unsigned = dataclasses.replace(E4M3FN, name="UE4M3FN", is_signed=False)
    assert unsigned.bits == 7
    assert count_differences(np.array(unsigned.values()), np.array(E4M3FN.values()[:128])) == 0


@functools.cache
def finite_values(fmt: FloatFormat) -> set[float]:
    return {value for value in fmt.values() if math.isfinite(value)}


@pytest.mark.parametrize("carrier", TABULATED, ids=str)
@pytest.mark.parametrize("fmt", SMALL, ids=str)
def test_fits_in_agrees_with_enumeration(fmt, carrier):
    assert fmt.fits_in(carrier) == (finite_values(fmt) <= finite_values(carrier))


@pytest.mark.parametrize("carrier", TABULATED, ids=str)
@pytest.mark.parametrize("fmt", TABULATED, ids=str)
def test_max_within_is_the_largest_shared_value(fmt, carrier):
    assert fmt.max_within(carrier) == max(finite_values(fmt) & finite_values(carrier))


def test_max_within_drops_bits_that_do_not_fit():
    assert FP16.max_within(BF16) == BF16.max_within(FP16) == 65280
    assert E4M3FN.max_within(FP16) == 448
    assert E8M0FNU.max_within(FP16) == 32768
