"""Adapting a frozen model to shifted inputs as they arrive, under the recipe that it has.

`FOA` needs forward passes only, so it works on models in 8 and 6 bits; `T3A` and `TENT` are
beside it.
"""

from unitscale.adapt.foa import FOA, Step
from unitscale.adapt.parts import Parts
from unitscale.adapt.peak import peak_bytes
from unitscale.adapt.score import calibration_error
from unitscale.adapt.source import Source, measure_source
from unitscale.adapt.t3a import T3A
from unitscale.adapt.tent import TENT

__all__ = [
    "FOA",
    "T3A",
    "TENT",
    "Parts",
    "Source",
    "Step",
    "calibration_error",
    "measure_source",
    "peak_bytes",
]
