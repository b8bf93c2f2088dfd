"""Weights as the codes that a file holds, and back."""

import torch
from torch import Tensor

from unitscale.formats import E4M3FN

__all__ = ["CODE", "INPUT_LOG2", "WEIGHT_LOG2", "encode", "is_sound", "unit_fault", "values"]

CODE = torch.float8_e4m3fn

WEIGHT_LOG2 = (-15, 7)
"""Of the units of weights. Servers that join weights bring them to one scale in float16, which is
exact between these."""

INPUT_LOG2 = (-117, 119)
"""Of the units of inputs: from 2**-9, the smallest code, to 448, the largest, everything that a
code is worth is a normal number of float32 and of bfloat16."""


def unit_fault(log2: int, limits: tuple[int, int]) -> str | None:
    """What is wrong with a unit 2**log2, if anything is."""
    low, high = limits
    if low <= log2 <= high:
        return None
    return f"2^{log2}; expected 2^{low} to 2^{high}"


def encode(weight: Tensor, log2: int) -> Tensor:
    """The E4M3FN codes of `weight / 2**log2`, to nearest even, saturating; NaN stays NaN.

    Computed in float32, where the division by a power of two is exact.
    """
    scaled = weight.detach().float() * 2.0**-log2
    return scaled.clamp(-E4M3FN.max, E4M3FN.max).to(CODE)


def values(weight: Tensor, log2: int) -> Tensor:
    """What a weight is worth after rounding at a unit, in float32."""
    return encode(weight, log2).float() * 2.0**log2


def is_sound(value: Tensor, *, may_be_infinite: bool) -> bool:
    """Whether a tensor holds no NaN, nor an infinity, unless it may: a mask in a buffer does."""
    if not value.is_floating_point():
        return True
    wide = value.float() if value.element_size() == 1 else value  # few ops take float8
    found = ~torch.isnan(wide) if may_be_infinite else torch.isfinite(wide)
    return bool(found.all())
