"""Recipes by what a command line says: names, groups of names, and recipes of one's own.

    nvfp4                        of the catalogue
    rivals, all                  groups of it, where several recipes are taken
    mine.py:RECIPE               a `Recipe` in a file
    my.code:RECIPE               a `Recipe` in a module

Imports no torch, unless a person's own module does.
"""

from collections.abc import Iterable

from unitscale.models.existing import import_attribute
from unitscale.recipes import RECIPES, RIVALS, TRUE_FP16, Recipe, parse

__all__ = ["GROUPS", "expanded", "find_recipe", "is_own", "refuse_throughout"]

GROUPS: dict[str, tuple[str, ...]] = {"all": tuple(RECIPES), "rivals": RIVALS}


def is_own(name: str) -> bool:
    """Whether a name is that of a person's own recipe, MODULE:NAME or FILE.py:NAME."""
    return ":" in name


def find_recipe(name: str) -> Recipe:
    """The recipe that a name stands for.

    Raises:
        ValueError: there is none; a group, where one recipe is expected; something else than a
            recipe; one that has the name of another recipe of the catalogue.
    """
    if name in GROUPS:
        raise ValueError(
            f"{name!r} is a group of {len(GROUPS[name])} recipes; expected one, such as "
            f"{GROUPS[name][-1]!r}"
        )
    if not is_own(name):
        return parse(name)
    found = import_attribute(name, "recipe")
    if not isinstance(found, Recipe):
        raise ValueError(f"{name} is a {type(found).__name__}; expected a unitscale.recipes.Recipe")
    if found.name in GROUPS or (RECIPES | TRUE_FP16).get(found.name, found) != found:
        raise ValueError(
            f"{name} is called {found.name!r}, which is the name of another recipe; give it a name "
            "of its own"
        )
    return found


def expanded(names: Iterable[str]) -> list[str]:
    """The names between the commas, each once; a group stands for its recipes."""
    found: dict[str, None] = {}
    for name in (part.strip() for text in names for part in text.split(",")):
        if name:
            found |= dict.fromkeys(GROUPS.get(name, (name,)))
    return list(found)


def refuse_throughout(recipes: Iterable[Recipe], command: str) -> None:
    """Raise ValueError for a recipe of one format for every tensor, where products alone count."""
    for recipe in recipes:
        if recipe.throughout is not None:
            raise ValueError(
                f"recipe {recipe.name!r} rounds every tensor of a training run, and {command} is "
                "about what is rounded in products; take 'fp16-none' or 'fp16'"
            )
