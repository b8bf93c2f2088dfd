"""What each op does to the units of its tensors: the table behind the rewrite.

An op falls in one of five kinds; an op that is not in the table is `general`, which is always
right.

    general    operands are recovered (times s) inside the op, the output divided by its unit after
    linear     f(c x) = c f(x) in each of the named operands: factors move to one on the output
    sum        a weighted sum: the factor s(x) / s(y) goes on each operand
    view       linear in one operand and shares its storage: the output keeps its unit
    attention  softmax(q k) v: linear in v; the product s(q) s(k) goes on q, whose logits see it

`linear` needs positive homogeneity only (units are positive), of the op and of its derivative, so
relu and max-pooling are linear too. Whatever the kind, gradients follow from the factors (rewrite).
"""

import operator
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import fx
from torch._ops import OpOverload, OpOverloadPacket

from unitscale.graph.capture import is_real_float
from unitscale.scaling import scaled

INSIDE = "inside a unit-scaled op"

Kind = Literal["general", "linear", "sum", "view", "attention"]


@dataclass(frozen=True, kw_only=True)
class Rule:
    """How one op treats units.

    Args:
        kind: see the module's docstring.
        operands: (position, keyword) of the tensors the op is linear in, or sums; a list counts as
            all its tensors. Empty: every tensor argument.
        additive: (position, keyword) of a bias, added after the product.
        product: a matrix product, where a recipe rounds the operands.
        bijective: a view of every element once, so its gradient has the RMS of its input's.
    """

    kind: Kind
    operands: tuple[tuple[int, str], ...] = ()
    additive: tuple[int, str] | None = None
    product: bool = False
    bijective: bool = False


GENERAL = Rule(kind="general")
FIRST = Rule(kind="linear", operands=((0, "input"),))
BOTH = Rule(kind="linear", operands=((0, "input"), (1, "other")))
SUM = Rule(kind="sum", operands=((0, "input"), (1, "other")))
RESHAPE = Rule(kind="view", operands=((0, "input"),), bijective=True)
SLICE = Rule(kind="view", operands=((0, "input"),))

MATMUL = Rule(kind="linear", operands=((0, "input"), (1, "other")), product=True)
MM = Rule(kind="linear", operands=((0, "input"), (1, "mat2")), product=True)
WEIGHTED = Rule(
    kind="linear", operands=((0, "input"), (1, "weight")), additive=(2, "bias"), product=True
)
ADD_PRODUCT = Rule(
    kind="linear", operands=((1, "mat1"), (2, "mat2")), additive=(0, "input"), product=True
)
ADD_BATCHES = replace(ADD_PRODUCT, operands=((1, "batch1"), (2, "batch2")))
EINSUM = Rule(kind="linear", product=True)
ATTENTION = Rule(kind="attention", operands=((0, "query"), (1, "key"), (2, "value")), product=True)

RULES: dict[Callable[..., Any] | str, Rule] = {
    # products
    F.linear: WEIGHTED,
    F.conv1d: WEIGHTED,
    F.conv2d: WEIGHTED,
    F.conv3d: WEIGHTED,
    F.conv_transpose1d: WEIGHTED,
    F.conv_transpose2d: WEIGHTED,
    F.conv_transpose3d: WEIGHTED,
    F.scaled_dot_product_attention: ATTENTION,
    torch.matmul: MATMUL,
    operator.matmul: MATMUL,
    torch.mm: MM,
    torch.bmm: MM,
    "matmul": MATMUL,
    "mm": MM,
    "bmm": MM,
    "__matmul__": MATMUL,
    torch.addmm: ADD_PRODUCT,
    torch.baddbmm: ADD_BATCHES,
    "addmm": ADD_PRODUCT,
    "baddbmm": ADD_BATCHES,
    torch.einsum: EINSUM,
    torch.functional.einsum: EINSUM,
    # sums
    torch.add: SUM,
    torch.sub: SUM,
    operator.add: SUM,
    operator.sub: SUM,
    "add": SUM,
    "sub": SUM,
    torch.cat: Rule(kind="sum", operands=((0, "tensors"),)),
    torch.stack: Rule(kind="sum", operands=((0, "tensors"),)),
    torch.where: Rule(kind="sum", operands=((1, "input"), (2, "other"))),
    torch.maximum: SUM,
    torch.minimum: SUM,
    # element by element
    torch.mul: BOTH,
    operator.mul: BOTH,
    "mul": BOTH,
    torch.div: FIRST,
    operator.truediv: FIRST,
    "div": FIRST,
    torch.neg: FIRST,
    operator.neg: FIRST,
    "neg": FIRST,
    torch.abs: FIRST,
    F.relu: FIRST,
    torch.relu: FIRST,
    "relu": FIRST,
    F.leaky_relu: FIRST,
    F.dropout: FIRST,
    scaled: Rule(kind="linear", operands=((0, "x"),)),
    # reductions, gathers, copies
    torch.sum: FIRST,
    torch.mean: FIRST,
    torch.cumsum: FIRST,
    "sum": FIRST,
    "mean": FIRST,
    "cumsum": FIRST,
    F.embedding: Rule(kind="linear", operands=((1, "weight"),)),
    F.avg_pool1d: FIRST,
    F.avg_pool2d: FIRST,
    F.adaptive_avg_pool1d: FIRST,
    F.adaptive_avg_pool2d: FIRST,
    F.max_pool1d: FIRST,
    F.max_pool2d: FIRST,
    F.interpolate: FIRST,
    torch.gather: FIRST,
    torch.index_select: FIRST,
    torch.roll: FIRST,
    torch.flip: FIRST,
    torch.tril: FIRST,
    torch.triu: FIRST,
    torch.clone: FIRST,
    torch.repeat_interleave: FIRST,
    "gather": FIRST,
    "index_select": FIRST,
    "roll": FIRST,
    "tril": FIRST,
    "repeat": FIRST,
    "repeat_interleave": FIRST,
    "clone": FIRST,
    "to": FIRST,
    "float": FIRST,
    "type_as": FIRST,
    # views
    "view": RESHAPE,
    "reshape": RESHAPE,
    "transpose": RESHAPE,
    "permute": RESHAPE,
    "flatten": RESHAPE,
    "unflatten": RESHAPE,
    "squeeze": RESHAPE,
    "unsqueeze": RESHAPE,
    "contiguous": RESHAPE,
    "swapaxes": RESHAPE,
    "t": RESHAPE,
    torch.reshape: RESHAPE,
    torch.transpose: RESHAPE,
    torch.permute: RESHAPE,
    torch.flatten: RESHAPE,
    torch.squeeze: RESHAPE,
    torch.unsqueeze: RESHAPE,
    torch.swapaxes: RESHAPE,
    torch.t: RESHAPE,
    "expand": SLICE,
    "expand_as": SLICE,
    "detach": SLICE,
    torch.detach: SLICE,
    "narrow": FIRST,
    "select": FIRST,
    operator.getitem: FIRST,
}


GROUPED = Rule(
    kind="linear", operands=((0, "input"), (1, "weight")), additive=(3, "bias"), product=True
)

RULES_BY_NAME: dict[str, Rule] = {
    "_grouped_mm": GROUPED,
    "transformers.grouped_mm_fallback": GROUPED,
}
"""Private functions and custom operators, which need not exist: the products of experts."""

# Ops that may write into their input, and the argument that says so.
WRITES: dict[Any, tuple[int, str]] = {
    F.relu: (1, "inplace"),
    F.leaky_relu: (2, "inplace"),
    F.dropout: (3, "inplace"),
    F.embedding: (3, "max_norm"),
}


def writes_input(node: fx.Node) -> bool:
    """Whether a call is told by an argument to write into its input."""
    slot = WRITES.get(node.target)
    return bool(node.kwargs.get("inplace") or (slot and argument(node, slot)))


def rule_of(node: fx.Node) -> Rule:
    """The rule for a node of a captured graph; `general` where the table has none that fits.

    A sum with a number or an integer tensor, a call that takes one tensor twice, a division that
    rounds, a view as another dtype and an op that writes into its input are general, although their
    ops are in the table (a product of a tensor with itself is still a product).
    """
    if not node.op.startswith("call_"):
        return GENERAL
    is_operator = isinstance(node.target, OpOverload | OpOverloadPacket)
    name = str(node.target) if is_operator else getattr(node.target, "__name__", "")
    rule = RULES.get(node.target) or RULES_BY_NAME.get(name.removesuffix(".default"), GENERAL)
    if rule.kind == "general":
        return GENERAL
    slots = [argument(node, slot) for slot in rule.operands] or list(node.args)
    if rule.kind == "sum" and not is_real(slots):
        return GENERAL
    occurrences: list[fx.Node] = []
    fx.node.map_arg((node.args, node.kwargs), occurrences.append)
    if rule.kind != "sum" and len(set(occurrences)) != len(occurrences):
        return replace(rule, kind="general")
    if rule.kind == "view" and any(isinstance(x, torch.dtype) for x in node.args):
        return GENERAL  # x.view(dtype) reads the bits as another format
    return GENERAL if writes_input(node) or node.kwargs.get("rounding_mode") else rule


def is_real(value: Any) -> bool:
    """Whether an argument is a tensor that can carry a unit, or a list of such."""
    if isinstance(value, list | tuple):
        return all(is_real(x) for x in value)
    return isinstance(value, fx.Node) and is_real_float(value.meta.get("example_value"))


def is_inside_scaled_op(node: fx.Node) -> bool:
    """Whether a tensor is a step within a unit-scaled op: before its `scaled`, or a copy by it.

    Such an op multiplies its raw result (or raw gradient) by its factor at once; the tensors that
    the method promises unit scale for are those between ops.
    """
    if node.target is scaled:
        return forward_factor(node) == 1.0
    return bool(node.users) and all(forward_factor(user) != 1.0 for user in node.users)


def forward_factor(node: fx.Node) -> Any:
    """The factor by which a node multiplies its input in a `scaled` call; 1 for any other node."""
    if node.target is not scaled:
        return 1.0
    return node.args[1] if len(node.args) > 1 else node.kwargs.get("fwd", 1.0)


def argument(node: fx.Node, slot: tuple[int, str]) -> Any:
    """The argument of a call in a (position, keyword) slot, or None if the call leaves it out."""
    position, keyword = slot
    return node.args[position] if len(node.args) > position else node.kwargs.get(keyword)


def operands(node: fx.Node, rule: Rule) -> list[fx.Node]:
    """The nodes in the rule's operand slots, each once, in order; every input if it names none."""
    found: dict[fx.Node, None] = {}
    slots = [argument(node, slot) for slot in rule.operands] if rule.operands else list(node.args)
    fx.node.map_arg(slots, found.setdefault)
    return list(found)


def unrounded_reason(node: fx.Node) -> str | None:
    """Why no recipe rounds a product; None for an op that is none, or that a rule rounds."""
    return None
