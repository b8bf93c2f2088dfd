"""Statistics of tensors that say how well a number format holds them."""

import warnings
from importlib import import_module
from typing import Any

from unitscale.numerics.digest import digest
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
from unitscale.numerics.survey import Survey, survey

__all__ = [
    "Survey",
    "amax",
    "digest",
    "exponent_histogram",
    "flushed_fraction",
    "kurtosis",
    "rms",
    "saturated_fraction",
    "sqnr_db",
    "subnormal_fraction",
    "survey",
]


def __getattr__(name: str) -> Any:
    """The recorder under its old name: recording moved to a room of its own, above this one."""
    if name not in ("Recorder", "record"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    message = f"unitscale.numerics.{name} is unitscale.record.{name} now"
    warnings.warn(message, DeprecationWarning, stacklevel=2)
    return getattr(import_module("unitscale.record"), name)
