"""`unitscale recipes`: the recipes as a table. Imports no torch."""

import json as json_module
from typing import TYPE_CHECKING, Any

from unitscale.cli.option import Json
from unitscale.cli.output import show

if TYPE_CHECKING:
    from unitscale.recipes import Recipe

USED_BY = {
    "fp32": "the baseline of every comparison",
    "bf16": "most large models (Kalamkar et al. 2019)",
    "fp16-none": "nobody: what FP16 loses without a scale",
    "fp16-loss": "Micikevicius et al. 2018",
    "fp16-loss-dynamic": "torch.amp.GradScaler, Apex",
    "fp8-none": "nobody: what FP8 loses without a scale",
    "fp8-bf16-none": "nobody: fp8-none with BF16 results",
    "fp8-e4m3-none": "nobody: what E4M3 gradients lose so",
    "fp8-current": "torchao float8, Transformer Engine",
    "fp8-e4m3-current": "DeepSeek-V3's format, a scale per tensor",
    "fp32-units": "the control of the unit-scaled recipes",
    "bf16-units": "a unit-scaled model in BF16",
    "fp16": "Unit Scaling (Blake et al. 2023)",
    "fp8": "Unit Scaling (Blake et al. 2023)",
    "fp8-bf16": "fp8 with BF16 results, as on FP8 hardware",
    "fp8-e4m3": "Unit Scaling with E4M3 gradients too",
}
"""Who trains with a recipe, or what it is for: so short that a row stays on one line."""

SCALES = {"none": "cast as it is", "unit": "the tensor's unit", "current": "its amax now"}


def recipes(json: Json = False) -> None:
    """List the recipes: their formats, where an operand's scale comes from, and who uses them.

    `forward` is the format of inputs and weights, `backward` that of the gradients of outputs, and
    `result` what the three products are rounded to. In the Python API: `unitscale.recipes.RECIPES`.
    """
    from unitscale.recipes import RECIPES

    rows = [describe(recipe) for recipe in RECIPES.values()]
    if json:
        print(json_module.dumps(rows, indent=2))
        return
    from unitscale.report import plain_table

    show(
        plain_table(
            [
                {k.replace("_", " "): "as is" if v is None else v for k, v in row.items()}
                for row in ({k: v for k, v in row.items() if k != "products"} for row in rows)
            ]
        )
    )


def describe(recipe: "Recipe") -> dict[str, Any]:
    """One row of the table; in JSON with the three products."""
    forward, backward, result = (
        fmt.name if fmt else None for fmt in (recipe.forward, recipe.backward, recipe.result)
    )
    scale = SCALES.get(recipe.source)
    if recipe.loss_scale is not None:
        is_static = not isinstance(recipe.loss_scale, str)
        scale = f"of the loss: {recipe.loss_scale:g}" if is_static else "of the loss: dynamic"
    return {
        "recipe": recipe.name,
        "forward": forward,
        "backward": backward,
        "result": result,
        "scale": scale or recipe.source,
        "used_by": USED_BY.get(recipe.name, ""),
        "products": [
            dict(zip(("product", "left", "right", "result"), row, strict=True))
            for row in recipe.products()
        ],
    }
