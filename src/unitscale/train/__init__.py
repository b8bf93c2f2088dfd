"""Training runs: what they compute, the loop, and the folders they leave behind.

The configuration costs no import of torch, so that a command line can check its arguments first.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from unitscale.train.config import TrainConfig
from unitscale.train.run_folder import CheckpointError
from unitscale.train.spread import RankError, Spread

if TYPE_CHECKING:
    from unitscale.train.comparison import compare
    from unitscale.train.loop import train
    from unitscale.train.result import RunResult

__all__ = [
    "CheckpointError",
    "RankError",
    "RunResult",
    "Spread",
    "TrainConfig",
    "compare",
    "train",
]

_NEEDS_TORCH = {"RunResult": "result", "compare": "comparison", "train": "loop"}


def __getattr__(name: str) -> Any:
    if home := _NEEDS_TORCH.get(name):
        return getattr(import_module(f".{home}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
