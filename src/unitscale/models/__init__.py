"""Models written once and built in two parametrizations, standard and unit-scaled.

`CharLMConfig` costs no import of torch, so that a command line can check its arguments first.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .config import CharLMConfig

if TYPE_CHECKING:
    from .charlm import CharLM

__all__ = ["CharLM", "CharLMConfig"]


def __getattr__(name: str) -> Any:
    if name == "CharLM":
        return import_module(".charlm", __name__).CharLM
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
