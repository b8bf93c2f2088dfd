"""Regions of a graph between its products: what they compute again, and what they need for it.

A region is one element-wise function or norm with the ops before it that nothing else uses, down to
the tensors that would take more bytes to replace. Backward computes the region again from these, so
they are all that has to be held. A norm that a model writes out, of a residual stream r in 16 bits:

    h = r.float(); v = h.pow(2).mean(-1, keepdim=True); y = w * (h * torch.rsqrt(v + eps)).to(bf16)

    autograd holds   h (4 bytes a value), rsqrt(...) (4 a row), (...).to(bf16) (2 a value)
    the region       r: `w *` is its last op, and the seven before it are used by nothing else

A residual sum is never inside: it would replace one tensor by two.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from unitscale.graph.dynamo import example
from unitscale.graph.effect import writes_input
from unitscale.graph.name import is_parameter, op_name
from unitscale.graph.tensor import checkpointed, is_real_float, transformed
from unitscale.units.hold import hold

__all__ = ["SAVING", "Region", "is_needed", "name_of", "regions"]

SAVING = frozenset(
    {"pow", "square", "sqrt", "rsqrt", "reciprocal", "exp", "expm1", "log", "log1p", "sin", "cos"}
    | {"tanh", "sigmoid", "erf", "abs", "clamp", "clamp_min", "clamp_max", "addcmul", "lerp"}
    | {"mul", "div", "truediv", "true_divide", "multiply", "divide", "rpow", "rmul", "rtruediv"}
    | {"relu", "relu6", "leaky_relu", "elu", "celu", "selu", "gelu", "silu", "mish", "softplus"}
    | {"hardtanh", "hardsigmoid", "hardswish", "logsigmoid", "softsign", "tanhshrink", "glu"}
    | {"layer_norm", "rms_norm", "group_norm", "normalize", "var", "std", "norm", "vector_norm"}
)
"""Ops whose derivative needs a tensor: an input, the result, or what lies between."""

FREE = frozenset(
    {"add", "sub", "neg", "rsub", "radd", "mean", "sum", "unsqueeze", "squeeze", "scaled"}
    | {"to", "type", "type_as", "float", "half", "bfloat16", "double", "positive"}
)
"""Ops whose derivative needs none; a region takes them in on the way to a smaller input."""

TWO_SIDED = frozenset({"mul", "multiply", "div", "truediv", "true_divide", "divide"})
"""Of two tensors each is needed for the gradient of the other alone."""

SLACK = 8
"""An op is taken in if what is then held has up to an eighth more values than its own result: the
statistics of rows, on the way to the tensor that they are of."""


@dataclass(frozen=True)
class Region:
    """Nodes that are computed again in backward, in order, and what goes in.

    Args:
        nodes: the last one is the result; the others are used by nothing else.
        inputs: tensors and numbers from outside, each once.
    """

    nodes: tuple[fx.Node, ...]
    inputs: tuple[fx.Node, ...]

    @property
    def root(self) -> fx.Node:
        """The op whose result the region gives."""
        return self.nodes[-1]


def regions(graph: fx.Graph) -> list[Region]:
    """The regions of a graph, in order of their results; they share no node."""
    return sorted(Finder(graph).found(), key=lambda region: region.root)


class Finder:
    """Finds the regions of one graph, from its end to its start."""

    def __init__(self, graph: fx.Graph) -> None:
        self.graph = graph
        self.order = {node: index for index, node in enumerate(graph.nodes)}
        self.taken: set[fx.Node] = set()
        inside = transformed(graph)
        self.part: dict[fx.Node, int] = {}
        part = 0
        for node in graph.nodes:
            # A region is run where its last op was: nothing before that may have changed a tensor
            # it reads, the mode of autograd, or what autocast does.
            is_barrier = node.op == "call_function" and is_state(node)
            part += is_barrier or may_write(node)
            if node not in inside:
                self.part[node] = part

    def found(self) -> Iterator[Region]:
        """Each region, grown from its last op."""
        for node in reversed(self.graph.nodes):
            if node in self.taken or not self.is_seed(node):
                continue
            inside = self.grown(node)
            nodes = tuple(sorted(inside, key=self.order.__getitem__))
            region = Region(nodes, tuple(outside(nodes, inside)))
            if any(map(is_needed, region.inputs)):
                self.taken |= inside
                yield region

    def is_pure(self, node: fx.Node, names: frozenset[str]) -> bool:
        """Whether a node is one of these ops of torch, on one tensor of floating point."""
        if node not in self.part or not node.op.startswith("call_"):
            return False
        if node.target is hold:
            return names is not SAVING
        if not is_real_float(example(node)) or checkpointed(node) is not None:
            return False
        if node.kwargs.get("out") is not None or writes_input(node):
            return False
        return name_of(node) in names and (node.op == "call_method" or is_torch(node.target))

    def is_seed(self, node: fx.Node) -> bool:
        """Whether autograd holds a tensor for a node that a region need not."""
        if not self.is_pure(node, SAVING) or not example(node).requires_grad:
            return False
        if is_loss(node):
            return False
        taken = [x for x in node.all_input_nodes if isinstance(example(x), Tensor)]
        if name_of(node) not in TWO_SIDED:
            return True
        given = [x for x in taken if example(x).requires_grad]
        if name_of(node) in ("mul", "multiply"):
            return len(given) > 1 or occurrences(node, given) > 1
        return len(node.args) > 1 and node.args[1] in given

    def grown(self, root: fx.Node) -> set[fx.Node]:
        """The nodes of the region with this result."""
        inside, refused = {root}, set[fx.Node]()
        while options := [x for x in self.joining(inside) if x not in refused]:
            nearest = max(options, key=self.order.__getitem__)
            more = self.with_sources(inside, nearest)
            if more:
                inside |= more
            else:
                refused.add(nearest)
        return inside

    def with_sources(self, inside: set[fx.Node], node: fx.Node) -> set[fx.Node]:
        """A node and those before it whose tensors need not be held once all of them are inside.

        Empty if there are none such: `mean(pow(x, 2))` is worth it where x is held already.
        """
        limit = SLACK * held_values(inside) + count(node)
        found = {node}
        while SLACK * held_values(inside | found) > limit:
            new = set(outside(tuple(found), inside | found))
            options = [x for x in self.joining(inside | found) if x in new]
            if not options:
                return set()
            found.add(max(options, key=self.order.__getitem__))
        return found

    def joining(self, inside: set[fx.Node]) -> list[fx.Node]:
        """What could be taken in next."""
        found = outside(tuple(inside), inside)
        return [x for x in found if x not in self.taken and self.may_join(x, inside)]

    def may_join(self, node: fx.Node, inside: set[fx.Node]) -> bool:
        """Whether a node can be computed with a region, and by it alone."""
        if self.part.get(node) != self.part.get(next(iter(inside))):
            return False
        return set(node.users) <= inside and self.is_pure(node, FREE | SAVING)


def name_of(node: fx.Node) -> str:
    """The name of an op without the underscores of operators."""
    return op_name(node).strip("_")


def is_torch(target: Any) -> bool:
    """Whether a function is torch's or an operator, and no model's own of the same name."""
    module = getattr(target, "__module__", None) or ""
    if module.split(".")[0] in ("", "torch", "_operator", "builtins", "math"):
        return True
    return getattr(target, "__name__", "") == "scaled" and module.startswith(
        f"{__name__.partition('.')[0]}.scaling"
    )


def is_state(node: fx.Node) -> bool:
    """Whether a call changes how what follows is computed: grad mode, autocast."""
    name = getattr(node.target, "__name__", "")
    return name == "_set_grad_enabled" or "autocast" in name


def may_write(node: fx.Node) -> bool:
    """Whether a call writes into a tensor that it is given."""
    if not node.op.startswith("call_"):
        return False
    name = op_name(node)
    is_in_place = name.endswith("_") and not name.startswith("__")
    is_operator = name in ("setitem", "iadd", "isub", "imul", "itruediv", "ipow")
    return is_in_place or is_operator or node.kwargs.get("out") is not None or writes_input(node)


def is_loss(node: fx.Node) -> bool:
    """Whether a node's results are only added up to one number, as an error that is squared is."""
    users = [user for user in node.users if user.op != "output"]
    if not users:
        return example(node).dim() == 0
    return all(
        user.op.startswith("call_")
        and name_of(user) in FREE
        and isinstance(example(user), Tensor)
        and (example(user).dim() == 0 or is_loss(user))
        for user in users
    )


def occurrences(node: fx.Node, given: list[fx.Node]) -> int:
    """How often a call takes some tensors: `x * x` takes one twice."""
    found: list[fx.Node] = []
    fx.node.map_arg((node.args, node.kwargs), found.append)
    return sum(x in given for x in found)


def outside(nodes: tuple[fx.Node, ...], inside: set[fx.Node]) -> list[fx.Node]:
    """What some nodes take from elsewhere, each once, in order."""
    return list(dict.fromkeys(x for n in nodes for x in n.all_input_nodes if x not in inside))


def is_needed(node: fx.Node) -> bool:
    """Whether a tensor would be held for the sake of a region: one that a gradient reaches.

    Parameters are there in any case. A tensor without a gradient is a table or a mask. An input of
    the graph counts: nothing but this graph may hold what an earlier one has computed.
    """
    value = example(node)
    if not is_real_float(value) or not value.requires_grad or node.op == "get_attr":
        return False
    return node.op != "placeholder" or not is_parameter(node)


def count(node: fx.Node) -> Any:
    """The values of a tensor; 0 of what is no tensor."""
    value = example(node)
    return value.numel() if isinstance(value, torch.Tensor) else 0


def held_values(inside: set[fx.Node]) -> Any:
    """How many values a region of these nodes has to hold."""
    return sum(count(x) for x in outside(tuple(inside), inside) if is_needed(x))
