"""Let ops that write into a tensor return a new one, where nothing else can see the difference.

`x += y` on a tensor of the graph's own, which no view was taken of, computes the same as
`x = x + y`; a tensor that is written to could have no unit.
"""

import inspect
from collections.abc import Callable
from typing import Any

import torch.nn.functional as F
from torch import Tensor, fx

from unitscale.graph import dynamo
from unitscale.graph.dynamo import storage_id
from unitscale.graph.effect import FROM_RESULT, IN_PLACE_OPERATORS, METHODS, writes_input
from unitscale.graph.example import evaluate, storages
from unitscale.graph.name import op_name
from unitscale.graph.tensor import checkpointed

Call = tuple[Any, tuple[Any, ...], dict[str, Any]]
"""Target, arguments and keywords of a node."""


def return_new(graph: fx.Graph) -> None:
    """Replace the writes that can be replaced; those to inputs, views and aliases stay.

    So do those under `no_grad` to a tensor that has a gradient: the write is not in its history.
    And those to memory that an assignment writes to, `h[:, 1:] = 0`: it returns nothing, so that
    its example value does not tell of the write once the others are gone.
    """
    records, assigned = True, assigned_storages(graph)
    for node in list(graph.nodes):
        mode = dynamo.gradient_mode(node)
        records = records if mode is None else mode
        body = checkpointed(node)
        if body is not None:
            return_new(body.graph)
            body.recompile()
        call = out_of_place(node)
        if call is None or not (records or is_constant(node)):
            continue
        if storages(dynamo.example(node)) & assigned:
            continue
        shared = sharing(node.args[0], node)
        if shared is not None:
            replace(node, call, shared)


def assigned_storages(graph: fx.Graph) -> set[int]:
    """The memory that nodes write to which return no tensor."""
    silent = (
        node
        for node in graph.nodes
        if node.op.startswith("call_")
        and (op_name(node) in ASSIGNMENTS or op_name(node).endswith("_"))
        and not storages(dynamo.example(node))
    )
    taken = (dynamo.example(x) for node in silent for x in node.all_input_nodes)
    return {memory for value in taken for memory in storages(value)} - {0}


ASSIGNMENTS = ("setitem", "__setitem__")
"""What `h[index] = value` is in a graph; other ops that write end in an underscore."""


def is_constant(node: fx.Node) -> bool:
    """Whether no gradient reaches the tensor that a node writes."""
    value = dynamo.example(node)
    return isinstance(value, Tensor) and not value.requires_grad


def out_of_place(node: fx.Node) -> Call | None:
    """The call that returns what this one writes; None if there is none."""
    if not node.op.startswith("call_") or not node.args or node.kwargs.get("out") is not None:
        return None
    if node.target in IN_PLACE_OPERATORS:
        return IN_PLACE_OPERATORS[node.target], node.args, node.kwargs
    if node.op == "call_method":
        name = str(node.target).removesuffix("_")
        return (name, node.args, node.kwargs) if name != node.target and name in METHODS else None
    function: Any = node.target
    if getattr(function, "__module__", "") != F.__name__ or not writes_input(node):
        return None
    given = inspect.signature(function).bind(*node.args, **node.kwargs)
    if given.arguments.get("inplace") is not True:  # an embedding's weight; a flag that may change
        return None
    if op_name(node) in FROM_RESULT:
        return OF_A_COPY[function], given.args, given.kwargs
    given.arguments["inplace"] = False
    return function, given.args, given.kwargs


def elu(input: Tensor, alpha: float = 1.0, inplace: bool = True) -> Tensor:
    """`F.elu` in place on a copy: a new tensor, with the derivative of the write."""
    return F.elu(input.clone(), alpha, inplace=inplace)


def celu(input: Tensor, alpha: float = 1.0, inplace: bool = True) -> Tensor:
    """`F.celu` in place on a copy, see `elu`."""
    return F.celu(input.clone(), alpha, inplace=inplace)


def selu(input: Tensor, inplace: bool = True) -> Tensor:
    """`F.selu` in place on a copy, see `elu`."""
    return F.selu(input.clone(), inplace=inplace)


OF_A_COPY: dict[Callable[..., Any], Callable[..., Tensor]] = {
    F.elu: elu,
    F.celu: celu,
    F.selu: selu,
}
"""Functions whose derivative, done in place, is taken from what they wrote (`effect.Effect`)."""


def sharing(x: Any, node: fx.Node) -> list[fx.Node] | None:
    """The nodes before `node` with the memory of `x`, if the graph made it and only `x` is read.

    None otherwise: something could see that `node` did not write there.
    """
    if not isinstance(x, fx.Node):
        return None
    memory, found = storage_id(dynamo.example(x)), []
    for other in x.graph.nodes:
        if other is node:
            break
        if memory in storages(dynamo.example(other)):
            found.append(other)
    made_here = memory != 0 and all(other.op.startswith("call_") for other in found)
    others = [other for other in found if other is not x]
    if made_here and all(is_only_passed_on(other, found, memory) for other in others):
        return found
    return None


def is_only_passed_on(node: fx.Node, found: list[fx.Node], memory: int) -> bool:
    """Whether all that becomes of a tensor is its views, and of a tuple its elements."""
    is_tuple = isinstance(dynamo.example(node), tuple | list)
    return all(
        user in found or (is_tuple and memory not in storages(dynamo.example(user)))
        for user in node.users
    )


def replace(node: fx.Node, call: Call, shared: list[fx.Node]) -> None:
    """Put the op that returns a new tensor in the place of one that writes into its argument."""
    graph, x, written = node.graph, node.args[0], dynamo.example(node)
    assert isinstance(x, fx.Node)
    with graph.inserting_before(node):
        new = graph.create_node(node.op, *call)
    new.meta = dict(node.meta)
    dynamo.set_example(new, evaluate(new, written))
    if not is_like(dynamo.example(new), written):  # in another dtype, say
        graph.erase_node(new)
        return
    nodes = list(graph.nodes)
    later = nodes[nodes.index(node) + 1 :]
    for user in [n for n in later if n in x.users]:
        user.replace_input_with(x, new)
    node.replace_all_uses_with(new)
    graph.erase_node(node)
    for other in shared:
        value, is_view = dynamo.example(other), not made_it(other, shared)
        dynamo.set_example(other, evaluate(other, value) if is_view else unwritten(value))
    memory = storage_id(written)
    for other in later:
        value = dynamo.example(other)
        if other.op != "output" and memory in storages(value):
            dynamo.set_example(other, evaluate(other, value))


def made_it(node: fx.Node, shared: list[fx.Node]) -> bool:
    """Whether a node made the memory that others share: no view of it, nor an element."""
    return not any(x in shared for x in node.all_input_nodes)


def unwritten(value: Any) -> Any:
    """An example value like this one, a tensor or a tuple, to which nothing was written."""
    if isinstance(value, tuple | list):
        return tuple(map(unwritten, value))
    if not isinstance(value, Tensor):
        return value
    with dynamo.running_fake(value):
        return value.clone()


def is_like(value: Tensor, other: Tensor) -> bool:
    """Whether two tensors differ in their values at most."""
    return (value.dtype, value.shape, value.stride()) == (other.dtype, other.shape, other.stride())
