"""Scale factors from shapes and closed forms, and the primitive that applies them.

`factors`, `quadrature` and `constraints` import no torch; the primitive does, and is loaded on
first use, so that the theory can be read and tested without it.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from unitscale.scaling import constraints, factors, quadrature

if TYPE_CHECKING:
    from unitscale.scaling.primitive import scale_bwd, scale_fwd, scaled

__all__ = ["constraints", "factors", "quadrature", "scale_bwd", "scale_fwd", "scaled"]


def __getattr__(name: str) -> Any:
    if name in {"scale_bwd", "scale_fwd", "scaled"}:
        return getattr(import_module("unitscale.scaling.primitive"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
