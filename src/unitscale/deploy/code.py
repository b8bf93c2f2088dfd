"""Weights as the codes that a file holds, and back."""

import torch
from torch import Tensor

from unitscale.formats import E4M3FN

__all__ = ["encode", "values"]

CODE = torch.float8_e4m3fn


def encode(weight: Tensor, log2: int) -> Tensor:
    """The E4M3FN codes of `weight / 2**log2`, to nearest even, saturating; NaN stays NaN.

    Computed in float32, where the division by a power of two is exact.
    """
    scaled = weight.detach().float() * 2.0**-log2
    return scaled.clamp(-E4M3FN.max, E4M3FN.max).to(CODE)


def values(weight: Tensor, log2: int) -> Tensor:
    """What a weight is worth after rounding at a unit, in float32."""
    return encode(weight, log2).float() * 2.0**log2
