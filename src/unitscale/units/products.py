"""Which ops of a graph are products that the recipe rounds, and what multiplies them."""

import operator
from fnmatch import fnmatchcase
from typing import NamedTuple

import torch.nn.functional as F
from torch import fx

from unitscale import gemm
from unitscale.gemm import ProductFormats, choose
from unitscale.graph.capture import module_path
from unitscale.graph.dynamo import example
from unitscale.recipes import Recipe
from unitscale.units.ops import GEMM, operands, rule_of, unrounded_reason


def formats_of(recipe: Recipe) -> ProductFormats:
    """The recipe's formats by name."""
    forward, backward, result = (
        f.name if f else None for f in (recipe.forward, recipe.backward, recipe.result)
    )
    current, unit = recipe.source == "current", recipe.unit_scaled
    return ProductFormats(forward, backward, result, current, unit, recipe.executor)


def formats_at(node: fx.Node, recipe: Recipe) -> ProductFormats:
    """The recipe's formats, with the executor that the device of a product has for them.

    Raises:
        ValueError: the executor that the recipe names cannot run this product.
    """
    if not fits_gemm(node):
        return formats_of(recipe)._replace(executor="emulated")
    example = node.meta["example_value"]
    return choose(formats_of(recipe), example.dtype, example.device)


def is_rounded_product(node: fx.Node, recipe: Recipe, prefix: str = "") -> bool:
    """Whether the recipe rounds the operands of this node.

    `prefix` is what its module path lacks, see `graph.place`.
    """
    return recipe.rounds and rule_of(node).product and not skipping(node, recipe, prefix)


def skipping(node: fx.Node, recipe: Recipe, prefix: str = "") -> str | None:
    """The pattern of `recipe.skip` that a node's module, or a module around that, matches."""
    path = (prefix + module_path(node)).removesuffix(".")
    names = path.split(".") if path else []
    around = [".".join(names[:count]) for count in range(len(names) + 1)]
    matches = (pattern for pattern in recipe.skip for x in around if fnmatchcase(x, pattern))
    return next(matches, None)


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
    node: fx.Node, recipe: Recipe, *, is_rounded: bool, prefix: str = ""
) -> Multiplied | None:
    """What multiplies a node's operands; None of an op that is no product.

    A part of a tuple, as recurrent layers and attention with weights return one, is what made it.
    """
    node = maker(node)
    if not rule_of(node).product and unrounded_reason(node) is None:
        return None
    if is_rounded:
        formats = formats_at(node, recipe)
        forward, backward = formats.forward or "as is", formats.backward or "as is"
        result = f" -> {formats.result}" if formats.result else ""
        executor = formats.executor if fits_gemm(node) else "rounded at its edges"
        return Multiplied(f"{forward}, gradients {backward}{result} ({executor})", None)
    if not recipe.rounds:
        return Multiplied(FULL_PRECISION, f"recipe {recipe.name} rounds nothing")
    if pattern := skipping(node, recipe, prefix):
        return Multiplied(FULL_PRECISION, f"skip={pattern!r}")
    why = unrounded_reason(node) or "no rule rounds this op with these arguments"
    return Multiplied(FULL_PRECISION, why)
