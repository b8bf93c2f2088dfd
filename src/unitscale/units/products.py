"""Which ops of a graph are products that the recipe rounds, and what multiplies them."""

import operator
from collections.abc import Callable
from fnmatch import fnmatchcase
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx

from unitscale import gemm
from unitscale.gemm import ProductFormats, choose
from unitscale.graph.capture import module_path
from unitscale.recipes import Recipe
from unitscale.units.ops import operands, rule_of

# Products that `gemm` computes itself, with operands held in eight bits; the others are rounded
# at their edges.
GEMM: dict[Callable[..., Any] | str, Callable[..., Tensor]] = {
    F.linear: gemm.linear,
    F.conv1d: gemm.conv1d,
    F.conv2d: gemm.conv2d,
    F.conv3d: gemm.conv3d,
    F.scaled_dot_product_attention: gemm.scaled_dot_product_attention,
    torch.matmul: gemm.matmul,
    operator.matmul: gemm.matmul,
    torch.mm: gemm.matmul,
    torch.bmm: gemm.matmul,
    "matmul": gemm.matmul,
    "mm": gemm.matmul,
    "bmm": gemm.matmul,
    "__matmul__": gemm.matmul,
    torch.addmm: gemm.addmm,
    "addmm": gemm.addmm,
}


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


def is_rounded_product(node: fx.Node, recipe: Recipe) -> bool:
    """Whether the recipe rounds the operands of this node."""
    path = module_path(node)
    skipped = any(fnmatchcase(path, pattern) for pattern in recipe.skip)
    return recipe.rounds and not skipped and rule_of(node).product


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
