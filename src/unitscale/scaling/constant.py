"""Numbers that stay numbers while a graph is traced.

Quadrature is numpy over Python numbers. A tracer must not look into it, and cannot run it on a
symbolic number; both are settled here, without torch.
"""

import math
from collections.abc import Callable
from functools import cache, wraps
from typing import ParamSpec, TypeVar

__all__ = ["constant", "evaluated_once"]

P = ParamSpec("P")
R = TypeVar("R")


def constant(number: float) -> float:
    """`number` as a plain float.

    Under dynamic shapes Dynamo makes even a default argument symbolic; `fsum`, which it does not
    trace, has it fix the value and guard on it.
    """
    return math.fsum((number,))


def evaluated_once(rule: Callable[P, R]) -> Callable[P, R]:
    """Remember the results of `rule`.

    Unlike `functools.cache` alone, which Dynamo ignores with a warning, the result is an ordinary
    function, so that `torch.compiler.assume_constant_result` holds for it.
    """
    cached = cache(rule)

    @wraps(rule)
    def remembered(*args: P.args, **kwargs: P.kwargs) -> R:
        return cached(*args, **kwargs)  # type: ignore[arg-type]  # all are hashable

    return remembered
