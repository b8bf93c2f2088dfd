"""Let ops that write into a tensor return a new one, where nothing else can see the difference.

`x += y` on a tensor of the graph's own, which no view was taken of, computes the same as
`x = x + y`; a tensor that is written to could have no unit.
"""

import inspect
import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx
from torch._dispatch.python import enable_python_dispatcher

from unitscale.graph.capture import checkpointed
from unitscale.graph.example import evaluate, storage_id, storages

OPERATORS: dict[Any, Callable[..., Any]] = {
    operator.iadd: operator.add,
    operator.isub: operator.sub,
    operator.imul: operator.mul,
    operator.itruediv: operator.truediv,
}

METHODS = (
    *("add", "sub", "mul", "div", "neg", "abs", "pow", "square", "sqrt", "rsqrt", "reciprocal"),
    *("exp", "log", "sigmoid", "tanh", "relu", "leaky_relu", "clamp", "clamp_min", "clamp_max"),
    *("masked_fill", "addcmul", "addcdiv", "lerp", "tril", "triu"),
    *("scatter", "scatter_add", "scatter_reduce", "index_add", "index_copy", "index_fill"),
    *("index_put", "masked_scatter"),
)
"""Those that have a form `x.op_(...)`, which does to `x` what `x.op(...)` returns."""

Call = tuple[Any, tuple[Any, ...], dict[str, Any]]
"""Target, arguments and keywords of a node."""


def return_new(graph: fx.Graph) -> None:
    """Replace the writes that can be replaced; those to inputs, views and aliases stay.

    So do those under `no_grad` to a tensor that has a gradient: the write is not in its history.
    """
    records = True
    for node in list(graph.nodes):
        if node.target is torch._C._set_grad_enabled:
            records = bool(node.args[0])
        body = checkpointed(node)
        if body is not None:
            return_new(body.graph)
            body.recompile()
        call = out_of_place(node)
        if call is None or not (records or is_constant(node)):
            continue
        shared = sharing(node.args[0], node)
        if shared is not None:
            replace(node, call, shared)


def is_constant(node: fx.Node) -> bool:
    """Whether no gradient reaches the tensor that a node writes."""
    value = node.meta.get("example_value")
    return isinstance(value, Tensor) and not value.requires_grad


def out_of_place(node: fx.Node) -> Call | None:
    """The call that returns what this one writes; None if there is none."""
    if not node.op.startswith("call_") or not node.args or node.kwargs.get("out") is not None:
        return None
    if node.target in OPERATORS:
        return OPERATORS[node.target], node.args, node.kwargs
    if node.op == "call_method":
        name = str(node.target).removesuffix("_")
        return (name, node.args, node.kwargs) if name != node.target and name in METHODS else None
    if getattr(node.target, "__module__", "") != "torch.nn.functional":
        return None
    given = inspect.signature(node.target).bind(*node.args, **node.kwargs)  # type: ignore[arg-type]
    if not given.arguments.get("inplace"):
        return None
    given.arguments["inplace"] = False
    return node.target, given.args, given.kwargs


def sharing(x: Any, node: fx.Node) -> list[fx.Node] | None:
    """The nodes before `node` with the memory of `x`, if the graph made it and only `x` is read.

    None otherwise: something could see that `node` did not write there.
    """
    if not isinstance(x, fx.Node):
        return None
    memory, found = storage_id(x.meta["example_value"]), []
    for other in x.graph.nodes:
        if other is node:
            break
        if memory in storages(other.meta.get("example_value")):
            found.append(other)
    made_here = memory != 0 and all(other.op.startswith("call_") for other in found)
    others = [other for other in found if other is not x]
    if made_here and all(is_only_passed_on(other, found, memory) for other in others):
        return found
    return None


def is_only_passed_on(node: fx.Node, found: list[fx.Node], memory: int) -> bool:
    """Whether all that becomes of a tensor is its views, and of a tuple its elements."""
    is_tuple = isinstance(node.meta["example_value"], tuple | list)
    return all(
        user in found or (is_tuple and memory not in storages(user.meta.get("example_value")))
        for user in node.users
    )


def replace(node: fx.Node, call: Call, shared: list[fx.Node]) -> None:
    """Put the op that returns a new tensor in the place of one that writes into its argument."""
    graph, x, written = node.graph, node.args[0], node.meta["example_value"]
    assert isinstance(x, fx.Node)
    with graph.inserting_before(node):
        new = graph.create_node(node.op, *call)
    new.meta = {**node.meta, "example_value": evaluate(new, written)}
    if not is_like(new.meta["example_value"], written):  # in another dtype, say
        graph.erase_node(new)
        return
    nodes = list(graph.nodes)
    later = nodes[nodes.index(node) + 1 :]
    for user in [n for n in later if n in x.users]:
        user.replace_input_with(x, new)
    node.replace_all_uses_with(new)
    graph.erase_node(node)
    for other in shared:
        value, is_view = other.meta["example_value"], not made_it(other, shared)
        other.meta["example_value"] = evaluate(other, value) if is_view else unwritten(value)
    memory = storage_id(written)
    for other in later:
        value = other.meta.get("example_value")
        if other.op != "output" and memory in storages(value):
            other.meta["example_value"] = evaluate(other, value)


def made_it(node: fx.Node, shared: list[fx.Node]) -> bool:
    """Whether a node made the memory that others share: no view of it, nor an element."""
    return not any(x in shared for x in node.all_input_nodes)


def unwritten(value: Any) -> Any:
    """An example value like this one, a tensor or a tuple, to which nothing was written."""
    if isinstance(value, tuple | list):
        return tuple(map(unwritten, value))
    if not isinstance(value, Tensor):
        return value
    fake: Any = value
    with fake.fake_mode, enable_python_dispatcher():
        return value.clone()


def is_like(value: Tensor, other: Tensor) -> bool:
    """Whether two tensors differ in their values at most."""
    return (value.dtype, value.shape, value.stride()) == (other.dtype, other.shape, other.stride())
