"""The tensors of a captured graph: which may have a unit, and under which name.

Dynamo leaves on each node the fake tensor it computed with (`dynamo.example`): its dtype, whether
it requires a gradient, its storage and its version. A storage whose version moved was written to in
place; every tensor on it keeps the unit (1, 1).
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import fx

from unitscale.graph import dynamo
from unitscale.graph.dynamo import storage_id
from unitscale.graph.example import evaluate
from unitscale.graph.name import module_path, note_paths, op_name, unused_name

BOUNDARY = "input of the graph"
MUTATED = "written to in place"
EXPOSED = "leaves the graph together with a view of it"
STRIDED = "its memory is read by as_strided"
SUBCLASS = "tensor subclass"
TRANSFORMED = "inside vmap or another function transform"
REPEATED = "taken several times inside an op, and by other ops"
SHARED = "used inside and outside of vmap or another function transform"


@dataclass(frozen=True, kw_only=True)
class TensorNode:
    """A floating-point tensor of a captured graph.

    Args:
        node: the node that computes it.
        name: stable across recompiles: module path, op, occurrence; a parameter has its own name.
        at_root: computed outside of every submodule, so that another graph may use the name too.
        op: name of the op, "parameter" or "input".
        pinned: why it keeps the unit (1, 1), or None.
        requires_grad: whether a gradient reaches it.
    """

    node: fx.Node
    name: str
    at_root: bool
    op: str
    pinned: str | None
    requires_grad: bool

    @property
    def is_parameter(self) -> bool:
        """Whether it is a parameter of the model."""
        return self.op == "parameter"

    @property
    def is_visible(self) -> bool:
        """Whether its values can be read while the graph runs: not those of one lane of a vmap."""
        return self.pinned != TRANSFORMED

    @property
    def keeps_true_gradient(self) -> bool:
        """Whether it is pinned, and its gradient can be scaled where the op that made it takes it.

        At (1, 1) a product in FP8 would flush it.
        """
        pinned = self.pinned not in (None, BOUNDARY, SUBCLASS, TRANSFORMED)
        return pinned and self.requires_grad


def checkpointed(node: fx.Node) -> fx.GraphModule | None:
    """The body of a `torch.utils.checkpoint` call in a graph, or None for any other node."""
    if not dynamo.is_checkpoint(node):
        return None
    body: fx.GraphModule = getattr(node.graph.owning_module, dynamo.body_name(node))
    return body


def tensor_nodes(graph: fx.Graph, arguments: Sequence[str] = ()) -> dict[fx.Node, TensorNode]:
    """Every floating-point tensor that a node of the graph computes, in order.

    Those of checkpointed bodies are included; an input of a body has the name of what it is given.
    `arguments` are the names of what the model takes by position, which the graph does not know.
    """
    found: dict[fx.Node, TensorNode] = {}
    note_all_paths(graph, arguments)
    collect(graph, found, Counter(), given={}, numbers=set())
    return found


def note_all_paths(graph: fx.Graph, arguments: Sequence[str], roots: tuple[str, ...] = ()) -> None:
    """Note the paths of a graph's nodes, and of those in the bodies of its checkpoint calls."""
    roots = note_paths(graph, arguments, roots)
    for body in filter(None, map(checkpointed, graph.nodes)):
        note_all_paths(body.graph, (), roots)


def collect(
    graph: fx.Graph,
    found: dict[fx.Node, TensorNode],
    seen: Counter[str],
    given: dict[fx.Node, TensorNode],
    numbers: set[fx.Node],
) -> None:
    """Add the tensors of one graph to `found`; `given` are those behind its placeholders.

    `numbers` are the placeholders that are Python numbers in truth; those of the graph are added.
    """
    numbers |= set(filter(dynamo.is_number_input, graph.nodes))
    pinned, inside = pinned_storages(graph), transformed(graph)
    for node in graph.nodes:
        value = dynamo.example(node)
        if is_real_float(value) and node not in numbers:
            outer = given.get(node)
            name = outer.name if outer else unused_name(node, seen)
            op = outer.op if outer else op_name(node)
            found[node] = TensorNode(
                node=node,
                name=name,
                at_root=node.op not in ("placeholder", "get_attr") and not module_path(node),
                op=op,
                pinned=pin(node, value, pinned, inside),
                requires_grad=value.requires_grad,
            )
        body = checkpointed(node)
        if body is not None:
            inputs = [n for n in body.graph.nodes if n.op == "placeholder"]
            outside = list(zip(inputs, node.args[1:], strict=True))
            within = {x for x, y in outside if y in numbers}
            collect(
                body.graph, found, seen, {x: found[y] for x, y in outside if y in found}, within
            )


def transformed(graph: fx.Graph) -> dict[fx.Node, fx.Node]:
    """The nodes that run under a function transform, each with the node that starts the outermost.

    Dynamo writes `torch.vmap(f)(x)` as a start, the ops of `f` on tensors that only exist
    until the end, and an end.
    """
    found: dict[fx.Node, fx.Node] = {}
    starts: list[fx.Node] = []
    for node in graph.nodes:
        depth = dynamo.transform_depth(node)
        if depth > 0:
            starts.append(node)
        if starts:
            found[node] = starts[0]
        if depth < 0:
            starts.pop()
    return found


def lanes(node: fx.Node) -> int:
    """How often a node runs for each time that its graph does: the sizes of the vmaps around it."""
    sizes: list[int] = []
    for other in node.graph.nodes:
        if other is node:
            break
        depth = dynamo.transform_depth(other)
        if depth > 0:
            first = other.args[0] if other.args else None
            sizes.append(first if isinstance(first, int) else 1)
        elif depth < 0:
            sizes.pop()
    return math.prod(sizes)


def is_real_float(value: Any) -> bool:
    """Whether a value is a tensor that can carry a unit: floating point, 16 bits or more."""
    return isinstance(value, torch.Tensor) and value.dtype.is_floating_point and value.itemsize >= 2


def pin(
    node: fx.Node, value: torch.Tensor, pinned: dict[int, str], inside: dict[fx.Node, fx.Node]
) -> str | None:
    """Why the tensor of a node keeps the unit (1, 1), or None if it may have one of its own.

    A tensor that a function transform shares with other ops keeps it for the sake of the order in
    which autograd sums its gradients: in there it is used more often than the graph shows. So does
    one that an op `repeats`.
    """
    if node.op in ("placeholder", "get_attr"):
        return BOUNDARY
    start, starts = inside.get(node), {inside.get(user) for user in node.users}
    if start is not None and starts <= {start}:
        return TRANSFORMED
    if starts - {start, None} and len(node.users) > 1:
        return SHARED
    if dynamo.is_wrapper_subclass(value):
        return SUBCLASS
    if any(repeats(user, node) for user in node.users):
        return REPEATED
    return pinned.get(storage_id(value))


def repeats(node: fx.Node, x: fx.Node) -> bool:
    """Whether an op takes a tensor more often than the graph shows, as `F.normalize(x)` does.

    Where other ops take it too, autograd sums all of its gradients one by one; a factor in between
    would sum those of this op first, in another order.
    """
    return len(x.users) > 1 and sum(gradients(node, x)) > times_shown(node, x)


def reorders(node: fx.Node, x: fx.Node) -> bool:
    """Whether an op takes a tensor several times, as the graph shows, in several steps of its own.

    `einsum("ij,kj->ik", w, w)` does: it hands over its gradients in the order of these steps. With
    factors in between it would be that of the arguments.
    """
    # Of two gradients, and no others, the sum has the same numbers in both orders, but the strides
    # of the first: what is summed over them then, as a bias's gradient is, has another order.
    return times_shown(node, x) > 1 and len(gradients(node, x)) > 1


def times_shown(node: fx.Node, x: fx.Node) -> int:
    """How often a tensor is among the arguments of an op."""
    shown: list[fx.Node] = []
    fx.node.map_arg((node.args, node.kwargs), shown.append)
    return shown.count(x)


def gradients(node: fx.Node, x: fx.Node) -> list[int]:
    """`dynamo.gradients_by_step` of an op; none of what is no op of torch."""
    is_op = node.op.startswith("call_") and checkpointed(node) is None
    return dynamo.gradients_by_step(node, x) if is_op and is_tensor(dynamo.example(x)) else []


def is_tensor(value: Any) -> bool:
    """Whether a value is a tensor."""
    return isinstance(value, torch.Tensor)


def in_order(tensors: Mapping[fx.Node, TensorNode]) -> dict[fx.Node, TensorNode]:
    """The tensors, with those pinned that an op `reorders`.

    For where nothing is rounded: a product that is has other gradients anyway.
    """
    return {
        node: replace(tensor, pinned=REPEATED)
        if tensor.pinned is None and any(reorders(user, node) for user in node.users)
        else tensor
        for node, tensor in tensors.items()
    }


def pinned_storages(graph: fx.Graph) -> dict[int, str]:
    """The storages whose tensors keep the unit (1, 1), and why."""
    found = dict.fromkeys(exposed_storages(graph), EXPOSED)
    found |= dict.fromkeys(strided_storages(graph), STRIDED)
    return found | dict.fromkeys(written_storages(graph), MUTATED)


def strided_storages(graph: fx.Graph) -> set[int]:
    """The storages that `as_strided` reads: it relies on a layout, which a factor may change."""
    nodes = (n for n in graph.nodes if n.op.startswith("call_") and op_name(n) == "as_strided")
    values = (dynamo.example(node) for node in nodes)
    return {storage_id(value) for value in values if isinstance(value, torch.Tensor)} - {0}


def exposed_storages(graph: fx.Graph) -> set[int]:
    """The storages of results that lie in the same memory as another result or an input.

    Code after the graph (after a graph break, say) may write to the one and read the other.
    """
    *_, last = graph.nodes
    inputs = (node for node in graph.nodes if node.op == "placeholder")
    values = (dynamo.example(node) for node in {*inputs, *last.all_input_nodes})
    counts = Counter(storage_id(value) for value in values if isinstance(value, torch.Tensor))
    results = (dynamo.example(node) for node in last.all_input_nodes)
    found = {storage_id(value) for value in results if isinstance(value, torch.Tensor)}
    return {storage for storage in found if counts[storage] > 1} - {0}


def written_storages(graph: fx.Graph) -> set[int]:
    """The storages that some op of the graph wrote to, other than the one that made it."""
    written: dict[int, bool] = {0: False}
    for node in graph.nodes:
        value = dynamo.example(node)
        if isinstance(value, torch.Tensor) and dynamo.writes(value) > 0:
            memory = storage_id(value)
            if memory not in written:  # the first node with this memory made it
                written[memory] = dynamo.writes(value) > version_at_birth(node, value)
    return {memory for memory, is_written in written.items() if is_written}


def version_at_birth(node: fx.Node, value: torch.Tensor) -> int:
    """How often the op itself writes to the tensor it makes: pooling does, on example values."""
    if getattr(node.target, "__name__", "").startswith("adaptive_avg_pool"):
        fresh: torch.Tensor = evaluate(node, value)
        return dynamo.writes(fresh)
    return 0
