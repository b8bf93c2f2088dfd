"""A recipe for a model that holds, at some path, the model that the recipe was written for.

Imports no torch.
"""

from dataclasses import replace
from fnmatch import fnmatchcase
from glob import escape

from unitscale.recipes.recipe import Recipe

__all__ = ["names_modules", "within"]


def names_modules(recipe: Recipe) -> bool:
    """Whether it has patterns that a model must have modules for."""
    return bool(recipe.skip) or any(rule.path != "*" for rule in recipe.rules)


def within(recipe: Recipe, path: str) -> Recipe:
    """The recipe with patterns of the paths that the model's modules have when it lies at `path`.

    A pattern that matches the model itself, as "*" does, goes on doing so.

    Args:
        path: where the model lies; "" leaves the recipe as it is.
    """
    if not path:
        return recipe

    def moved(pattern: str) -> tuple[str, ...]:
        itself = (escape(path),) if fnmatchcase("", pattern) else ()
        return (*itself, f"{escape(path)}.{pattern}")

    rules = tuple(
        rule if rule.path == "*" else replace(rule, path=pattern)
        for rule in recipe.rules
        for pattern in (moved(rule.path) if rule.path != "*" else "*")
    )
    skip, spare = (
        tuple(pattern for own in patterns for pattern in moved(own))
        for patterns in (recipe.skip, recipe.spare)
    )
    return replace(recipe, rules=rules, skip=skip, spare=spare)
