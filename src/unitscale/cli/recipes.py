"""`unitscale recipes`: the recipes as a table, or some of them in full. Imports no torch."""

import json as json_module
from textwrap import wrap
from typing import TYPE_CHECKING, Annotated, Any

import typer

from unitscale.cli.exit import checking_arguments
from unitscale.cli.option import Json
from unitscale.cli.output import WIDTH_OF_A_FILE, show

if TYPE_CHECKING:
    from unitscale.recipes import Operand, Recipe

SCALES = {
    "Cast": "cast as it is",
    "Unit": "the tensor's unit",
    "Constant": "a constant",
    "Delayed": "amax of earlier steps",
    "Current": "its amax now",
}
SHORT = {
    "cast as it is": "none",
    "the tensor's unit": "unit",
    "a constant": "constant",
    "amax of earlier steps": "amax before",
    "its amax now": "amax now",
}


def recipes(
    names: Annotated[
        list[str] | None,
        typer.Argument(
            help="Recipes to show in full, by name, as MODULE:NAME or as FILE.py:NAME; or a group. "
            "None lists all."
        ),
    ] = None,
    json: Json = False,
) -> None:
    """List the recipes: their formats, where an operand's scale comes from, and who uses them.

    A line has the format of inputs and weights, that of gradients (and what results are rounded
    to), where the scale comes from and which values share one, and which products are rounded. With
    names, every operand of every product of those recipes, and the source; a group (`rivals`) is
    listed in lines too. In the Python API: `unitscale.recipe(name)`.
    """
    from unitscale.train.named import GROUPS, expanded, find_recipe

    with checking_arguments():
        chosen = [find_recipe(name) for name in expanded(names or ["all"])]
    if json:
        print(json_module.dumps([describe(recipe) for recipe in chosen], indent=2))
        return
    if names and not GROUPS.keys() & set(names):
        show("\n\n".join(map(str, chosen)))
        return
    from unitscale.report import plain_table

    show(plain_table([line(describe(recipe)) for recipe in chosen]))
    for recipe in chosen:
        for op, fmt in other_formats(recipe).items():
            show(f"{recipe.name}: {op} products in {fmt}")
    if not names:
        text = "groups, wherever several recipes are taken: all; and rivals, one of each kind that "
        text += f"people train with: {', '.join(GROUPS['rivals'])}"
        from unitscale.recipes import TRUE_FP16

        every = "for character models, every tensor of a training run in one format: "
        every += f"{', '.join(TRUE_FP16)}; fp16-true(11) has the loss times 2^11"
        for said in (every, text):
            show(*wrap(said, WIDTH_OF_A_FILE, break_on_hyphens=False))


def line(row: dict[str, Any]) -> dict[str, str]:
    """A row of the table in short words, so that it stays on one line."""
    gradients = row["backward"] or "-"
    if row["result"]:
        gradients += f" -> {row['result']}"
    scale = SHORT.get(row["scale"], row["scale"].removeprefix("of the "))
    if row["shared_by"] not in ("", "tensor"):
        scale += f", {row['shared_by'].replace(', ', '/')}"
    products = {"every product": "all", "every tensor": "tensors", "nothing": "-"}.get(
        row["rounds"], ", ".join(x for x in row["rounds"].split(", ") if x not in row["others"])
    )
    return {
        "recipe": row["recipe"],
        "values": (row["forward"] or "-").removeprefix("MX_"),
        "gradients": gradients.removeprefix("MX_"),
        "scale": scale,
        "products": products,
        "used by": row["used_by"],
    }


def describe(recipe: "Recipe") -> dict[str, Any]:
    """One row of the table; in JSON with the three products."""
    value, gradient, result = recipe.value, recipe.gradient, recipe.main.results
    if recipe.throughout is not None:
        from unitscale.recipes import Operand

        value = gradient = Operand(recipe.throughout.format, value.scale)
    return {
        "recipe": recipe.name,
        "forward": value.format.name if value.format else None,
        "backward": gradient.format.name if gradient.format else None,
        "result": result.name if result else None,
        "scale": scale_of(recipe, value),
        "shared_by": shared_by(recipe),
        "rounds": ", ".join(rule.op for rule in recipe.rules).replace("*", "every product")
        if recipe.rounds
        else "every tensor"
        if recipe.throughout
        else "nothing",
        "others": other_formats(recipe),
        "saved": None if recipe.saved is None else str(recipe.saved),
        "used_by": recipe.users,
        "source": recipe.source,
        "chosen": list(recipe.chosen),
        "products": [
            dict(zip(("product", "left", "right", "result"), row, strict=True))
            for row in recipe.products()
        ],
    }


def other_formats(recipe: "Recipe") -> dict[str, str]:
    """The kinds of products that are rounded in another format than most, with that format."""
    own = {rule.op: rule.gemm.output[0].format for rule in recipe.rules if rule.gemm is not None}
    return {
        op: fmt.name for op, fmt in own.items() if fmt is not None and fmt != recipe.value.format
    }


def scale_of(recipe: "Recipe", value: "Operand") -> str:
    """Where the scale of most operands comes from, in words."""
    if recipe.loss_scale is None:
        return SCALES[type(value.scale).__name__]
    is_static = not isinstance(recipe.loss_scale, str)
    return f"of the loss: {recipe.loss_scale:g}" if is_static else "of the loss: dynamic"


def shared_by(recipe: "Recipe") -> str:
    """Which values share a scale: of the input, and of the weight where that differs."""
    value, weight = recipe.main.output
    names = dict.fromkeys((str(value.granularity), str(weight.granularity)))
    return ", ".join(names) if recipe.rounds else ""
