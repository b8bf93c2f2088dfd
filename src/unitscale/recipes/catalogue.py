"""The recipes by name. A suffix says where the scale comes from: none = unit-scaled."""

from dataclasses import replace
from difflib import get_close_matches

from unitscale.formats import BF16, E4M3FN, E5M2, FP16
from unitscale.recipes.recipe import Recipe

STATIC_LOSS_SCALE = 2048.0
"""The static loss scale of the paper's FP16 baselines (Blake et al. 2023, character LM)."""

PLAIN = Recipe(name="fp32")
BF16_PRODUCTS = Recipe(name="bf16", forward=BF16, backward=BF16, result=BF16)
FP16_PRODUCTS = Recipe(name="fp16-none", forward=FP16, backward=FP16, result=FP16)
FP8_PRODUCTS = Recipe(name="fp8-none", forward=E4M3FN, backward=E5M2)
FP8_TO_BF16_PRODUCTS = replace(FP8_PRODUCTS, name="fp8-bf16-none", result=BF16)
"""What FP8 hardware gives a model that is in BF16: the results of FP8 products are BF16."""
E4M3_PRODUCTS = Recipe(name="fp8-e4m3-none", forward=E4M3FN, backward=E4M3FN)

RECIPES: dict[str, Recipe] = {
    recipe.name: recipe
    for recipe in (
        PLAIN,
        BF16_PRODUCTS,
        FP16_PRODUCTS,
        replace(FP16_PRODUCTS, name="fp16-loss", source="loss", loss_scale=STATIC_LOSS_SCALE),
        replace(FP16_PRODUCTS, name="fp16-loss-dynamic", source="loss", loss_scale="dynamic"),
        FP8_PRODUCTS,
        FP8_TO_BF16_PRODUCTS,
        E4M3_PRODUCTS,
        replace(FP8_PRODUCTS, name="fp8-current", source="current"),
        replace(E4M3_PRODUCTS, name="fp8-e4m3-current", source="current"),
        replace(PLAIN, name="fp32-units", source="unit"),
        replace(BF16_PRODUCTS, name="bf16-units", source="unit"),
        replace(FP16_PRODUCTS, name="fp16", source="unit"),
        replace(FP8_PRODUCTS, name="fp8", source="unit"),
        replace(FP8_TO_BF16_PRODUCTS, name="fp8-bf16", source="unit"),
        replace(E4M3_PRODUCTS, name="fp8-e4m3", source="unit"),
    )
}


def without_loss_scale(recipe: Recipe) -> Recipe:
    """The products of a recipe alone: for a caller that multiplies the loss itself."""
    if recipe.loss_scale is None:
        return recipe
    return replace(recipe, source="none", loss_scale=None)


def parse(recipe: str | Recipe) -> Recipe:
    """The recipe of that name; a `Recipe` is returned as it is.

    Raises:
        ValueError: no recipe has that name; lists the legal names and suggests the nearest.
    """
    if isinstance(recipe, Recipe):
        return recipe
    if recipe in RECIPES:
        return RECIPES[recipe]
    near = get_close_matches(recipe, RECIPES, n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    raise ValueError(f"unknown recipe {recipe!r}; the recipes are {', '.join(RECIPES)}.{hint}")
