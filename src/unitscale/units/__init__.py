"""An existing model to a unit-scaled one: capture, calibrate, assign, rewrite, execute.

The package can be called, as long as the old name of `us.unit_rows` is kept: `us.units(model)`.
"""

import sys
import warnings
from types import ModuleType
from typing import Any

from unitscale.units.account import SavedTensor, SavedTensors, saved_tensors
from unitscale.units.api import (
    apply_recipe,
    backend,
    coverage,
    full_precision,
    measure,
    measured,
    recalibrate,
    rows,
    set_recipe,
    share_units,
    summary,
    unit_scale,
    unscale,
)
from unitscale.units.assign import Unit
from unitscale.units.file import load_units, save_units
from unitscale.units.layer_unit import LayerUnit, give_units, layer_units, recipe_of
from unitscale.units.ops import INSIDE
from unitscale.units.overview import Summary
from unitscale.units.placing import fused_weights
from unitscale.units.row import UnitRow

__all__ = [
    "INSIDE",
    "LayerUnit",
    "SavedTensor",
    "SavedTensors",
    "Summary",
    "Unit",
    "UnitRow",
    "apply_recipe",
    "backend",
    "coverage",
    "full_precision",
    "fused_weights",
    "give_units",
    "layer_units",
    "load_units",
    "measure",
    "measured",
    "recalibrate",
    "recipe_of",
    "rows",
    "save_units",
    "saved_tensors",
    "set_recipe",
    "share_units",
    "summary",
    "unit_scale",
    "unscale",
]


class CallableModule(ModuleType):
    """Lets `us.units` be both this package and the function the design gives that name."""

    def __call__(self, model: Any) -> list[UnitRow]:
        """The rows of a scaled model, as `us.unit_rows`, which type checkers see."""
        warnings.warn(
            "us.units(model) is us.unit_rows(model) now", DeprecationWarning, stacklevel=2
        )
        return rows(model)


sys.modules[__name__].__class__ = CallableModule
