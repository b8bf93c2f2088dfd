"""Statistics of tensors that say how well a number format holds them."""

from unitscale.numerics.digest import digest
from unitscale.numerics.record import Recorder, record
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
    "Recorder",
    "amax",
    "digest",
    "exponent_histogram",
    "flushed_fraction",
    "kurtosis",
    "record",
    "rms",
    "saturated_fraction",
    "sqnr_db",
    "subnormal_fraction",
]
