"""Rounding a tensor to the values of a number format, in the tensor's own dtype.

One formula serves every format and mode. Let `q` be the spacing of the format at `x`, a power of
two: `2**(max(floor(log2 |x|), min_exponent) - mantissa_bits)`. Then `x / q` is exact, the result is
`round(x / q) * q`, and only the middle step rounds. So nothing is rounded twice, as it would be if
`x` were first cast or scaled down to where float32 is subnormal: FP32 -> BF16 -> E4M3FN differs
from FP32 -> E4M3FN on 3 % of Gaussian values.

Outside of graphs, torch's own cast is used instead where it gives the same bits faster.
"""

from typing import Literal, get_args

import torch
from torch import Generator, Tensor

from unitscale.formats.catalogue import BF16, E4M3FN, E5M2, FP16, FP32, FP64
from unitscale.formats.dtypes import CARRIERS, TORCH_DTYPES, carrier
from unitscale.formats.format import FloatFormat

Rounding = Literal["nearest", "stochastic", "toward_zero"]

RANDOM_BITS = 23  # per stochastic decision; a float32 holds no more of them and a half


def round_to(
    x: Tensor,
    fmt: FloatFormat,
    rounding: Rounding = "nearest",
    saturate: bool = True,
    generator: Generator | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """Round every element of `x` to a value of `fmt`; dtype and shape stay.

    "nearest": the closest value; ties go to the even mantissa, or to the larger magnitude where
    there is no mantissa bit (E8M0FNU). "toward_zero": the closest value of no larger magnitude.
    "stochastic": of the two neighbours `lo <= |x| <= hi` the upper one with probability
    `(|x| - lo) / (hi - lo)` rounded to 23 bits, so the mean of the result is `x` to within `2**-24`
    of the spacing, and values of the format never move.

    A magnitude that rounds past the largest value, Inf among them, becomes the largest value
    (`saturate`), or else Inf, or NaN if the format has no Inf; if it has neither, it saturates in
    any case. Toward zero, only Inf is past the largest value. NaN stays NaN, even in a format
    without. Zero, and what rounds to zero, keeps its sign unless the format has no -0. An unsigned
    format turns negative values into NaN. In E8M0FNU, which has no zero, positive values below the
    smallest become the smallest; zero becomes the smallest (`saturate`) or NaN.

    The result is a value of `x.dtype` too: the largest of FP16 within bfloat16 is 65280.
    It has no autograd history. `x` counts as a constant: no straight-through gradient is implied.

    Args:
        x: float64, float32, bfloat16 or float16; any shape and strides.
        generator: random bits for "stochastic", on x's device; without one they come from torch's
            global generator. Under `torch.compile` only the latter is possible.
        out: receives the result and is returned; may be `x` itself.
    Raises:
        TypeError: x has another dtype.
        ValueError: unknown `rounding`; a generator for a rounding that is not stochastic; `out` of
            another shape or dtype than x.
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
    """Whether torch's cast of the clamped `x` gives the same bits, and is the faster way."""
    if x.dtype == torch.float64:
        return False  # its casts go through float32, rounding twice
    if torch.compiler.is_compiling() or type(x) is not Tensor:
        # In a graph the formula is one fused loop. And Inductor drops float32 -> float16 -> float32
        # as superfluous (seen in torch 2.13), so that such a cast would round nothing.
        return False
    if fmt == E4M3FN:
        # Past the largest value the cast depends on torch's version. On a CPU the way back is slow.
        return saturate and x.device.type != "cpu"
    return fmt in (E5M2, BF16, FP16, FP32)


def _round(
    x: Tensor,
    fmt: FloatFormat,
    rounding: Rounding,
    saturate: bool,
    limit: float,
    generator: Generator | None,
) -> Tensor:
    """`round(x / q) * q`, in float32 if that holds every `q`, else in float64."""
    if x.dtype == torch.float64 or fmt.min_exponent < FP32.min_exponent:
        work, integer, exponent_mask = FP64, torch.int64, 0x7FF << 52
    else:
        work, integer, exponent_mask = FP32, torch.int32, 0xFF << 23
    smallest = max(fmt.min_subnormal, CARRIERS[x.dtype].min_subnormal)
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
        shifter = binade.mul_(1.5 * 2.0**shift)
        y = (x + shifter).sub_(shifter).copysign_(x)
    else:
        q = binade.mul_(2.0**-mantissa_bits)
        steps = x / q
        if rounding == "nearest":
            steps = steps.round_()
        elif rounding == "toward_zero":
            steps = steps.trunc_()
        else:
            steps = _round_stochastic(steps, generator)
        y = steps.mul_(q)

    if not saturate:
        if rounding == "toward_zero":
            is_past, y = x.isinf(), y.clamp(-limit, limit)
        else:
            is_past = y.abs() > limit
        y = torch.where(is_past, y * (torch.inf if fmt.has_inf else torch.nan), y)
    return y if fmt.has_negative_zero else y + 0.0  # -0 + 0 is +0


def _round_stochastic(steps: Tensor, generator: Generator | None) -> Tensor:
    """Up from `floor(|steps|)` where a random point of (0, 1) lies below the rest.

    The points are the midpoints of 2**23 equal parts: a rest of 23 bits or fewer has exactly its
    probability, a longer one the nearest multiple of 2**-23.
    """
    magnitude = steps.abs()
    lower = magnitude.floor()
    rest = magnitude.sub_(lower)
    random = torch.randint(
        2**RANDOM_BITS, steps.shape, generator=generator, dtype=steps.dtype, device=steps.device
    )
    is_up = random.add_(0.5) < rest.mul_(2.0**RANDOM_BITS)
    return lower.add_(is_up).copysign_(steps)
