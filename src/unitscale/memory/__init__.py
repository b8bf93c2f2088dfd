"""A run on paper: the bytes that each process would hold, from shapes alone."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from unitscale.memory.states import STATES, StateBytes, state_bytes

if TYPE_CHECKING:
    from unitscale.memory.plan import Plan, plan_memory

__all__ = ["STATES", "Plan", "StateBytes", "plan_memory", "state_bytes"]

_NEEDS_TORCH = {"Plan": "plan", "plan_memory": "plan"}


def __getattr__(name: str) -> Any:
    if home := _NEEDS_TORCH.get(name):
        return getattr(import_module(f".{home}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
