"""Recipes for a model that lies inside of another."""

from fnmatch import fnmatchcase

import pytest

from unitscale.recipes import RECIPES, Recipe, Rule
from unitscale.recipes.within import names_modules, within


@pytest.mark.parametrize("pattern", ["head", "*head", "layers.[01]", "*", "?*", "[!h]*", "a.*.b"])
@pytest.mark.parametrize("path", ["", "head", "layers.0", "layers.0.head", "a.c.b", "model"])
def test_a_pattern_matches_what_it_matched(pattern: str, path: str) -> None:
    moved = within(Recipe(name="mine", skip=(pattern,)), "model").skip
    inside = f"model.{path}" if path else "model"
    assert any(fnmatchcase(inside, p) for p in moved) == fnmatchcase(path, pattern)


def test_rules_for_everything_and_other_parts_stay() -> None:
    recipe = Recipe(name="mine", rules=(Rule(path="head"), *RECIPES["fp8"].rules), spare=("head",))
    moved = within(recipe, "model")
    assert [rule.path for rule in moved.rules] == ["model.head", *("*" for _ in recipe.rules[1:])]
    assert moved.spare == ("model.head",)
    assert within(recipe, "") is recipe
    assert within(RECIPES["fp8"], "model") == RECIPES["fp8"]


def test_which_recipes_name_modules() -> None:
    assert names_modules(Recipe(name="mine", skip=("head",)))
    assert names_modules(Recipe(name="mine", rules=(Rule(path="head"),)))
    assert not any(names_modules(recipe) for recipe in RECIPES.values())
