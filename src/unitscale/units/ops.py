"""What each op does to the units of its tensors: what is asked of the table.

An op falls in one of five kinds; an op that is not in the table is `general`, which is always
right. The rows are in `units.op_table`.

    general    operands are recovered (times s) inside the op, the output divided by its unit after
    linear     f(c x) = c f(x) in each of the named operands: factors move to one on the output
    sum        a weighted sum: the factor s(x) / s(y) goes on each operand
    view       linear in one operand and shares its storage: the output keeps its unit
    attention  softmax(q k) v: linear in v; the product s(q) s(k) goes on q, whose logits see it

`linear` needs positive homogeneity only (units are positive), of the op and of its derivative, so
relu and max-pooling are linear too. Whatever the kind, gradients follow from the factors (rewrite).
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, fx

from unitscale import gemm
from unitscale.graph import dynamo
from unitscale.graph.effect import argument, writes_input
from unitscale.graph.expand import unexpanded_reason
from unitscale.graph.name import op_name
from unitscale.graph.tensor import TRANSFORMED, checkpointed, is_real_float, transformed
from unitscale.scaling import scaled
from unitscale.units.op_table import GENERAL, OPS, Form, Op, Rule

__all__ = [
    "GEMM",
    "INSIDE",
    "RULES",
    "Rule",
    "argument",
    "body_of",
    "is_inside_scaled_op",
    "is_real",
    "op_of",
    "operands",
    "rule_of",
    "unrounded_reason",
    "writes_input",
]

INSIDE = "inside a unit-scaled op"

BY_FORM: dict[Form, Op] = {form: op for op in OPS for form in op.forms}
BY_NAME: dict[str, Op] = {name: op for op in OPS for name in op.registered}

RULES: dict[Form, Rule] = {
    form: op.rule for form, op in BY_FORM.items() if op.rule.kind != "general"
}

GEMM: dict[Form, Callable[..., Tensor]] = {
    form: getattr(gemm, op.gemm) for form, op in BY_FORM.items() if op.gemm is not None
}
"""Products that `gemm` computes itself, with operands held in eight bits."""

NO_OP = Op(forms=(), rule=GENERAL)


def op_of(node: fx.Node) -> Op:
    """The row of a node's op; one with the rule `general` where the table has none."""
    if not node.op.startswith("call_"):
        return NO_OP
    return BY_FORM.get(node.target) or BY_NAME.get(registered_name(node), NO_OP)


def registered_name(node: fx.Node) -> str:
    """An op's name in the dispatcher, without its overload, or the name of its function."""
    if dynamo.is_registered(node):
        return ".".join(str(node.target).split(".")[:2])
    return op_name(node)


def rule_of(node: fx.Node) -> Rule:
    """The rule for a node of a captured graph; `general` where the table has none that fits.

    A sum with a number or an integer tensor, a call that takes one tensor twice, a division that
    rounds, a view as another dtype and an op that writes into its input are general, although their
    ops are in the table (a product of a tensor with itself is still a product).
    """
    rule = op_of(node).rule
    if rule.kind == "general":
        return GENERAL
    if writes_input(node) or writes_out(node) or node.kwargs.get("rounding_mode"):
        return GENERAL
    slots = [argument(node, slot) for slot in rule.operands] or list(node.args)
    if rule.kind == "sum" and not is_real(slots):
        return GENERAL
    occurrences: list[fx.Node] = []
    fx.node.map_arg((node.args, node.kwargs), occurrences.append)
    occurrences = [x for x in occurrences if isinstance(dynamo.example(x), Tensor)]
    if rule.product and len(tensors(slots)) < 2:
        rule = replace(rule, product=False)  # einsum of one tensor: a trace, a transposition
    if rule.kind != "sum" and len(set(occurrences)) != len(occurrences):
        return replace(rule, kind="general")
    if rule.kind == "view" and any(isinstance(x, torch.dtype) for x in node.args):
        return GENERAL  # x.view(dtype) reads the bits as another format
    return rule


def writes_out(node: fx.Node) -> bool:
    """Whether a call writes its result into a tensor that it is given."""
    return node.kwargs.get("out") is not None


def tensors(slots: Any) -> list[fx.Node]:
    """The tensors in some arguments, each as often as it is there."""
    found: list[fx.Node] = []
    fx.node.map_arg(slots, found.append)
    return [x for x in found if isinstance(dynamo.example(x), Tensor)]


def unrounded_reason(node: fx.Node) -> str | None:
    """Why no recipe rounds a node that is a matrix product by nature; None if one may, or if not.

    An op that the table does not know is no product: a custom one of two tensors may be anything.
    A product that the recipe skips, or whose recipe rounds nothing, has no reason here.
    """
    if not node.op.startswith("call_"):
        return None
    op, why = op_of(node), unexpanded_reason(node)
    name = op_name(node)
    if why is not None:
        return f"{name} was not written out: {why}"
    if op.unrounded is not None:
        return op.unrounded
    written = BY_FORM.get(name.removesuffix("_"), NO_OP)
    if name != name.removesuffix("_") and written.rule.product:
        return "it writes into a tensor that others see"
    if not op.rule.product:
        return product_inside(node)
    value = dynamo.example(node)
    if not isinstance(value, Tensor) or not (value.is_floating_point() or value.is_complex()):
        return None
    if value.is_complex():
        return "its tensors are complex"
    if not rule_of(node).product:
        return "it writes into a tensor that it is given" if writes_out(node) else None
    return TRANSFORMED if node in transformed(node.graph) else None


def product_inside(node: fx.Node) -> str | None:
    """Why a call with a graph of its own (a traced Function, a condition, a loop) rounds nothing.

    None if there is no product in that graph. The body of a checkpoint is rewritten, and is none of
    these.
    """
    body = None if checkpointed(node) is not None else body_of(node)
    if body is not None and any(map(has_product, body.graph.nodes)):
        return f"inside {op_name(node)}, which runs as it is"
    return None


def body_of(node: fx.Node) -> fx.GraphModule | None:
    """The first graph that a call runs which holds a product, or else any; None if it has none."""
    owner, found = node.graph.owning_module, None
    for x in node.all_input_nodes:
        body = getattr(owner, str(x.target), None) if x.op == "get_attr" else None
        if isinstance(body, fx.GraphModule):
            if any(map(has_product, body.graph.nodes)):
                return body
            found = found or body
    return found


def has_product(node: fx.Node) -> bool:
    """Whether a node is a product, or has one inside."""
    return rule_of(node).product or unrounded_reason(node) is not None


def is_real(value: Any) -> bool:
    """Whether an argument is a tensor that can carry a unit, or a list of such."""
    if isinstance(value, list | tuple):
        return all(is_real(x) for x in value)
    return isinstance(value, fx.Node) and is_real_float(dynamo.example(value))


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


def operands(node: fx.Node, rule: Rule) -> list[fx.Node]:
    """The nodes in the rule's operand slots, each once, in order; every input if it names none."""
    found: dict[fx.Node, None] = {}
    slots = [argument(node, slot) for slot in rule.operands] if rule.operands else list(node.args)
    fx.node.map_arg(slots, found.setdefault)
    return list(found)
