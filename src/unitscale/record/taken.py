"""Which tensors of a graph its products take, and how the recipe rounds each of them."""

import torch
from torch import Tensor, fx

from unitscale.formats import E4M3FN, E5M2, FloatFormat
from unitscale.graph.capture import TensorNode
from unitscale.graph.example import storage_id
from unitscale.recipes import Constant, Gemm, Operand, Recipe
from unitscale.units.ops import operands, rule_of
from unitscale.units.products import gemm_at, operands_at

__all__ = ["constant_log2", "formats_of", "is_reshaped", "operand_of", "true_value"]


def formats_of(recipe: Recipe) -> tuple[FloatFormat, FloatFormat]:
    """The formats of the elements of most values and of most gradients; FP8's without one."""
    return recipe.value.element or E4M3FN, recipe.gradient.element or E5M2


def operand_of(node: fx.Node, direction: str, recipe: Recipe, prefix: str) -> Operand | None:
    """How a product takes a tensor, or a view of it; as a gradient, that of its result.

    Of a recipe that rounds nothing every product counts, and its operands are as they are. Of
    another one only the products that it rounds. Several products: the first of them, forward.

    Returns:
        None if no such product takes it.
    """

    def gemm_of(product: fx.Node) -> Gemm | None:
        if not recipe.rounds:
            return Gemm() if rule_of(product).product else None
        return gemm_at(product, recipe, prefix)

    if direction == "gradient":
        gemm = gemm_of(node)
        return None if gemm is None else gemm.grad_input[0]
    for user in node.users:
        found: Operand | None = None
        if (gemm := gemm_of(user)) is not None:
            taken = operands(user, rule_of(user))
            found = operands_at(user, gemm)[taken.index(node)] if node in taken else None
        elif is_view(user, node):
            found = operand_of(user, direction, recipe, prefix)
        if found is not None:
            return found
    return None


def constant_log2(operand: Operand | None) -> int:
    """The exponent of the factor by which a constant scale multiplies a tensor before rounding."""
    is_constant = operand is not None and isinstance(operand.scale, Constant)
    return -operand.scale.log2 if is_constant else 0  # type: ignore[union-attr]


def is_view(node: fx.Node, base: fx.Node) -> bool:
    """Whether a node is another one in another shape or order: all its elements, in its memory."""
    value, other = (n.meta.get("example_value") for n in (node, base))
    return (
        isinstance(value, Tensor)
        and isinstance(other, Tensor)
        and value.numel() == other.numel()
        and storage_id(value) == storage_id(other) != 0
    )


def true_value(held: Tensor, log2: int) -> Tensor:
    """`held * 2**log2`; in float32 where it might leave the range of half precision."""
    if log2 == 0:
        return held
    wide = held.detach().float() if held.dtype == torch.float16 else held.detach()
    return wide * 2.0**log2


def is_reshaped(tensor: TensorNode) -> bool:
    """Whether a tensor is another one in another shape or order, so that its statistics are too."""
    if tensor.pinned is not None:  # written to in place, perhaps
        return False
    return any(is_view(tensor.node, base) for base in tensor.node.all_input_nodes)
