"""`print(recipe)` leaves out nothing that changes what the recipe does."""

from dataclasses import fields, replace

import pytest

from unitscale.formats import E4M3FN, E5M2, FP16
from unitscale.recipes import Recipe, Throughout, uniform

FP8 = uniform(E4M3FN, E5M2)

SHOWN = {
    "activations": (FP16, "tensors between products: FP16"),
    "saved": (E4M3FN, "held for backward outside of products: E4M3FN"),
    "optimizer": ("coat", "optimizer states: coat"),
    "collectives": ("fp8", "gradients between processes: fp8"),
    "loss_scale": (8.0, "loss scale: 8.0"),
    "skip": (("*.mlp", "head"), "in full precision: *.mlp, head"),
    "spare": (("head",), "in full precision where a model has them: head"),
    "fused": ((("a", "b"),), "weights side by side share one unit: a, b"),
    "executor": ("emulated", "executor: emulated"),
    "source": ("a paper", "source: a paper"),
    "users": ("nobody", "mine: nobody"),
    "name": ("yours", "yours"),
    "rules": (uniform(FP16, FP16), "output       FP16 cast @ FP16 cast"),
}


@pytest.mark.parametrize("name", [f.name for f in fields(Recipe) if f.name != "throughout"])
def test_every_part_of_a_recipe_is_printed(name):
    recipe = Recipe(name="mine", rules=FP8)
    value, line = SHOWN[name]
    changed = str(replace(recipe, **{name: value})).splitlines()
    assert line in [text.strip() for text in changed]
    assert line not in [text.strip() for text in str(recipe).splitlines()]
    is_told = any(text.strip() == "every product" for text in changed)
    assert is_told == (name not in ("skip", "spare"))


def test_one_format_throughout_is_printed():
    assert "  every tensor of a training run: FP16 nearest" in str(
        Recipe(name="mine", throughout=Throughout())
    )
