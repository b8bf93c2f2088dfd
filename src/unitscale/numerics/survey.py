"""What a measuring step reads off one tensor: all of it in one pass, with one wait for the device.

The memory it needs is that of a few chunks, whatever the size of the tensor.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from unitscale.formats.dtypes import carrier
from unitscale.formats.format import FloatFormat
from unitscale.numerics.chunk import chunks
from unitscale.numerics.statistics import FILL

LARGEST_LOG2 = 1000


class Survey(NamedTuple):
    """Four numbers of one tensor.

    Args:
        rms: of the elements that are data, as `statistics.rms(x, skip_fill=True)`; 0 if none are.
        amax: the largest finite magnitude, fill values included; NaN if the tensor holds a NaN; 0
            if nothing is finite.
        saturated: the share of elements past the largest value of the format, or None without one.
        flushed: the share of elements that are not zero and become zero in it, or None.
    """

    rms: float
    amax: float
    saturated: float | None
    flushed: float | None


@torch.no_grad()
def survey(x: Tensor, *, format: FloatFormat | None, log2_scale: int = 0) -> Survey:
    """The RMS and amax of `x`, and what rounding `x * 2**log2_scale` to `format` would lose.

    The shares are those of `saturated_fraction` and `flushed_fraction` of the exact product, which
    is never rounded to the dtype of `x`. Sums are in float64. Of an empty tensor all numbers are 0.

    Args:
        x: float64, float32, bfloat16 or float16; any shape and strides, on any device.
        format: what the shares are about.
        log2_scale: -1000 to 1000.
    Raises:
        TypeError: x has another dtype.
        ValueError: log2_scale is out of range.
    """
    carrier(x.dtype, "survey")
    if abs(log2_scale) > LARGEST_LOG2:
        raise ValueError(
            f"survey: log2_scale is {log2_scale}; expected -{LARGEST_LOG2} to {LARGEST_LOG2}"
        )
    parts = [look(part, format, log2_scale) for part in chunks(x.detach())]
    if not parts:
        return Survey(0.0, 0.0, *(None if format is None else 0.0 for _ in range(2)))
    # One wait for the device: a chunk is a row of a few numbers, which Python sums as well.
    table = torch.stack(parts)
    # A tensor of a wrapper subclass (a DTensor, say) gives its numbers one by one.
    lines = table.tolist() if type(table) is Tensor else [[x.item() for x in y] for y in table]
    norms, tops, counts, *lost = zip(*lines, strict=True)
    rms = math.hypot(*norms) / math.sqrt(max(sum(counts), 1))
    amax = math.nan if any(map(math.isnan, tops)) else max(tops)
    saturated, flushed = (sum(count) / x.numel() for count in lost) if lost else (None, None)
    return Survey(rms, amax, saturated, flushed)


def look(part: Tensor, fmt: FloatFormat | None, log2_scale: int) -> Tensor:
    """Norm and amax of one chunk, its number of data, and the numbers saturated and flushed."""
    magnitude = part.double().abs()
    top = magnitude.amax()
    # Not asked of another device: it would wait for it.
    if part.is_cpu and float(top) < FILL:
        norm = torch.linalg.vector_norm(magnitude)
        count = top.new_tensor(part.numel())
    else:
        is_data = magnitude < FILL
        norm = torch.linalg.vector_norm(torch.where(is_data, magnitude, 0.0))
        count = is_data.count_nonzero().double()
        finite = torch.where(magnitude.isinf(), 0.0, magnitude)
        top = finite.amax()
    counts = () if fmt is None else losses(part, magnitude, fmt, log2_scale)
    return torch.stack([norm, top, count, *counts])


def losses(
    part: Tensor, magnitude: Tensor, fmt: FloatFormat, log2_scale: int
) -> tuple[Tensor, Tensor]:
    """How many elements of a chunk saturate and how many are flushed; uses up `magnitude`."""
    is_zero = magnitude == 0
    held = magnitude.mul_(2.0**log2_scale)
    saturated = (held > fmt.max).count_nonzero().double()
    if not fmt.has_zero:
        return saturated, torch.zeros_like(saturated)
    # Half of the smallest value is a tie. Zero is even and takes it, but a format without mantissa
    # bits rounds ties away from zero. (Of FP64 the half is 0: nothing but zero is as small.)
    half = fmt.min_subnormal / 2
    small = held <= half if fmt.mantissa_bits else held < half
    small &= ~is_zero
    if not fmt.is_signed:
        small &= part > 0  # what is negative becomes NaN
    return saturated, small.count_nonzero().double()
