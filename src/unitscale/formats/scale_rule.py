"""The scale of a group of elements from its amax: `x ~ data * scale`.

Powers of two are found by arithmetic on the exponents of float32. With
`amax = (1 + f) 2**e` and the format's `max = (1 + g) 2**emax`, both f and g in [0, 1), the scale is
2 to the power of

    floor    e - emax              OCP MX v1.0, section 6.3. Up to 2**(emax + 1) has to fit, so the
                                   largest elements may saturate.
    rceil    e - emax + (f > g)    2**ceil(log2(amax / max)): the smallest at which none saturates.
                                   Transformer Engine, cuBLAS.
    ceil     e - emax + (f > 0)    2**(ceil(log2 amax) - emax).
    even     e' - emax             e' is the exponent of amax rounded to nearest even, to the
                                   mantissa bits of the format: floor, but one more where amax
                                   rounds up to a power of two. torchao's EVEN.

`log2` in floating point rounds to an integer next to powers of two. So microxcaling's floor takes
one more there, and torchao 0.18's rceil one less just above `max` times a power of two, where the
block then saturates; the standard means the exact exponent. `benchmarks/block_oracle.py` compares
with both.
"""

from typing import Literal

import torch
from torch import Tensor

from unitscale.formats.batched import is_batched, over_lanes
from unitscale.formats.catalogue import FP32
from unitscale.formats.format import FloatFormat
from unitscale.formats.kernel import EXPONENT, float32_bits

PowerOfTwo = Literal["floor", "rceil", "ceil", "even"]

SMALLEST_AMAX = 1e-12
"""An all-zero tensor has no scale of its own; this keeps `amax / max` away from zero."""

LAST_CODE = 254
"""Of the exponent of 2**127, the largest power of two; the codes are those of E8M0FNU."""

SMALLEST_POWER = float32_bits(2.0**-127)
"""Code 0; the only one whose float32 is subnormal, so that a shift does not give it."""


def exact_scale(amax: Tensor, fmt: FloatFormat, margin: int) -> Tensor:
    """`amax / max * 2**margin` in float32, of an amax of at least `SMALLEST_AMAX`."""
    scale = amax.float().clamp(min=SMALLEST_AMAX) / fmt.max
    return scale * 2.0**margin if margin else scale


def power_of_two_scale(
    amax: Tensor, fmt: FloatFormat, rule: PowerOfTwo, margin: int
) -> tuple[Tensor, Tensor]:
    """The scale of each float32 amax, and its inverse, by the rules at the top of this file.

    It is `2**margin` larger, within [2**-127, 2**127]. The amax of Inf or NaN is its own scale,
    with the inverse 0 or NaN.
    """
    if is_batched(amax):  # which cannot be viewed as integers
        scale = over_lanes(lambda lanes: power_of_two_scale(lanes, fmt, rule, margin)[0], amax)
        inverse = over_lanes(lambda lanes: power_of_two_scale(lanes, fmt, rule, margin)[1], amax)
        return scale, inverse
    pattern = amax.view(torch.int32)
    mantissa = pattern & ~EXPONENT
    if rule == "even":
        # Half of the last bit kept: a carry into the exponent is all that is asked for. The tie
        # below a power of two goes up, to even.
        pattern = pattern + (1 << (FP32.mantissa_bits - fmt.mantissa_bits - 1))
    exponent = pattern >> FP32.mantissa_bits
    if rule == "ceil":
        exponent = exponent + (mantissa > 0)
    elif rule == "rceil":
        exponent = exponent + (mantissa > (float32_bits(fmt.max) & ~EXPONENT))
    code = (exponent + (margin - fmt.max_exponent)).clamp(0, LAST_CODE)
    scale = (code << FP32.mantissa_bits).clamp(min=SMALLEST_POWER).view(torch.float32)
    inverse = (LAST_CODE - code << FP32.mantissa_bits).clamp(min=SMALLEST_POWER)
    is_special = (amax.view(torch.int32) & EXPONENT) == EXPONENT
    return (
        torch.where(is_special, amax, scale),
        torch.where(is_special, amax.reciprocal(), inverse.view(torch.float32)),
    )


def power_of_two_code(scale: Tensor) -> Tensor:
    """The E8M0FNU code of each scale that is a power of two or NaN, uint8."""
    return ((scale.view(torch.int32) & EXPONENT) >> FP32.mantissa_bits).to(torch.uint8)


def power_of_two_value(codes: Tensor) -> Tensor:
    """The float32 value of each E8M0FNU code, given as uint8; NaN for 255."""
    code = codes.to(torch.int32)
    pattern = (code << FP32.mantissa_bits).clamp(min=SMALLEST_POWER)
    return torch.where(code > LAST_CODE, torch.nan, pattern.view(torch.float32))
