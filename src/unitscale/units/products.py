"""Which ops of a graph are products that the recipe rounds, and what multiplies them."""

import operator
from collections.abc import Iterator
from fnmatch import fnmatchcase
from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor, fx

from unitscale import gemm
from unitscale.gemm import ProductFormats, choose
from unitscale.graph.capture import module_path
from unitscale.graph.dynamo import example, module_class, storage_id
from unitscale.graph.name import is_parameter, op_name
from unitscale.recipes import Gemm, Operand, Recipe, Rule
from unitscale.recipes.rule import Op
from unitscale.units.ops import GEMM, operands, rule_of, unrounded_reason


def formats_at(node: fx.Node, gemm_: Gemm, executor: str) -> ProductFormats:
    """The operands of a product, with the executor that its device has for them.

    Raises:
        ValueError: the executor that the recipe names cannot run this product.
    """
    if not fits_gemm(node):
        return ProductFormats.from_gemm(gemm_, "emulated")
    formats = ProductFormats.from_gemm(gemm_, executor)
    if is_turned_around(node):
        formats = formats.crossed()
    value = example(node)
    return choose(formats, value.dtype, value.device)


def operands_at(node: fx.Node, gemm_: Gemm) -> list[Operand]:
    """How the forward product takes each operand of a node, in the order in which it takes them."""
    value, weight = gemm_.output
    taken = operands(node, rule_of(node))
    found = [value, *[weight] * (len(taken) - 1)]
    return found[::-1] if is_turned_around(node) else found


def is_turned_around(node: fx.Node) -> bool:
    """Whether the weight is the left one of two operands, as in `weight @ x`."""
    taken = operands(node, rule_of(node))
    return len(taken) == 2 and is_weight(taken[0]) and not is_weight(taken[1])


def is_weight(node: fx.Node) -> bool:
    """Whether a tensor has the values of parameters alone: one, a part, a copy, or several joined.

    What is computed of a parameter is no weight, and rows of one that a tensor picks are none: they
    are the output of an embedding.
    """
    if is_parameter(node):
        return True
    sources = sources_of(node)
    return bool(sources) and all(map(is_weight, sources))


JOINING = frozenset({"cat", "concat", "concatenate", "stack", "hstack", "vstack", "column_stack"})
COPYING = frozenset(
    {"to", "type", "type_as", "float", "double", "half", "bfloat16", "clone", "contiguous"}
) | {"reshape", "flatten", "ravel", "repeat", "tile", "repeat_interleave", "flip", "roll"}
VIEWING = frozenset(
    {"getitem", "getattr", "_get_data_attr", "narrow", "select", "chunk", "split", "unbind"}
) | {"tensor_split", "hsplit", "vsplit", "dsplit", "split_with_sizes", "adjoint", "diagonal"}
VIEWING |= {"movedim", "moveaxis", "swapdims", "view_as", "reshape_as", "unfold", "as_strided"}
"""Ops that give memory of their tensor: `getitem` does not where a tensor picks the rows."""


def sources_of(node: fx.Node) -> list[fx.Node]:
    """The tensors whose elements a node has, in whatever shape or dtype; none if it computes."""
    if not node.op.startswith("call_"):
        return []
    node = maker(node)
    taken = [x for x in node.all_input_nodes if isinstance(example(x), Tensor)]
    name = op_name(node)
    if name in JOINING:
        return taken
    if name in COPYING or rule_of(node).kind == "view":
        return taken[:1]
    return taken[:1] if name in VIEWING and taken and is_view(node, taken[0]) else []


def is_view(node: fx.Node, x: fx.Node) -> bool:
    """Whether a node, or each part of the tuple that it returns, is memory of `x`."""
    value, memory = example(node), storage_id(example(x))
    parts = value if isinstance(value, tuple | list) else (value,)
    return memory != 0 and all(isinstance(p, Tensor) and storage_id(p) == memory for p in parts)


def kind_of(node: fx.Node) -> Op:
    """The kind of a product, as rules name it."""
    rule, name = rule_of(node), op_name(node)
    if rule.kind == "attention":
        return "attention"
    if "conv" in name:
        return "convolution"
    if "grouped_mm" in name:
        return "grouped"
    if GEMM.get(node.target) is gemm.linear:
        return "readout" if module_class(node) == "LinearReadout" else "linear"
    if name in MATRIX_PRODUCTS:
        return "linear" if any(map(is_weight, operands(node, rule))) else "matmul"
    return "other"


MATRIX_PRODUCTS = frozenset(
    {"matmul", "__matmul__", "imatmul", "__rmatmul__", "mm", "bmm", "mv", "addmm", "baddbmm"}
) | {"addbmm", "addmv", "dot", "vdot", "vecdot", "multi_dot", "chain_matmul", "inner"}
"""Ops that contract the last axis of one matrix with the first of another."""


def is_layer(node: fx.Node) -> bool:
    """Whether a product is that of a module of the class `Linear`, as "layer" in a rule says."""
    return GEMM.get(node.target) is gemm.linear and module_class(node) == "Linear"


def rule_at(node: fx.Node, recipe: Recipe, prefix: str = "") -> Rule | None:
    """The recipe's rule for a product: the first one for its kind and its place."""
    kind, around = kind_of(node), places_around(node, prefix)
    for rule in recipe.rules:
        is_covered = is_layer(node) if rule.op == "layer" else rule.covers(kind)
        if is_covered and (
            rule.path == "*" or any(fnmatchcase(path, rule.path) for path in around)
        ):
            return rule
    return None


def gemm_at(node: fx.Node, recipe: Recipe, prefix: str = "") -> Gemm | None:
    """How the recipe multiplies the operands of this node; None keeps it in full precision.

    `prefix` is what its module path lacks, see `graph.place`.
    """
    if not recipe.rounds or not rule_of(node).product:
        return None
    if skipping(node, recipe, prefix) is not None:
        return None
    rule = rule_at(node, recipe, prefix)
    found = None if rule is None else rule.gemm
    return found if found is not None and found.rounds and not refusal(node, found) else None


def refusal(node: fx.Node, gemm_: Gemm) -> str | None:
    """Why a product cannot be rounded as a rule says; None if it can."""
    if gemm_.is_per_tensor:
        return None
    taken = operands(node, rule_of(node))
    is_matrix = GEMM.get(node.target) in (gemm.linear, gemm.matmul, gemm.addmm) and len(taken) == 2
    if is_matrix and fits_gemm(node):
        return None
    along = next((str(x) for x in gemm_.operands if not x.is_per_tensor), None)
    twice = (f"{x} and {y}" for _, (x, y) in gemm_.taken_twice() if x != y)
    why = f"{along} needs the axis it sums over" if along else f"one is taken as {next(twice)}"
    return (
        f"{op_name(node)} rounds each tensor once, by one scale, and {why}; a rule with one scale "
        "for each tensor is possible here"
    )


def places_around(node: fx.Node, prefix: str) -> list[str]:
    """The paths of a node's module and of those around it, from the outermost."""
    path = (prefix + module_path(node)).removesuffix(".")
    names = path.split(".") if path else []
    return [".".join(names[:count]) for count in range(len(names) + 1)]


def skipping(node: fx.Node, recipe: Recipe, prefix: str = "") -> str | None:
    """The first pattern of `recipe.skip` that a node's module, or one around that, matches."""
    return next(skips_at(node, recipe, prefix), None)


def skips_at(node: fx.Node, recipe: Recipe, prefix: str = "") -> Iterator[str]:
    """The patterns of `recipe.skip` that a node's module, or a module around that, matches."""
    around = places_around(node, prefix)
    return (pattern for pattern in recipe.skip for x in around if fnmatchcase(x, pattern))


def fits_gemm(node: fx.Node) -> bool:
    """Whether `gemm` has this product with these arguments (`addmm` with its two factors at 1)."""
    accepted = {"bias"}
    if node.target is F.scaled_dot_product_attention:
        accepted = {"attn_mask", "dropout_p", "is_causal", "scale", "enable_gqa"}
    elif GEMM.get(node.target) in (gemm.conv1d, gemm.conv2d, gemm.conv3d):
        accepted |= {"stride", "padding", "dilation", "groups"}
    return node.target in GEMM and node.kwargs.keys() <= accepted


def matrix_operands(node: fx.Node) -> list[fx.Node]:
    """The two operands of a product with a matrix, which `torch._scaled_mm` has; else none."""
    taken = operands(node, rule_of(node))
    if GEMM[node.target] not in (gemm.linear, gemm.matmul, gemm.addmm) or len(taken) != 2:
        return []
    left, right = (x.meta["example_value"].dim() for x in taken)
    is_linear = GEMM[node.target] is gemm.linear
    return taken if is_linear or (left >= 2 and right >= 2 and 2 in (left, right)) else []


class Multiplied(NamedTuple):
    """What multiplies the operands of one product.

    Args:
        by: the formats of value and gradient operands and the executor, or "full precision".
        why: why it is full precision; None of one that is rounded.
    """

    by: str
    why: str | None

    def __str__(self) -> str:
        return self.by if self.why is None else f"{self.by}: {self.why}"


FULL_PRECISION = "full precision"


def maker(node: fx.Node) -> fx.Node:
    """The node that computes a tensor: of a part of a tuple, the op that returned the tuple."""
    while node.target is operator.getitem:
        source = node.args[0]
        if not isinstance(source, fx.Node) or not isinstance(example(source), tuple | list):
            break
        node = source
    return node


def multiplied(
    node: fx.Node, recipe: Recipe, gemm_: Gemm | None, *, prefix: str = ""
) -> Multiplied | None:
    """What multiplies a node's operands by `gemm_` (None: in full precision); None of no product.

    A part of a tuple, as recurrent layers and attention with weights return one, is what made it.
    """
    node = maker(node)
    if not rule_of(node).product and unrounded_reason(node) is None:
        return None
    if gemm_ is not None:
        formats = formats_at(node, gemm_, recipe.executor)
        executor = formats.executor if fits_gemm(node) else "rounded at its edges"
        return Multiplied(f"{formats} ({executor})", None)
    if not recipe.rounds:
        return Multiplied(FULL_PRECISION, f"recipe {recipe.name} rounds nothing")
    if (pattern := skipping(node, recipe, prefix)) is not None:
        return Multiplied(FULL_PRECISION, f"skip={pattern!r}")
    return Multiplied(FULL_PRECISION, unrounded_reason(node) or why_unruled(node, recipe, prefix))


def why_unruled(node: fx.Node, recipe: Recipe, prefix: str) -> str:
    """Why no rule of the recipe rounds a product that could be rounded."""
    kind, rule = kind_of(node), rule_at(node, recipe, prefix)
    if rule is None:
        return f"recipe {recipe.name} has no rule for {kind} products"
    if rule.gemm is None or not rule.gemm.rounds:
        return f"recipe {recipe.name} keeps {kind} products in full precision"
    return refusal(node, rule.gemm) or "no rule rounds this op with these arguments"
