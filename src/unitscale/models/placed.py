"""Recipes whose patterns are of a person's own model, for the model of a loss that is around it."""

from dataclasses import replace

from torch import nn

from unitscale.models.next_byte import INSIDE, NextByte, own_model
from unitscale.recipes import Recipe
from unitscale.recipes.within import within
from unitscale.units.placing import NOTHING, placed

__all__ = ["as_own", "check_recipe", "moved_inside"]


def check_recipe(recipe: Recipe, model: nn.Module) -> None:
    """Raise ValueError for a pattern that matches no module of the model that a person wrote.

    Executors are not looked at: they are of the device on which the model will be.
    """
    placed(replace(recipe, executor="auto"), own_model(model), NOTHING, f"recipe {recipe.name!r}")


def moved_inside(recipe: Recipe, model: nn.Module) -> Recipe:
    """The recipe with the paths that modules have in `model`."""
    return within(recipe, INSIDE.removesuffix(".")) if isinstance(model, NextByte) else recipe


def as_own(text: str, model: nn.Module) -> str:
    """A reason of `us.summary` that names modules, with the paths that a person knows them by."""
    if not isinstance(model, NextByte):
        return text
    return text.replace(f"skip='{INSIDE}", "skip='").removeprefix(INSIDE)
