"""Which tensors of a recording the recipe of its run rounds: the operands of matrix products.

A row may say so itself (`operand`, true or false). Where it does not, the op that made the tensor
and its name decide:

    gradient   of what a product made: the product's `grad_output`
    parameter  of a module that has a product, its bias apart: the product's weight
    value      of any other op: its consumers are not in the rows, so each may be an operand
    state      an optimizer's moment: no operand

So a bias, the gain of a norm, an embedding's table and the gradient of a sum do not count, however
much of them a format would lose.

A row says what its format loses of the tensor as it is held: at its unit, its constant, or as it
is. Where the recipe computes a scale from the tensor (`current`, `delayed`, blocks) that says
nothing of what is lost, and there is no verdict on the row (`computes_scale`):

    a gradient with an amax of 2**-20, under `E5M2 current`: all of it is flushed as it is held, and
    none of it once its scale has brought the amax to 57344.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from unitscale.formats import BlockFormat
from unitscale.recipes import Constant, Current, Delayed, Operand, Recipe, parse_operand

Row = Mapping[str, Any]

PRODUCTS = frozenset(
    {
        *("linear", "conv1d", "conv2d", "conv3d", "scaled_dot_product_attention", "einsum"),
        *("conv_transpose1d", "conv_transpose2d", "conv_transpose3d", "bilinear", "inner"),
        *("matmul", "__matmul__", "mm", "bmm", "addmm", "baddbmm", "addbmm", "mv", "addmv"),
        *("tensordot", "multi_dot", "chain_matmul", "linear_readout", "dot"),
    }
)
"""Ops that are matrix products, by the name that a row has."""


def path_of(name: str) -> str:
    """The path of the module in a tensor's name, which ends in an op or in a parameter's name."""
    return name.split("#")[0].rpartition(".")[0]


def operand_test(rows: Iterable[Row], recipe: Recipe | None = None) -> Callable[[Row], bool]:
    """Whether a row is of a tensor that the recipe rounds, or of one that some recipe would.

    Args:
        rows: all rows of a model, or one of each tensor, from which its products are known.
        recipe: None, and one that rounds nothing, stand for a recipe that rounds every product.
    """
    modules = {path_of(row["name"]) for row in rows if row["op"] in PRODUCTS}
    holds_all = recipe is not None and recipe.activations is not None

    def is_operand(row: Row) -> bool:
        if isinstance(row.get("operand"), bool):
            return bool(row["operand"])
        if row["direction"] == "state":
            return False
        if row["op"] == "parameter":
            is_weight = not row["name"].endswith("bias") and path_of(row["name"]) in modules
            return row["direction"] == "value" and is_weight
        return holds_all or row["direction"] == "value" or row["op"] in PRODUCTS

    return is_operand


def operand_of(row: Row, recipe: Recipe | None) -> Operand | None:
    """How the recipe rounds the tensor of a row, if it does: as the row says, or its recipe.

    Returns:
        None where neither is known, or the recipe rounds nothing.
    """
    text = row.get("rounded_as")
    if text is not None:
        try:
            return parse_operand(text)
        except ValueError:  # of another version
            return None
    is_none = row["direction"] == "state" or row.get("operand") is False
    if recipe is None or not recipe.rounds or is_none:
        return None
    return recipe.gradient if row["direction"] == "gradient" else recipe.value


def computes_scale(row: Row, recipe: Recipe | None) -> bool:
    """Whether the scale of a row's tensor is not in the row, so that its shares say nothing.

    Of a constant it is, since rows say how they are rounded (`rounded_as`).
    """
    operand = operand_of(row, recipe)
    if operand is None or not operand.rounds:
        return False
    if isinstance(operand.scale, Constant):
        return operand.scale.log2 != 0 and "rounded_as" not in row
    return isinstance(operand.format, BlockFormat) or isinstance(operand.scale, Current | Delayed)
