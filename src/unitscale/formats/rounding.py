"""Rounding a tensor to the values of a number format, in the tensor's own dtype.

One formula serves every format and mode. Let `q` be the spacing of the format at `x`, a power of two:
`2**(max(floor(log2 |x|), min_exponent) - mantissa_bits)`. Then `x / q` is exact, the result is
`round(x / q) * q`, and only the middle step rounds. Nothing is ever rounded twice: working on a copy of
`x` that was scaled down or cast first would do so (FP32 -> BF16 -> E4M3FN differs from FP32 -> E4M3FN
on 3 % of Gaussian values).

Where torch's own cast to the format does the same, bit for bit, and is faster, it is used instead.
"""

from typing import Literal, get_args

import torch
from torch import Generator, Tensor

from unitscale.formats.catalogue import BF16, E4M3FN, E5M2, FP16, FP32, FP64
from unitscale.formats.dtypes import CARRIERS, TORCH_DTYPES, carrier
from unitscale.formats.format import FloatFormat

Rounding = Literal["nearest", "stochastic", "toward_zero"]

RANDOM_BITS = 23  # of each stochastic decision: with the half added, all that a float32 holds


def round_to(
    x: Tensor,
    fmt: FloatFormat,
    rounding: Rounding = "nearest",
    saturate: bool = True,
    generator: Generator | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """Round every element of `x` to a value of `fmt`; dtype and shape stay.

    "nearest": the closest value, ties to the even mantissa (to the larger value where there is no
    mantissa bit). "toward_zero": the closest value of no larger magnitude. "stochastic": one of the two
    neighbours `lo <= |x| <= hi`, the upper with probability `p = (|x| - lo) / (hi - lo)` rounded to 23
    bits: the mean of the result is `x` to within `2**-24` of the spacing, and values of the format never
    move.

    A magnitude that rounds past the largest value gives that largest value (`saturate`), or else what
    the format has for it: Inf, or NaN where there is no Inf; where there is neither, it saturates in any
    case. Infinite input is such a magnitude. NaN stays NaN, in formats without NaN too. Zero and values
    that round to zero keep their sign, unless the format has no -0. An unsigned format makes NaN of
    negative values. In E8M0FNU, which has no zero, positive values below the smallest become the
    smallest; zero becomes the smallest if `saturate`, else NaN.

    The result is always a value of `x.dtype` too: FP16 held in bfloat16 ends at 65280.

    The result has no autograd history: `x` counts as a constant, no straight-through gradient is implied.

    Args:
        x: float64, float32, bfloat16 or float16; any shape and strides.
        generator: source of random bits for "stochastic", on x's device; without one, torch's global
            generator of that device is used. `torch.compile` accepts only the latter.
        out: receives the result, and is returned; may be `x` itself.
    Raises:
        TypeError: x has another dtype.
        ValueError: unknown `rounding`; a generator for a rounding that is not stochastic; `out` of
            another shape or dtype.
    """
    held = carrier(x.dtype, "round_to")
    if rounding not in get_args(Rounding):
        raise ValueError(
            f"round_to: rounding is {rounding!r}; expected one of {get_args(Rounding)}"
        )
    if generator is not None and rounding != "stochastic":
        raise ValueError(
            f"round_to: a generator is of no use for rounding={rounding!r}; leave it out"
        )
    if out is not None and (out.shape != x.shape or out.dtype != x.dtype):
        raise ValueError(
            f"round_to: out is {out.dtype} {tuple(out.shape)}; "
            f"expected {x.dtype} {tuple(x.shape)}, as x"
        )
    x = x.detach()
    limit = fmt.max_within(held)
    if rounding == "nearest" and _cast_is_exact(x, fmt, saturate):
        y = (x.clamp(-limit, limit) if saturate else x).to(TORCH_DTYPES[fmt])
    else:
        y = _round(x, fmt, rounding, saturate, limit, generator)
    if out is not None:
        return out.copy_(y)
    return y.clone() if y is x else y.to(x.dtype)


def _cast_is_exact(x: Tensor, fmt: FloatFormat, saturate: bool) -> bool:
    """Whether torch's cast of the clamped `x` rounds once, to the same bits, and is the faster way."""
    if x.dtype == torch.float64:
        return False  # casts from float64 to anything narrower than float32 go through float32
    if fmt == E4M3FN:
        # Unsaturated, the cast's result depends on torch's version; on a CPU the way back is slow.
        return saturate and x.device.type != "cpu"
    if fmt == E5M2:
        return True
    # Inductor drops float32 -> float16 -> float32 pairs as superfluous (seen in torch 2.13), so in a
    # graph these would round nothing.
    is_traced = torch.compiler.is_compiling() or type(x) is not Tensor
    return fmt in (BF16, FP16, FP32) and not is_traced


def _round(
    x: Tensor,
    fmt: FloatFormat,
    rounding: Rounding,
    saturate: bool,
    limit: float,
    generator: Generator | None,
) -> Tensor:
    """`round(x / q) * q` of the module docstring, in float32 or float64, whichever holds every `q`."""
    smallest = max(fmt.min_subnormal, CARRIERS[x.dtype].min_subnormal)
    is_wide = x.dtype == torch.float64 or fmt.min_exponent < FP32.min_exponent
    work, bits, exponent_mask = (
        (FP64, torch.int64, 0x7FF << 52) if is_wide else (FP32, torch.int32, 0xFF << 23)
    )
    saturate = saturate or not (fmt.has_inf or fmt.has_nan)

    x = x.to(TORCH_DTYPES[work])
    if not fmt.is_signed:
        x = torch.where(x < 0, torch.nan, x)
    if not fmt.has_zero:
        x = (x if saturate else torch.where(x == 0, torch.nan, x)).clamp(min=smallest)
    if saturate:
        x = x.clamp(-limit, limit)

    # x with only its exponent bits is 2**floor(log2 |x|), or Inf. The upper bound keeps Inf / q infinite;
    # magnitudes beyond the format get a q too fine for them, and end past the limit all the same.
    q = (x.view(bits) & exponent_mask).view(x.dtype)
    q = q.clamp_(fmt.min_normal, 2.0 ** min(fmt.max_exponent, work.max_exponent))
    q = q.mul_(2.0 ** -min(fmt.mantissa_bits, work.mantissa_bits))

    steps = x / q
    if rounding == "nearest":
        steps = steps.round_()
    elif rounding == "toward_zero":
        steps = steps.trunc_()
    else:
        steps = _round_stochastic(steps, generator)
    y = steps.mul_(q)

    if not saturate:
        if rounding == "toward_zero":  # only Inf lies past the limit, seen from above
            is_past = x.isinf()
            y = y.clamp_(-limit, limit)
        else:
            is_past = y.abs() > limit
        y = torch.where(is_past, y * (torch.inf if fmt.has_inf else torch.nan), y)
    return y if fmt.has_negative_zero else y + 0.0  # -0 + 0 is +0


def _round_stochastic(steps: Tensor, generator: Generator | None) -> Tensor:
    """Up from `floor(|steps|)` where a random number on a grid of half-odd multiples is below the rest.

    The half makes the comparison exact for a rest of 23 bits or fewer, and unbiased below that.
    """
    magnitude = steps.abs()
    lower = magnitude.floor()
    rest = magnitude.sub_(lower).mul_(2.0**RANDOM_BITS)
    random = torch.randint(
        2**RANDOM_BITS, steps.shape, generator=generator, dtype=steps.dtype, device=steps.device
    )
    return lower.add_(random.add_(0.5) < rest).copysign_(steps)
