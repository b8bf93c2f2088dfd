"""An existing model to a unit-scaled one: capture, calibrate, assign, rewrite, execute.

The package can be called: `us.units(model)` gives a scaled model's rows.
"""

import sys
from types import ModuleType
from typing import Any

from unitscale.units.api import (
    apply_recipe,
    backend,
    load_units,
    measure,
    measured,
    recalibrate,
    rows,
    save_units,
    unit_scale,
)
from unitscale.units.assign import Unit
from unitscale.units.ops import INSIDE
from unitscale.units.row import UnitRow

__all__ = [
    "INSIDE",
    "Unit",
    "UnitRow",
    "apply_recipe",
    "backend",
    "load_units",
    "measure",
    "measured",
    "recalibrate",
    "rows",
    "save_units",
    "unit_scale",
]


class CallableModule(ModuleType):
    """Lets `us.units` be both this package and the function the design gives that name."""

    def __call__(self, model: Any) -> list[UnitRow]:
        return rows(model)


sys.modules[__name__].__class__ = CallableModule
