"""What hooks of torch's optimizers do not tell: that a step has raised, and that it is copied."""

import functools
from collections.abc import Callable
from types import MethodType
from typing import Any

import torch

__all__ = ["guard"]


def guard(optimizer: torch.optim.Optimizer, after_error: Callable[[], None], no_copy: str) -> None:
    """Call `after_error` when a step raises, which torch has no hook for, and refuse copies.

    Both are attributes of this very optimizer. Schedulers put a `step` of their own there too, and
    take a bound method alone.

    Args:
        no_copy: why it is not copied or pickled.
    """
    step = optimizer.step

    @functools.wraps(step)
    def guarded(self: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            return step(*args, **kwargs)
        except BaseException:
            after_error()
            raise

    def refuse() -> None:
        raise TypeError(no_copy)

    given: dict[str, Any] = optimizer.__dict__
    given["step"] = MethodType(guarded, optimizer)
    given["__getstate__"] = refuse
