"""What each op of torch does to its argument, whatever units are: one row per op.

`units.ops` has the other half, what an op does to units. They are two tables because the room
`graph` is below `units` and needs its half without them (a recording has no units).
"""

import inspect
import operator
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch.nn.functional as F
from torch import fx

from unitscale.graph import dynamo
from unitscale.graph.name import op_name
from unitscale.graph.number import may_be_true

__all__ = [
    "EFFECTS",
    "IN_PLACE_OPERATORS",
    "Effect",
    "argument",
    "effect_of",
    "inplace_slot",
    "writes_input",
]

Slot = tuple[int, str]
"""Where an argument is: position and keyword."""


@dataclass(frozen=True, kw_only=True)
class Effect:
    """What an op does to its first argument, and its backward to a gradient.

    Args:
        may_return_input: where there is nothing to do it returns the tensor itself.
        has_method: `x.op_(...)` does to `x` what `x.op(...)` returns.
        from_result: done in place, its derivative is taken from what it wrote: the same function
            as that taken from the input, but another rounding.
        linear_backward: twice the gradient that comes in gives twice the one that goes out, to the
            bit, for powers of two. A backward that takes a logarithm or a matrix exponential of the
            gradient has no such law.
    """

    may_return_input: bool = False
    has_method: bool = False
    from_result: bool = False
    linear_backward: bool = True


IDLE = Effect(may_return_input=True)
METHOD = Effect(has_method=True)

EFFECTS: dict[str, Effect] = {
    # conversions
    **dict.fromkeys(("to", "float", "double", "half", "bfloat16", "type", "type_as"), IDLE),
    **dict.fromkeys(("cpu", "cuda", "to_dense", "getattr"), IDLE),
    # layout
    **dict.fromkeys(("contiguous", "reshape", "flatten", "ravel", "sum_to_size"), IDLE),
    **dict.fromkeys(("atleast_1d", "atleast_2d", "atleast_3d"), IDLE),
    # signs and conjugates
    **dict.fromkeys(("positive", "pos", "real", "conj", "resolve_conj", "resolve_neg"), IDLE),
    # dropout
    **dict.fromkeys(("dropout", "dropout1d", "dropout2d", "dropout3d"), IDLE),
    **dict.fromkeys(("alpha_dropout", "feature_dropout", "feature_alpha_dropout"), IDLE),
    # arithmetic
    **dict.fromkeys(("add", "sub", "mul", "div", "neg", "abs", "pow", "square"), METHOD),
    **dict.fromkeys(("sqrt", "rsqrt", "reciprocal", "exp", "log", "lerp"), METHOD),
    **dict.fromkeys(("addcmul", "addcdiv", "clamp", "clamp_min", "clamp_max"), METHOD),
    **dict.fromkeys(("addmm", "baddbmm", "addbmm", "addmv", "addr"), METHOD),
    # activations
    **dict.fromkeys(("sigmoid", "tanh", "relu"), METHOD),
    **dict.fromkeys(("elu", "celu", "selu"), Effect(from_result=True)),
    # masks and indices
    **dict.fromkeys(("masked_fill", "masked_scatter", "tril", "triu"), METHOD),
    **dict.fromkeys(("scatter", "scatter_add", "scatter_reduce"), METHOD),
    **dict.fromkeys(("index_add", "index_copy", "index_fill", "index_put"), METHOD),
    # backward passes that are no linear function of the gradient
    **dict.fromkeys(("matrix_exp", "linalg_matrix_exp"), Effect(linear_backward=False)),
    "logcumsumexp": Effect(linear_backward=False),
}

NOTHING = Effect()

MAY_DO_NOTHING = frozenset(name for name, row in EFFECTS.items() if row.may_return_input)
METHODS = frozenset(name for name, row in EFFECTS.items() if row.has_method)
FROM_RESULT = frozenset(name for name, row in EFFECTS.items() if row.from_result)

IN_PLACE_OPERATORS: dict[Any, Callable[..., Any]] = {
    operator.iadd: operator.add,
    operator.isub: operator.sub,
    operator.imul: operator.mul,
    operator.itruediv: operator.truediv,
}
"""`x += y` and its like, each with the operator that returns a new tensor."""


def effect_of(node: fx.Node) -> Effect:
    """The row of a node's op, whatever way it is called; one that does nothing if it has none."""
    name = str(node.target).split(".")[1] if dynamo.is_registered(node) else op_name(node)
    return EFFECTS.get(name.removesuffix("_"), NOTHING)


@cache
def inplace_slot(target: Any) -> Slot | None:
    """The argument by which a function of torch.nn.functional is told to write into its input.

    Read from its signature, so that every such function has it; an embedding with `max_norm` writes
    into its weight.
    """
    if target is F.embedding:
        return 3, "max_norm"
    if getattr(target, "__module__", "") != F.__name__:
        return None
    try:
        names = list(inspect.signature(target).parameters)
    except ValueError:  # written in C++: it has no such argument
        return None
    return (names.index("inplace"), "inplace") if "inplace" in names else None


def argument(node: fx.Node, slot: Slot) -> Any:
    """The argument of a call in a (position, keyword) slot, or None if the call leaves it out."""
    position, keyword = slot
    return node.args[position] if len(node.args) > position else node.kwargs.get(keyword)


def writes_input(node: fx.Node) -> bool:
    """Whether a call is told by an argument to write into its input, or may be."""
    slot = inplace_slot(node.target) if node.op == "call_function" else None
    return may_be_true(argument(node, slot) if slot else node.kwargs.get("inplace"))
