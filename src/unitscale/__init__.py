"""Unit-scaled low-precision training for PyTorch.

Everything is imported on first use: `import unitscale` costs milliseconds and imports no torch,
so the command line can print its help, and the torch-free theory can be used, without it. Not even
`typing` is: Ctrl-C within its import, before the command line is there, would print a traceback.
"""

__version__ = "0.1.0"

TYPE_CHECKING = False  # type checkers take it for true

if TYPE_CHECKING:
    from typing import Any

    from . import (
        adapt,
        compress,
        data,
        deploy,
        distributed,
        formats,
        functional,
        gemm,
        growth,
        integrations,
        laws,
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
    from .nn import Parameter
    from .recipes import parse as recipe
    from .scaling import scale_bwd, scale_fwd, scaled
    from .units import (
        apply_recipe,
        coverage,
        full_precision,
        load_units,
        recalibrate,
        save_units,
        saved_tensors,
        set_recipe,
        share_units,
        summary,
        unit_scale,
        unscale,
    )
    from .units import rows as unit_rows

__all__ = [
    "Parameter",
    "__version__",
    "adapt",
    "apply_recipe",
    "compress",
    "coverage",
    "data",
    "deploy",
    "distributed",
    "formats",
    "full_precision",
    "functional",
    "gemm",
    "growth",
    "integrations",
    "laws",
    "load_units",
    "models",
    "nn",
    "numerics",
    "optim",
    "recalibrate",
    "recipe",
    "recipes",
    "record",
    "report",
    "save_units",
    "saved_tensors",
    "scale_bwd",
    "scale_fwd",
    "scaled",
    "scaling",
    "set_recipe",
    "share_units",
    "summary",
    "train",
    "unit_rows",
    "unit_scale",
    "units",
    "unscale",
]

_HOMES = {
    "Parameter": "nn",
    "apply_recipe": "units",
    "coverage": "units",
    "full_precision": "units",
    "load_units": "units",
    "recalibrate": "units",
    "recipe": "recipes.parse",
    "save_units": "units",
    "saved_tensors": "units",
    "share_units": "units",
    "scale_bwd": "scaling",
    "scale_fwd": "scaling",
    "scaled": "scaling",
    "set_recipe": "units",
    "summary": "units",
    "unit_rows": "units.rows",
    "unit_scale": "units",
    "unscale": "units",
}
"""Where a name of this module is defined: a room, or a room and the name that it has there."""


def __getattr__(name: str) -> "Any":
    from importlib import import_module

    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if home := _HOMES.get(name):
        room, _, own = home.partition(".")
        return getattr(import_module(f".{room}", __name__), own or name)
    return import_module(f".{name}", __name__)


def __dir__() -> list[str]:
    return __all__
