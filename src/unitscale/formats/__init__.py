"""Number formats: what a number is, and rounding to it.

Importing this package imports no torch; `round_to` and the codes bring it in on first use.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from unitscale.formats.catalogue import (
    BF16,
    E2M1FN,
    E2M3FN,
    E3M2FN,
    E3M4,
    E4M3,
    E4M3B11FNUZ,
    E4M3FN,
    E4M3FNUZ,
    E5M2,
    E5M2FNUZ,
    E8M0FNU,
    FORMATS,
    FP16,
    FP32,
    FP64,
    TF32,
    parse,
)
from unitscale.formats.format import FloatFormat, Specials

if TYPE_CHECKING:
    from unitscale.formats.codes import decode, encode, widen
    from unitscale.formats.dtypes import torch_dtype
    from unitscale.formats.rounding import round_to

_NEEDS_TORCH = {
    "decode": "codes",
    "encode": "codes",
    "round_to": "rounding",
    "torch_dtype": "dtypes",
    "widen": "codes",
}

__all__ = [
    "BF16",
    "E2M1FN",
    "E2M3FN",
    "E3M2FN",
    "E3M4",
    "E4M3",
    "E4M3B11FNUZ",
    "E4M3FN",
    "E4M3FNUZ",
    "E5M2",
    "E5M2FNUZ",
    "E8M0FNU",
    "FORMATS",
    "FP16",
    "FP32",
    "FP64",
    "TF32",
    "FloatFormat",
    "Specials",
    "decode",
    "encode",
    "parse",
    "round_to",
    "torch_dtype",
    "widen",
]


def __getattr__(name: str) -> Any:
    if name not in _NEEDS_TORCH:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_NEEDS_TORCH[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
