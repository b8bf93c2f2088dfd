"""Statistics of tensors that say how well a number format holds them."""

from unitscale.numerics.statistics import (
    amax,
    exponent_histogram,
    flushed_fraction,
    kurtosis,
    rms,
    saturated_fraction,
    sqnr_db,
    subnormal_fraction,
)

__all__ = [
    "amax",
    "exponent_histogram",
    "flushed_fraction",
    "kurtosis",
    "rms",
    "saturated_fraction",
    "sqnr_db",
    "subnormal_fraction",
]
