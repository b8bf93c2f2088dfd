"""The tensors of a captured graph: which may have a unit, and under which name.

Dynamo leaves on each node the fake tensor it computed with (`example_value`): its dtype, whether it
requires a gradient, its storage and its version. A storage whose version moved was written to in
place; every tensor on it keeps the unit (1, 1).
"""

import inspect
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from unitscale.graph.example import evaluate, storage_id

BOUNDARY = "input of the graph"
MUTATED = "written to in place"
EXPOSED = "leaves the graph together with a view of it"
STRIDED = "its memory is read by as_strided"
SUBCLASS = "tensor subclass"
TRANSFORMED = "inside vmap or another function transform"
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


# Calls that return their input itself when there is nothing to do.
MAY_DO_NOTHING = frozenset(
    {
        *("to", "float", "double", "half", "bfloat16", "type", "type_as", "cpu", "cuda"),
        *("contiguous", "reshape", "flatten", "ravel", "positive", "conj"),
        *("dropout", "dropout1d", "dropout2d", "dropout3d", "alpha_dropout", "feature_dropout"),
        *("feature_alpha_dropout", "pos", "real", "resolve_conj", "resolve_neg", "to_dense"),
        *("atleast_1d", "atleast_2d", "atleast_3d", "sum_to_size", "getattr"),
    }
)


def checkpointed(node: fx.Node) -> fx.GraphModule | None:
    """The body of a `torch.utils.checkpoint` call in a graph, or None for any other node."""
    if node.target is not torch.ops.higher_order.tag_activation_checkpoint:
        return None
    body: fx.GraphModule = getattr(node.graph.owning_module, body_name(node))
    return body


def body_name(node: fx.Node) -> str:
    """Under which name the graph's module holds the body of a checkpoint call."""
    first = node.args[0]
    assert isinstance(first, fx.Node)
    return str(first.target)


def drop_idle_calls(graph: fx.Graph) -> None:
    """Remove calls that returned their own input, such as `x.float()` of a float32 tensor.

    Left in, the tensor would be two tensors to the rewrite, and where it has three consumers
    autograd would sum their gradients in another order than in the plain model: a difference in
    the last bit.
    """
    for node in list(graph.nodes):
        body = checkpointed(node)
        if body is not None:
            drop_idle_calls(body.graph)
        base = next(iter(node.all_input_nodes), None)
        if base is not None and is_idle(node, base):
            node.replace_all_uses_with(base)
            graph.erase_node(node)


def is_idle(node: fx.Node, base: fx.Node) -> bool:
    """Whether a call returns its first tensor itself, and leaves it as it is.

    Dropout that drops nothing does; the example value of `F.dropout` is another tensor all the
    same. In place it returns its input when it drops, too.
    """
    if not node.op.startswith("call_") or op_name(node) not in MAY_DO_NOTHING:
        return False
    if getattr(node.target, "__module__", "") == F.__name__:
        given = inspect.signature(node.target).bind(*node.args, **node.kwargs)  # type: ignore[arg-type]
        given.apply_defaults()
        drops = given.arguments["p"] > 0 and given.arguments["training"]
        if drops or node.target is F.dropout:
            return not drops
    value = node.meta.get("example_value")
    return value is not None and value is base.meta.get("example_value")


def tensor_nodes(graph: fx.Graph, arguments: Sequence[str] = ()) -> dict[fx.Node, TensorNode]:
    """Every floating-point tensor that a node of the graph computes, in order.

    Those of checkpointed bodies are included; an input of a body has the name of what it is given.
    `arguments` are the names of what the model takes by position, which the graph does not know.
    """
    found: dict[fx.Node, TensorNode] = {}
    collect(graph, found, Counter(), given={}, arguments=arguments)
    return found


def collect(
    graph: fx.Graph,
    found: dict[fx.Node, TensorNode],
    seen: Counter[str],
    given: dict[fx.Node, TensorNode],
    arguments: Sequence[str] = (),
) -> None:
    """Add the tensors of one graph to `found`; `given` are those behind its placeholders."""
    pinned, inside = pinned_storages(graph), transformed(graph)
    for node in graph.nodes:
        value = node.meta.get("example_value")
        if is_real_float(value):
            outer = given.get(node)
            name = outer.name if outer else unused_name(node, seen, arguments)
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
            outside = zip(inputs, node.args[1:], strict=True)
            collect(body.graph, found, seen, {x: found[y] for x, y in outside if y in found})


def transformed(graph: fx.Graph) -> dict[fx.Node, fx.Node]:
    """The nodes that run under a function transform, each with the node that starts the outermost.

    Dynamo writes `torch.vmap(f)(x)` as a start, the ops of `f` on tensors that only exist
    until the end, and an end.
    """
    found: dict[fx.Node, fx.Node] = {}
    starts: list[fx.Node] = []
    for node in graph.nodes:
        name = getattr(node.target, "__name__", "")
        if name.endswith("_increment_nesting"):
            starts.append(node)
        if starts:
            found[node] = starts[0]
        if name.endswith("_decrement_nesting"):
            starts.pop()
    return found


def unused_name(node: fx.Node, seen: Counter[str], arguments: Sequence[str]) -> str:
    """Module path and op of a node, with a number from its second occurrence on."""
    parts = (module_path(node), op_name(node))
    stem = ".".join(filter(None, parts))
    if node.op == "placeholder":
        stem = input_name(node)
        kind, _, position = stem.partition(".")
        if kind == "args" and position.isdecimal() and int(position) < len(arguments):
            stem = arguments[int(position)]
    seen[stem] += 1
    return stem if seen[stem] == 1 else f"{stem}#{seen[stem] - 1}"


def is_real_float(value: Any) -> bool:
    """Whether a value is a tensor that can carry a unit: floating point, 16 bits or more."""
    return isinstance(value, torch.Tensor) and value.dtype.is_floating_point and value.itemsize >= 2


def pin(
    node: fx.Node, value: torch.Tensor, pinned: dict[int, str], inside: dict[fx.Node, fx.Node]
) -> str | None:
    """Why the tensor of a node keeps the unit (1, 1), or None if it may have one of its own.

    A tensor that a function transform shares with other ops keeps it for the sake of the order in
    which autograd sums its gradients: in there it is used more often than the graph shows.
    """
    if node.op in ("placeholder", "get_attr"):
        return BOUNDARY
    start, starts = inside.get(node), {inside.get(user) for user in node.users}
    if start is not None and starts <= {start}:
        return TRANSFORMED
    if starts - {start, None} and len(node.users) > 1:
        return SHARED
    if is_traceable_wrapper_subclass(value):
        return SUBCLASS
    return pinned.get(storage_id(value))


def pinned_storages(graph: fx.Graph) -> dict[int, str]:
    """The storages whose tensors keep the unit (1, 1), and why."""
    found = dict.fromkeys(exposed_storages(graph), EXPOSED)
    found |= dict.fromkeys(strided_storages(graph), STRIDED)
    return found | dict.fromkeys(written_storages(graph), MUTATED)


def strided_storages(graph: fx.Graph) -> set[int]:
    """The storages that `as_strided` reads: it relies on a layout, which a factor may change."""
    nodes = (n for n in graph.nodes if n.op.startswith("call_") and op_name(n) == "as_strided")
    values = (node.meta.get("example_value") for node in nodes)
    return {storage_id(value) for value in values if isinstance(value, torch.Tensor)} - {0}


def exposed_storages(graph: fx.Graph) -> set[int]:
    """The storages of results that lie in the same memory as another result or an input.

    Code after the graph (after a graph break, say) may write to the one and read the other.
    """
    *_, last = graph.nodes
    inputs = (node for node in graph.nodes if node.op == "placeholder")
    values = (node.meta.get("example_value") for node in {*inputs, *last.all_input_nodes})
    counts = Counter(storage_id(value) for value in values if isinstance(value, torch.Tensor))
    results = (node.meta.get("example_value") for node in last.all_input_nodes)
    found = {storage_id(value) for value in results if isinstance(value, torch.Tensor)}
    return {storage for storage in found if counts[storage] > 1} - {0}


def written_storages(graph: fx.Graph) -> set[int]:
    """The storages that some op of the graph wrote to, other than the one that made it."""
    written: dict[int, bool] = {0: False}
    for node in graph.nodes:
        value = node.meta.get("example_value")
        if isinstance(value, torch.Tensor) and not value.is_inference() and value._version > 0:
            memory = storage_id(value)
            if memory not in written:  # the first node with this memory made it
                written[memory] = value._version > version_at_birth(node, value)
    return {memory for memory, is_written in written.items() if is_written}


def version_at_birth(node: fx.Node, value: torch.Tensor) -> int:
    """How often the op itself writes to the tensor it makes: pooling does, on example values."""
    if getattr(node.target, "__name__", "").startswith("adaptive_avg_pool"):
        fresh: torch.Tensor = evaluate(node, value)
        return fresh._version
    return 0


def op_name(node: fx.Node) -> str:
    """Name of the op of a node: `linear`, `add`, `view`; what it is for a node that is no op."""
    if node.op == "placeholder":
        return "parameter" if is_parameter(node) else "input"
    target = node.target
    return target if isinstance(target, str) else getattr(target, "__name__", str(target))


def is_parameter(node: fx.Node) -> bool:
    """Whether a placeholder stands for a parameter of the model."""
    value = node.meta.get("example_value")
    return isinstance(value, torch.nn.Parameter) or "_parameters[" in source(node)


def source(node: fx.Node) -> str:
    """Dynamo's expression for a graph input, such as L['self']._parameters['weight']."""
    argument = node.meta.get("grapharg")
    name = getattr(getattr(argument, "source", None), "name", None)
    return str(name() if callable(name) else name or node.target)


def input_name(node: fx.Node) -> str:
    """Stable name of a graph input: a parameter's qualified name, or the argument's name."""
    return strip(source(node))


def module_path(node: fx.Node) -> str:
    """Qualified name of the innermost module whose forward made this node; empty at the root."""
    stack = node.meta.get("nn_module_stack")
    return strip(next(reversed(stack.values()))[0]) if stack else ""


def strip(expression: str) -> str:
    """Turn Dynamo's expression for an attribute into the dotted path a user knows.

    L['self']._modules['layers']._modules['0']._parameters['weight'] -> layers.0.weight
    L['args'][0], an input, -> args.0, see `tensor_nodes`; L['kwargs']['input_ids'] -> input_ids
    """
    dotted = re.sub(r"\[['\"]?([^\]'\"]*)['\"]?\]", r".\1", expression)
    parts = [p for p in dotted.split(".") if p not in ("_modules", "_parameters", "_buffers")]
    while parts and parts[0] in ("L", "G", "self", "own", "this()", "kwargs", ""):
        parts.pop(0)
    if len(parts) > 2 and parts[0] == "args":
        parts = parts[2:]  # L['args'][0] is `self` behind a decorator
    return ".".join(parts)
