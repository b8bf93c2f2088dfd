"""Training frameworks: what each takes to run a model under a recipe, and to keep its units.

Each name is imported on first use, with the framework that it is for.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from unitscale.integrations.accelerate import prepare
    from unitscale.integrations.lightning import LightningPrecision
    from unitscale.integrations.torchtitan import TorchtitanConverter
    from unitscale.integrations.trainer import KeepUnits

__all__ = ["KeepUnits", "LightningPrecision", "TorchtitanConverter", "prepare"]

_HOMES = {
    "KeepUnits": "trainer",
    "LightningPrecision": "lightning",
    "TorchtitanConverter": "torchtitan",
    "prepare": "accelerate",
}
"""The file that defines each name."""


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return __all__
