"""What a rounding loses of a tensor, and how far one result is from another, as numbers to read.

Nothing here waits for the device: many of these small tensors are read together.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from unitscale.numerics.digest import norm_of

__all__ = ["Lost", "lost_by", "relative_error", "sizes"]

EDGE = 1 - 2.0**-20
"""A magnitude is past the largest value only if it is so by more than the error of its scale."""


class Lost(NamedTuple):
    """What a rounding makes of one tensor.

    Args:
        sqnr_db: `20 log10(|x| / |x - x_rounded|)`; None if the two are equal, or not finite.
        flushed: share of the elements that are not zero and become zero.
        saturated: share of those beyond the largest value.
    """

    sqnr_db: float | None
    flushed: float
    saturated: float

    @classmethod
    def of(cls, numbers: Sequence[float], count: int) -> "Lost":
        """From the four numbers of `lost_by` for a tensor of `count` elements."""
        signal, noise, flushed, saturated = numbers
        has_ratio = 0 < noise < math.inf and 0 < signal < math.inf
        return cls(
            20 * math.log10(signal / noise) if has_ratio else None,
            flushed / max(count, 1),
            saturated / max(count, 1),
        )


def lost_by(x: Tensor, rounded: Tensor, is_largest: Tensor) -> Tensor:
    """Norms of x and of the error, and how many elements become zero and how many saturate.

    Args:
        rounded: of the shape of x; a zero of x is zero in it.
        is_largest: where an element is held as the largest value of the format, or as infinity.
    """
    flushed = x.count_nonzero() - rounded.count_nonzero()
    magnitude, found = x.abs(), rounded.abs()
    beyond = is_largest & ((found < magnitude * EDGE) | (found > 2 * magnitude))
    return sizes(x, x - rounded, flushed, beyond.count_nonzero())


def sizes(x: Tensor, error: Tensor, *more: Tensor) -> Tensor:
    """Two norms, and some numbers beside them, in float64."""
    return torch.stack([*map(norm, (x, error)), *(number.double() for number in more)])


def norm(x: Tensor) -> Tensor:
    """The norm of all elements, whatever their order in memory."""
    is_swapped = x.dim() >= 2 and not x.is_contiguous() and x.mT.is_contiguous()
    return norm_of((x.mT if is_swapped else x).reshape(-1))


def relative_error(size: float, error: float) -> float | None:
    """`|error| / |x|` in the Frobenius norm; 0 if both are 0, and None if it is no number."""
    if error == 0:
        return 0.0
    ratio = error / size if size else math.inf
    return ratio if math.isfinite(ratio) else None
