"""Which tensors of a recording the recipe of its run rounds: the operands of matrix products.

A row may say so itself (`operand`, true or false). Where it does not, the op that made the tensor
and its name decide:

    gradient   of what a product made: the product's `grad_output`
    parameter  of a module that has a product, its bias apart: the product's weight
    value      of any other op: its consumers are not in the rows, so each may be an operand
    state      an optimizer's moment: no operand

So a bias, the gain of a norm, an embedding's table and the gradient of a sum do not count, however
much of them a format would lose.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from unitscale.recipes import Recipe

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
