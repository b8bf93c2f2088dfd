"""What rounding should give, by ways that share nothing with the code under test.

`table` looks an input up between the sorted values of the format and compares it with their exact
midpoint; `ML_DTYPES` are Google's types. Both work on numpy arrays.
"""

import functools

import ml_dtypes
import numpy as np
import torch

from unitscale import formats
from unitscale.formats import FORMATS, INT8, FloatFormat

CARRIERS = (torch.float64, torch.float32, torch.bfloat16, torch.float16)

# 8 bits and fewer, all of which but INT8 ml_dtypes has.
SMALL = [fmt for fmt in FORMATS.values() if fmt.bits <= 8]
TABULATED = [fmt for fmt in FORMATS.values() if fmt.bits <= 16]

ML_DTYPES = {
    "BF16": ml_dtypes.bfloat16,
    "FP16": np.float16,
    "E5M2": ml_dtypes.float8_e5m2,
    "E4M3FN": ml_dtypes.float8_e4m3fn,
    "E4M3": ml_dtypes.float8_e4m3,
    "E3M4": ml_dtypes.float8_e3m4,
    "E5M2FNUZ": ml_dtypes.float8_e5m2fnuz,
    "E4M3FNUZ": ml_dtypes.float8_e4m3fnuz,
    "E4M3B11FNUZ": ml_dtypes.float8_e4m3b11fnuz,
    "E3M2FN": ml_dtypes.float6_e3m2fn,
    "E2M3FN": ml_dtypes.float6_e2m3fn,
    "E2M1FN": ml_dtypes.float4_e2m1fn,
    "E8M0FNU": ml_dtypes.float8_e8m0fnu,
}


def patterns(dtype: torch.dtype) -> torch.Tensor:
    """All 65,536 values of a 16-bit dtype."""
    return torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(dtype)


def strided_float32(step: int = 4_099) -> torch.Tensor:
    """About a million of the 2**32 float32 patterns; a prime step, so low bits vary too."""
    return torch.arange(-(2**31), 2**31, step).to(torch.int32).view(torch.float32)


@functools.cache
def not_negative(fmt: FloatFormat) -> np.ndarray:
    """The finite values from 0 (or the smallest) to max; a position is a code."""
    values = np.array(fmt.values()[: 1 << (fmt.bits - fmt.is_signed)])
    return values[np.isfinite(values)]


@functools.cache
def ties(fmt: FloatFormat) -> np.ndarray:
    """Midpoints of all neighbours, and of max and what would follow it; exact in float64."""
    values = not_negative(fmt)
    following = values[-1] + 2.0 ** (fmt.max_exponent - fmt.mantissa_bits)
    return (values + np.append(values[1:], following)) / 2


def table(x: np.ndarray, fmt: FloatFormat, *, rounding: str, saturate: bool) -> np.ndarray:
    """`round_to` in the words of its docstring, for float64 input, nearest or toward_zero."""
    values, middles = not_negative(fmt), ties(fmt)
    magnitude = np.abs(x)
    finite = np.where(np.isfinite(x), magnitude, 0)
    if rounding == "nearest":
        code = np.searchsorted(middles, finite, side="left")  # ties go down
        is_tie = middles[np.minimum(code, len(middles) - 1)] == finite
        code = code + (is_tie & ((code % 2 == 1) | (fmt.mantissa_bits == 0)))
    else:
        code = np.searchsorted(values, finite, side="right") - 1
    is_past = np.isinf(x) | ((code >= len(values)) & (rounding == "nearest"))
    y = values[np.clip(code, 0, len(values) - 1)]
    overflow = fmt.max if saturate or not fmt.has_nan else np.inf if fmt.has_inf else np.nan
    y = np.copysign(np.where(is_past, overflow, y), x)
    if not fmt.has_negative_zero:
        y = y + 0.0
    if not fmt.is_signed:
        y = np.where(x < 0, np.nan, y)
    if not fmt.has_zero:
        y = np.where(x == 0, fmt.min_subnormal if saturate else np.nan, y)
    return np.where(np.isnan(x), np.nan, y)


def by_ml_dtypes(x: np.ndarray, fmt: FloatFormat, *, saturate: bool) -> np.ndarray:
    """ml_dtypes' cast and back. It has no saturating one but for 6 and 4 bits, so clamp first.

    Of INT8, which it has not, numpy's rounding to whole numbers.
    """
    if saturate:
        low = fmt.min_subnormal if not fmt.has_zero else -fmt.max
        x = np.where(
            np.isnan(x) | ((x < 0) & (not fmt.is_signed)), np.nan, np.clip(x, low, fmt.max)
        )
    if fmt is INT8:
        with np.errstate(invalid="ignore"):  # of NaNs that signal
            whole = np.rint(x) + 0.0  # no -0
        return np.where(np.abs(whole) > 127, np.nan, whole)
    with np.errstate(all="ignore"):
        y = x.astype(ML_DTYPES[fmt.name]).astype(np.float64)
    return y if fmt.has_nan else np.where(np.isnan(x), np.nan, y)  # NaN became -0


def is_misrounded_by_ml_dtypes(x: np.ndarray, fmt: FloatFormat) -> np.ndarray:
    """Where ml_dtypes 0.6.0 and torch 2.13 are wrong: just above 2**-127 they give 2**-126."""
    if fmt != formats.E8M0FNU:
        return np.zeros(x.shape, dtype=bool)
    return (x > 2.0**-127) & (x < 1.5 * 2.0**-127)


def count_differences(actual: np.ndarray, expected: np.ndarray) -> int:
    """Elements that differ as numbers or in the sign of zero; any NaN equals any NaN."""
    same = (actual == expected) & (np.signbit(actual) == np.signbit(expected))
    return int((~(same | (np.isnan(actual) & np.isnan(expected)))).sum())


def assert_same(actual: torch.Tensor, expected: np.ndarray, x: torch.Tensor) -> None:
    """No element differs; the message shows the first three that do, with their inputs."""
    got = actual.double().numpy()
    if count_differences(got, expected):
        same = (got == expected) & (np.signbit(got) == np.signbit(expected))
        bad = ~(same | (np.isnan(got) & np.isnan(expected)))
        raise AssertionError(
            f"{bad.sum()} of {bad.size} differ; x {x.double().numpy()[bad][:3]}, "
            f"got {got[bad][:3]}, expected {expected[bad][:3]}"
        )
