"""Statistics of one tensor: its scale, its tails, and what a number format would do to it.

Every function takes a float64, float32, bfloat16 or float16 tensor (else TypeError), treats it as
a constant, works in float64, and returns a 0-dim float64 tensor on its device, so that nothing
waits for the device until the number is read. A magnitude or share of an empty tensor is 0.
"""

import math

import torch
from torch import Tensor

from unitscale.formats.dtypes import carrier
from unitscale.formats.format import FloatFormat
from unitscale.formats.rounding import round_to

FILL = 2.0**64  # magnitudes from here on are fill values, such as a mask's finfo.min, not data


def rms(x: Tensor, *, skip_fill: bool = False) -> Tensor:
    """`sqrt(mean(x**2))`, without over- or underflow for any float32 values.

    NaN gives NaN and Inf gives Inf, unless `skip_fill`: then NaN, Inf and magnitudes of `2**64` and
    more are left out, as in all functions here that take it. (A float16 mask of -65504 is not.)
    """
    x = _constant(x, "rms")
    if skip_fill:
        x, count = _without_fill(x)
    else:
        count = x.new_tensor(x.numel(), dtype=torch.float64)
    return torch.linalg.vector_norm(x, dtype=torch.float64) / count.clamp(min=1).sqrt()


def amax(x: Tensor, *, skip_fill: bool = False) -> Tensor:
    """`max(|x|)`; NaN gives NaN, unless `skip_fill`."""
    x = _constant(x, "amax")
    if skip_fill:
        x, _ = _without_fill(x)
    if x.numel() == 0:
        return x.new_zeros((), dtype=torch.float64)
    low, high = x.aminmax()
    return torch.maximum(high, -low).double()


def kurtosis(x: Tensor, *, skip_fill: bool = False) -> Tensor:
    """`mean((x - mean)**4) / mean((x - mean)**2)**2`: 3 for Gaussian data, more with outliers.

    NaN for constant and empty tensors, and where NaN or Inf is present and not skipped. With
    `skip_fill` this function needs the data's number and so waits for the device.
    """
    x = _constant(x, "kurtosis")
    if skip_fill:
        x = x[_is_data(x)]
    squares = (x.double() - x.double().mean()).square()
    return squares.square().mean() / squares.mean().square()


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
    noise = torch.linalg.vector_norm(x.double() - x_rounded.double())
    signal = torch.linalg.vector_norm(x, dtype=torch.float64)
    return torch.where(noise == 0, math.inf, 20 * torch.log10(signal / noise))


def flushed_fraction(x: Tensor, fmt: FloatFormat) -> Tensor:
    """Share of the elements that are not zero and that `fmt` rounds (to nearest) to zero."""
    x = _constant(x, "flushed_fraction")
    return _share((x != 0) & (round_to(x, fmt) == 0))


def subnormal_fraction(x: Tensor, fmt: FloatFormat) -> Tensor:
    """Share of the elements that `fmt` rounds to one of its subnormals, where precision is lost."""
    x = _constant(x, "subnormal_fraction")
    magnitude = round_to(x, fmt).double().abs()
    return _share((magnitude > 0) & (magnitude < fmt.min_normal))


def saturated_fraction(x: Tensor, fmt: FloatFormat) -> Tensor:
    """Share of the elements with a magnitude above the largest of `fmt`, Inf included, NaN not."""
    x = _constant(x, "saturated_fraction")
    return _share(x.double().abs() > fmt.max)


def exponent_histogram(x: Tensor) -> dict[int, int]:
    """How many elements have each `floor(log2 |x|)`, ascending; zero, Inf and NaN have none.

    Returns Python numbers, and so waits for the device.
    """
    x = _constant(x, "exponent_histogram")
    exponents = torch.frexp(x[x.isfinite() & (x != 0)].double()).exponent - 1
    found, counts = exponents.unique(return_counts=True)
    return dict(zip(found.tolist(), counts.tolist(), strict=True))


def _constant(x: Tensor, caller: str) -> Tensor:
    carrier(x.dtype, caller)
    return x.detach()


def _is_data(x: Tensor) -> Tensor:
    return x.float().abs() < FILL if x.dtype == torch.float16 else x.abs() < FILL


def _without_fill(x: Tensor) -> tuple[Tensor, Tensor]:
    """x with zeros for what is no data, and how many elements are data."""
    is_data = _is_data(x)
    return torch.where(is_data, x, 0.0), is_data.count_nonzero().double()


def _share(chosen: Tensor) -> Tensor:
    return chosen.count_nonzero().double() / max(chosen.numel(), 1)
