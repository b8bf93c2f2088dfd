"""Formats and codecs as constants of a compiled function.

Dynamo takes an integer that differs from call to call for a variable, and those of a format are
such: `mantissa_bits` of the second format that a function is compiled for becomes a symbol, which
no formula can shift by, and the function cannot be compiled. What hangs on a global it takes for a
constant. So a format is looked up there, under a name that is found while compiling. It is a copy:
an object that Dynamo has met before it keeps under the name by which it met it.
"""

import copy
from typing import Any, TypeVar

import torch

__all__ = ["as_constant"]

T = TypeVar("T")
"""A FloatFormat, BlockFormat or Codec: frozen, so that one name is for equal ones."""


class Known:
    """What functions were compiled for, each an attribute with a name of its own."""


KNOWN = Known()
NAMES: dict[Any, str] = {}

GUARDS_OBJECTS = torch.__version__ >= "2.13"
"""Whether Dynamo compiles again for another object that a constant was made of."""


def as_constant(x: T) -> T:
    """`x`, whose fields Dynamo takes for constants; the compiled function is for it alone."""
    if not (GUARDS_OBJECTS and torch.compiler.is_compiling()):
        return x
    name = name_of(x)
    found: T = getattr(KNOWN, name) if name else x
    return found


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]  # torch has no types here
def name_of(x: Any) -> str:
    """Under which name `x` is known; none of what is made in a graph and has no fields yet."""
    if not getattr(x, "__dict__", None):
        return ""
    if x not in NAMES:
        NAMES[x] = f"{type(x).__name__}{len(NAMES)}"
        setattr(KNOWN, NAMES[x], copy.deepcopy(x))
    return NAMES[x]
