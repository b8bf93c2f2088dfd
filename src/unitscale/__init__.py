"""Unit-scaled low-precision training for PyTorch.

Everything is imported on first use: `import unitscale` costs milliseconds and imports no torch,
so the command line can print its help, and the torch-free theory can be used, without it.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from . import (
        data,
        formats,
        functional,
        gemm,
        models,
        nn,
        numerics,
        optim,
        recipes,
        record,
        report,
        scaling,
        train,
        units,
    )
    from .scaling import scale_bwd, scale_fwd, scaled
    from .units import apply_recipe, recalibrate, unit_scale

__all__ = [
    "__version__",
    "apply_recipe",
    "data",
    "formats",
    "functional",
    "gemm",
    "models",
    "nn",
    "numerics",
    "optim",
    "recalibrate",
    "recipes",
    "record",
    "report",
    "scale_bwd",
    "scale_fwd",
    "scaled",
    "scaling",
    "train",
    "unit_scale",
    "units",
]

_HOMES = {
    "apply_recipe": "units",
    "recalibrate": "units",
    "scale_bwd": "scaling",
    "scale_fwd": "scaling",
    "scaled": "scaling",
    "unit_scale": "units",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if home := _HOMES.get(name):
        return getattr(import_module(f".{home}", __name__), name)
    return import_module(f".{name}", __name__)


def __dir__() -> list[str]:
    return __all__
