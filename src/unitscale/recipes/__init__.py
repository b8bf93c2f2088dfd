"""Which operand of which product is rounded to which format, and where its scale comes from."""

from unitscale.recipes.catalogue import (
    RECIPES,
    STATIC_LOSS_SCALE,
    parse,
    without_loss_scale,
)
from unitscale.recipes.recipe import Recipe

__all__ = ["RECIPES", "STATIC_LOSS_SCALE", "Recipe", "parse", "without_loss_scale"]
