"""What other libraries put around a scaled model's forward, and what stays beside it.

Accelerate replaces `model.forward` by a function that casts and calls the one that was there; its
hooks by a `functools.partial`; a person by what they like. None of them may hide that the model is
scaled.
"""

import copy
from collections.abc import Iterator
from functools import partial
from types import FunctionType, MethodType
from typing import Any

__all__ = ["Stand", "is_method_of", "reaches"]


class Stand:
    """Keeps a model's forward where nobody replaces it.

    A copy of the model has a copy of it. In a pickle it is None: that is of a plain model.
    """

    def __init__(self, forward: Any) -> None:
        self.forward = forward

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        forward = copy.deepcopy(self.forward, memo)
        return self if forward is self.forward else Stand(forward)

    def __reduce__(self) -> Any:
        return type(None), ()


def is_method_of(found: Any, forward: Any) -> bool:
    """Whether something is a forward bound to its model anew, which adds nothing to it."""
    return isinstance(found, MethodType) and found.__func__ is forward


def reaches(around: Any, forward: Any) -> bool:
    """Whether calling one function may call another, by what it is made of.

    Seen are wrappers of functools, bound methods, partial functions, their arguments' attributes
    (Accelerate's hooks keep the forward in one of the model's), closures, and objects that hold it.
    """
    seen: set[int] = set()
    waiting = [around]
    while waiting:
        one = waiting.pop()
        if one is forward:
            return True
        if id(one) not in seen:
            seen.add(id(one))
            waiting += parts_of(one)
    return False


def parts_of(one: Any) -> Iterator[Any]:
    """What a callable is made of."""
    if isinstance(one, partial):
        yield one.func
        for bound in one.args:
            yield from vars(bound).values() if hasattr(bound, "__dict__") else ()
    elif isinstance(one, MethodType):
        yield one.__func__
        yield from vars(one.__self__).values() if hasattr(one.__self__, "__dict__") else ()
    elif isinstance(one, FunctionType):
        for cell in one.__closure__ or ():
            try:
                yield cell.cell_contents
            except ValueError:  # not filled yet
                continue
    if callable(one) and not isinstance(one, type):
        yield from getattr(one, "__dict__", {}).values()
