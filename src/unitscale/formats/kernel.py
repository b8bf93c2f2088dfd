"""The formulas of rounding, pure functions of tensors: run as they are or compiled to one loop.

Let `q` be the spacing of the format at `x`, a power of two:
`2**(max(floor(log2 |x|), min_exponent) - mantissa_bits)`. Then `x / q` is exact, the result is
`round(x / q) * q`, and only the middle step rounds. So nothing is rounded twice, as it would be if
`x` were first cast or scaled down to where float32 is subnormal: FP32 -> BF16 -> E4M3FN differs
from FP32 -> E4M3FN on 3 % of Gaussian values.

No formula rests on a cast to a narrower dtype: Inductor drops those.
"""

import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Generator, Tensor

from unitscale.formats.catalogue import FP32, FP64
from unitscale.formats.dtypes import CARRIERS, TORCH_DTYPES
from unitscale.formats.format import FloatFormat
from unitscale.formats.hashing import random_int32

Rounding = Literal["nearest", "stochastic", "toward_zero"]

RANDOM_BITS = 23  # per stochastic decision; a float32 holds no more of them and a half

MAGNITUDE, EXPONENT, SIGN = 0x7FFFFFFF, 0xFF << 23, -(2**31)  # of a float32


class Bits:
    """Where random bits come from: a generator, one after another, or (keys, index)."""

    def __init__(
        self,
        keys: Tensor | None = None,
        generator: Generator | None = None,
        start: int = 0,
        lanes: Tensor | None = None,
    ) -> None:
        self.keys, self.generator, self.start, self.lanes = keys, generator, start, lanes

    def below(self, shape: torch.Size, bits: int) -> Tensor:
        """Integers in [0, 2**bits), int32, from the keys."""
        assert self.keys is not None
        return random_int32(shape, self.keys, self.start, self.lanes).bitwise_and_((1 << bits) - 1)

    def floats(self, like: Tensor) -> Tensor:
        """Integers in [0, 2**RANDOM_BITS) in the dtype of `like`."""
        if self.keys is not None:
            return self.below(like.shape, RANDOM_BITS).to(like.dtype)
        return torch.randint(
            2**RANDOM_BITS,
            like.shape,
            generator=self.generator,
            dtype=like.dtype,
            device=like.device,
        )


def float32_bits(value: float) -> int:
    """The bits of a float32."""
    return int(struct.unpack("<i", struct.pack("<f", value))[0])


def is_plain(fmt: FloatFormat, dtype: torch.dtype) -> bool:
    """Whether the formulas on float32 bits serve: sign, zero, exponents of float32's normals."""
    return (
        dtype != torch.float64
        and fmt.is_signed
        and fmt.has_zero
        and fmt.min_exponent >= FP32.min_exponent
        and fmt.mantissa_bits <= FP32.mantissa_bits
        and fmt.max_exponent <= FP32.max_exponent
    )


@dataclass(frozen=True, kw_only=True)
class Law:
    """What is to be done with a value, all of it known before a kernel is compiled."""

    fmt: FloatFormat
    rounding: Rounding
    saturate: bool
    dtype: torch.dtype
    """Of the input."""

    def rounded(self, x: Tensor, bits: Bits, inv_scale: Tensor | None) -> Tensor:
        """`x * inv_scale` rounded, in the dtype of the computation; x is left alone.

        No `__call__`: Dynamo of torch 2.11 hashes what it calls, before it has its fields.
        """
        if inv_scale is not None:
            x = (x if x.dtype == torch.float64 else x.float()) * inv_scale
        limit = self.fmt.max_within(CARRIERS[self.dtype])
        if is_plain(self.fmt, self.dtype) and self._is_rounded_by_bits(bits):
            return _round_bits(x.float(), self, limit, bits)
        smallest = max(self.fmt.min_subnormal, CARRIERS[self.dtype].min_subnormal)
        return _round_steps(x, self.fmt, self.rounding, self.saturate, (smallest, limit), bits)

    def _is_rounded_by_bits(self, bits: Bits) -> bool:
        if self.rounding == "nearest":
            # A compiled loop is faster on integers; operation by operation, floats need fewer.
            is_small = self.fmt.max_exponent + FP32.mantissa_bits < FP32.max_exponent
            return torch.compiler.is_compiling() and is_small
        return self.rounding == "stochastic" and bits.keys is not None


def _round_steps(
    x: Tensor,
    fmt: FloatFormat,
    rounding: Rounding,
    saturate: bool,
    ends: tuple[float, float],
    bits: Bits,
) -> Tensor:
    """`round(x / q) * q`, in float32 if that holds every `q`, else in float64."""
    if x.dtype == torch.float64 or fmt.min_exponent < FP32.min_exponent:
        work, integer, exponent_mask = FP64, torch.int64, 0x7FF << 52
    else:
        work, integer, exponent_mask = FP32, torch.int32, EXPONENT
    smallest, limit = ends
    saturate = saturate or not (fmt.has_inf or fmt.has_nan)

    x = x.to(TORCH_DTYPES[work])
    if not fmt.is_signed:
        x = torch.where(x < 0, torch.nan, x)
    if not fmt.has_zero:
        x = (x if saturate else torch.where(x == 0, torch.nan, x)).clamp(min=smallest)
    if saturate:
        x = x.clamp(-limit, limit)

    # The exponent bits of x alone are 2**floor(log2 |x|), or Inf. Bounded below: zero and
    # subnormals have the spacing of the smallest normals. Bounded above: Inf / q stays Inf, and
    # what lies beyond the format gets too fine a q and ends past the limit all the same.
    binade = (x.view(integer) & exponent_mask).view(x.dtype)
    binade = binade.clamp(fmt.min_normal, 2.0 ** min(fmt.max_exponent, work.max_exponent))
    precision = work.mantissa_bits
    mantissa_bits = min(fmt.mantissa_bits, precision)
    shift = precision - mantissa_bits
    if rounding == "nearest" and shift >= 2 and fmt.max_exponent + shift < work.max_exponent:
        # The sum lies where the values of the work format are multiples of q: adding rounds. It
        # spares the division, which takes most of the time of a compiled loop.
        shifter = 1.5 * 2.0**shift
        y = torch.add(x, binade, alpha=shifter).sub_(binade, alpha=shifter).copysign_(x)
    else:
        q = binade.mul_(2.0**-mantissa_bits)
        steps = x / q
        if rounding == "nearest":
            steps = steps.round_()
        elif rounding == "toward_zero":
            steps = steps.trunc_()
        else:
            steps = _up_by_chance(steps, bits)
        y = steps.mul_(q)

    if not saturate:
        if rounding == "toward_zero":
            is_past, y = x.isinf(), y.clamp(-limit, limit)
        else:
            is_past = y.abs() > limit
        y = torch.where(is_past, y * (torch.inf if fmt.has_inf else torch.nan), y)
    return y if fmt.has_negative_zero else without_negative_zero(y)


def without_negative_zero(y: Tensor) -> Tensor:
    """+0 for -0; adding 0 would give it too, but not where a compiler removes such sums."""
    return torch.where(y == 0, 0.0, y)


def _up_by_chance(steps: Tensor, bits: Bits) -> Tensor:
    """Up from `floor(|steps|)` where a random point of (0, 1) lies below the rest.

    The points are the midpoints of 2**23 equal parts: a rest of 23 bits or fewer has exactly its
    probability, a longer one the nearest multiple of 2**-23.
    """
    magnitude = steps.abs()
    lower = magnitude.floor()
    rest = magnitude.sub_(lower)
    is_up = bits.floats(steps).add_(0.5) < rest.mul_(2.0**RANDOM_BITS)
    return lower.add_(is_up).copysign_(steps)


def _round_bits(x: Tensor, law: Law, limit: float, bits: Bits) -> Tensor:
    """Magnitudes rounded as integers, which costs neither care for NaN nor for signs."""
    fmt, top = law.fmt, law.fmt.max_exponent
    saturate = law.saturate or not (fmt.has_inf or fmt.has_nan)
    pattern = x.view(torch.int32)
    magnitude = pattern & MAGNITUDE
    inside = magnitude
    if saturate or law.rounding == "nearest":  # whose shifter is to stay below Inf
        inside = magnitude.clamp(max=float32_bits(limit if saturate else 4.0 * 2.0**top))
    y = MAGNITUDES[law.rounding](inside, fmt, bits)
    if not saturate:
        y = torch.where(y > limit, torch.inf if fmt.has_inf else torch.nan, y)
    # Not into the view: for each write to one a compiler traces all views of its memory again.
    y = y.view(torch.int32) | (pattern & SIGN)
    y |= (EXPONENT - magnitude) >> 31  # NaN: all ones, which is another; else no bit
    y = y.view(torch.float32)
    return y if fmt.has_negative_zero else without_negative_zero(y)


def magnitude_stochastic(magnitude: Tensor, fmt: FloatFormat, bits: Bits) -> Tensor:
    """Float32 magnitudes, given as their bits, rounded by chance; a plain format; NaN aside.

    Below the smallest normal `m`, `|x| + m` has the format's spacing for one of its own; the sum
    rounds to nearest at the last random bit. There are `23 - mantissa_bits` of them.
    """
    drop = FP32.mantissa_bits - fmt.mantissa_bits
    offset = _is_subnormal(magnitude, fmt).bitwise_and_(float32_bits(fmt.min_normal))
    offset = offset.view(torch.float32)
    kept = (magnitude.view(torch.float32) + offset).view(torch.int32)
    kept += bits.below(magnitude.shape, drop)
    kept &= -(1 << drop)
    return kept.view(torch.float32).sub_(offset)


def magnitude_nearest(magnitude: Tensor, fmt: FloatFormat, bits: Bits | None = None) -> Tensor:
    """Float32 magnitudes, given as their bits, to nearest even; a plain format of small exponents.

    Adding `2**23 q` puts the sum where float32 has the spacing q.
    """
    drop = FP32.mantissa_bits - fmt.mantissa_bits
    binade = (magnitude & EXPONENT).clamp(min=float32_bits(fmt.min_normal))
    shifter = (binade + (drop << FP32.mantissa_bits)).view(torch.float32)
    return (magnitude.view(torch.float32) + shifter) - shifter


MAGNITUDES: dict[str, Callable[[Tensor, FloatFormat, Bits], Tensor]] = {
    "nearest": magnitude_nearest,
    "stochastic": magnitude_stochastic,
}


def _is_subnormal(magnitude: Tensor, fmt: FloatFormat) -> Tensor:
    """All bits set where a magnitude, given as its bits, is below `min_normal`; else none."""
    return (magnitude - float32_bits(fmt.min_normal)).bitwise_right_shift_(31)


def codes_of(y: Tensor, fmt: FloatFormat) -> Tensor:
    """The codes of float32 values of a plain format of 8 bits or fewer; uint8, same shape.

    NaN becomes `nan_code`, or in a format without NaN the code of -0.
    """
    drop = FP32.mantissa_bits - fmt.mantissa_bits
    pattern = y.view(torch.int32)
    magnitude = pattern & MAGNITUDE
    # Inf has the code of what would follow max: the next binade, mantissa zero.
    inside = magnitude.clamp(max=float32_bits(2.0 ** (fmt.max_exponent + 1)))
    smallest = float32_bits(fmt.min_normal)
    is_subnormal = _is_subnormal(inside, fmt)
    offset = (is_subnormal & smallest).view(torch.float32)
    shifted = (inside.view(torch.float32) + offset).view(torch.int32)
    first = smallest - (1 << FP32.mantissa_bits)  # exponent field 0
    code = ((shifted - first) >> drop) - (is_subnormal & (1 << fmt.mantissa_bits))
    code = code | ((pattern >> 31) & (1 << (fmt.bits - 1)))
    nan_code = 1 << (fmt.bits - 1) if fmt.nan_code is None else fmt.nan_code
    return torch.where(magnitude > EXPONENT, nan_code, code).to(torch.uint8)


def values_of(codes: Tensor, fmt: FloatFormat) -> Tensor:
    """The float32 value of each uint8 code of a plain format of 8 bits or fewer; same shape."""
    drop = FP32.mantissa_bits - fmt.mantissa_bits
    code = codes.to(torch.int32)
    sign_code = 1 << (fmt.bits - 1)
    magnitude = code & (sign_code - 1)
    smallest = float32_bits(fmt.min_normal)
    is_subnormal = (magnitude - (1 << fmt.mantissa_bits)) >> 31
    pattern = (magnitude << drop) + (smallest - (1 << FP32.mantissa_bits))
    pattern += is_subnormal & (1 << FP32.mantissa_bits)
    value = pattern.view(torch.float32) - (is_subnormal & smallest).view(torch.float32)
    last = (float32_bits(fmt.max) - smallest >> drop) + (1 << fmt.mantissa_bits)  # code of max
    if fmt.has_inf:
        value = torch.where(magnitude == last + 1, torch.inf, value)
    if fmt.has_nan and fmt.has_negative_zero:
        value = torch.where(magnitude > last + fmt.has_inf, torch.nan, value)
    if fmt.has_nan and not fmt.has_negative_zero:
        value = torch.where(code == sign_code, torch.nan, value)
    signs = (code & sign_code) << (32 - fmt.bits)
    return (value.view(torch.int32) | signs).view(torch.float32)
