"""Statistics of one tensor: its scale, its tails, and what a number format would do to it.

Every function takes a float64, float32, bfloat16 or float16 tensor (else TypeError), treats it as
a constant, works in float64, and returns a 0-dim float64 tensor on its device, so that nothing
waits for the device until the number is read. A magnitude or share of an empty tensor is 0.
A large tensor is looked at in chunks: none of these needs a copy of it.
"""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from unitscale.formats.dtypes import carrier
from unitscale.formats.format import FloatFormat
from unitscale.formats.rounding import round_to
from unitscale.numerics.chunk import chunks, chunks_of

FILL = 2.0**64  # magnitudes from here on are fill values, such as a mask's finfo.min, not data

LOWEST = -1074
"""The exponent of float64's smallest value."""

EXPONENTS = 1 + 1024 - LOWEST
"""Those of float64, and one place for what has none."""


def rms(x: Tensor, *, skip_fill: bool = False) -> Tensor:
    """`sqrt(mean(x**2))`, without over- or underflow for any float32 values.

    NaN gives NaN and Inf gives Inf, unless `skip_fill`: then NaN, Inf and magnitudes of `2**64` and
    more are left out, as in all functions here that take it. (A float16 mask of -65504 is not.)
    """
    x = _constant(x, "rms")
    if not skip_fill:
        norms = [torch.linalg.vector_norm(part, dtype=torch.float64) for part in chunks(x)]
        return _norm(x, norms) / math.sqrt(max(x.numel(), 1))
    norms, counts = [], []
    for part in chunks(x):
        data, count = _without_fill(part)
        norms.append(torch.linalg.vector_norm(data, dtype=torch.float64))
        counts.append(count)
    return _norm(x, norms) / _sum(x, counts).clamp(min=1).sqrt()


def amax(x: Tensor, *, skip_fill: bool = False) -> Tensor:
    """`max(|x|)`; NaN gives NaN, unless `skip_fill`."""
    x = _constant(x, "amax")
    parts = (_without_fill(part)[0] if skip_fill else part for part in chunks(x))
    tops = [torch.stack(part.aminmax()).abs().amax() for part in parts]
    return torch.stack(tops).amax().double() if tops else _sum(x, [])


def kurtosis(x: Tensor, *, skip_fill: bool = False) -> Tensor:
    """`mean((x - mean)**4) / mean((x - mean)**2)**2`: 3 for Gaussian data, more with outliers.

    NaN for constant and empty tensors, and where NaN or Inf is present and not skipped.
    """
    x = _constant(x, "kurtosis")
    sums, counts = [], []
    for part in chunks(x):
        if skip_fill:
            part, found = _without_fill(part)
            counts.append(found)
        sums.append(part.sum(dtype=torch.float64))
    count = _sum(x, counts) if skip_fill else x.numel()
    mean = _sum(x, sums) / count
    squares, fourths = [], []
    for part in chunks(x):
        found = (part.double() - mean).square_()
        if skip_fill:
            found = torch.where(_is_data(part), found, 0.0)
        squares.append(found.sum())
        fourths.append(found.square_().sum())
    return count * _sum(x, fourths) / _sum(x, squares).square()


def sqnr_db(x: Tensor, x_rounded: Tensor) -> Tensor:
    """`20 log10(|x| / |x - x_rounded|)`, the signal to quantization noise ratio in dB.

    Inf where the two are equal, all zero included; -Inf if only x is zero; NaN for NaN or Inf.

    Raises:
        ValueError: the shapes differ.
    """
    x, x_rounded = _constant(x, "sqnr_db"), _constant(x_rounded, "sqnr_db")
    if x.shape != x_rounded.shape:
        raise ValueError(
            f"sqnr_db: x_rounded is {tuple(x_rounded.shape)}; expected x's shape {tuple(x.shape)}"
        )
    noises, signals = [], []
    for part, rounded in chunks_of(x, x_rounded):
        noises.append(torch.linalg.vector_norm(part.double() - rounded.double()))
        signals.append(torch.linalg.vector_norm(part, dtype=torch.float64))
    noise, signal = _norm(x, noises), _norm(x, signals)
    return torch.where(noise == 0, math.inf, 20 * torch.log10(signal / noise))


def flushed_fraction(x: Tensor, fmt: FloatFormat) -> Tensor:
    """Share of the elements that are not zero and that `fmt` rounds (to nearest) to zero."""
    x = _constant(x, "flushed_fraction")
    return _share(x, lambda part: (part != 0) & (round_to(part, fmt) == 0))


def subnormal_fraction(x: Tensor, fmt: FloatFormat) -> Tensor:
    """Share of the elements that `fmt` rounds to one of its subnormals, where precision is lost."""
    x = _constant(x, "subnormal_fraction")

    def is_subnormal(part: Tensor) -> Tensor:
        magnitude = round_to(part, fmt).double().abs()
        return (magnitude > 0) & (magnitude < fmt.min_normal)

    return _share(x, is_subnormal)


def saturated_fraction(x: Tensor, fmt: FloatFormat) -> Tensor:
    """Share of the elements with a magnitude above the largest of `fmt`, Inf included, NaN not."""
    x = _constant(x, "saturated_fraction")
    return _share(x, lambda part: part.double().abs() > fmt.max)


def exponent_histogram(x: Tensor) -> dict[int, int]:
    """How many elements have each `floor(log2 |x|)`, ascending; zero, Inf and NaN have none.

    Returns Python numbers, and so waits for the device.
    """
    x = _constant(x, "exponent_histogram")
    counts = torch.zeros(EXPONENTS, dtype=torch.int64, device=x.device)
    for part in chunks(x):
        # frexp has [0.5, 1) times 2**exponent. What has no exponent counts below the lowest.
        exponents = torch.frexp(part.double()).exponent - 1 - LOWEST
        place = torch.where(part.isfinite() & (part != 0), exponents + 1, 0).long().flatten()
        counts.scatter_add_(0, place, torch.ones_like(place))
    found = counts.tolist()
    return {LOWEST - 1 + i: n for i, n in enumerate(found) if i and n}


def _constant(x: Tensor, caller: str) -> Tensor:
    carrier(x.dtype, caller)
    return x.detach()


def _is_data(x: Tensor) -> Tensor:
    return x.float().abs() < FILL if x.dtype == torch.float16 else x.abs() < FILL


def _without_fill(x: Tensor) -> tuple[Tensor, Tensor]:
    """x with zeros for what is no data, and how many elements are data."""
    is_data = _is_data(x)
    return torch.where(is_data, x, 0.0), is_data.count_nonzero().double()


def _share(x: Tensor, choose: Callable[[Tensor], Tensor]) -> Tensor:
    """The share of the elements that are chosen."""
    counts = [choose(part).count_nonzero().double() for part in chunks(x)]
    return _sum(x, counts) / max(x.numel(), 1)


def _sum(x: Tensor, numbers: Sequence[Tensor]) -> Tensor:
    """The sum of float64 numbers, those of the chunks of x; 0 if there are none."""
    return torch.stack([*numbers]).sum() if numbers else x.new_zeros((), dtype=torch.float64)


def _norm(x: Tensor, norms: Sequence[Tensor]) -> Tensor:
    """The norm of a whole x from those of its chunks: no square of a float32 is past a float64."""
    return torch.linalg.vector_norm(torch.stack([*norms])) if norms else _sum(x, [])
