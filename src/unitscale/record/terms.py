"""Which recipes are asked about, what each does to a product, and what it has nothing to say of."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from torch import fx, nn

from unitscale.gemm import ProductFormats
from unitscale.graph.dynamo import example
from unitscale.recipes import RECIPES, RIVALS, Recipe, parse
from unitscale.record.product import layer_of
from unitscale.units.ops import operands, rule_of
from unitscale.units.placing import NOTHING, placed
from unitscale.units.products import (
    FULL_PRECISION,
    formats_at,
    gemm_at,
    multiplied,
    operands_at,
)

__all__ = ["Terms", "asked_of_model", "complaints", "recipes_of", "terms_of"]

DYNAMIC_LOSS_LOG2 = 16
"""Of a dynamic loss scale: where torch.amp.GradScaler begins."""


GROUPS: dict[str, tuple[str, ...]] = {"all": tuple(RECIPES), "rivals": RIVALS}


def recipes_of(what_if: str | Iterable[str | Recipe]) -> list[Recipe]:
    """The recipes that are asked for, each once.

    A text may name several, with commas between them. "all" and "rivals" are groups, of which those
    count that round something.

    Raises:
        ValueError: an unknown name, two recipes of one name, or none at all.
    """
    asked = what_if.split(",") if isinstance(what_if, str) else list(what_if)
    if not asked:
        raise ValueError('what_if is empty; name at least one recipe, or "all", or leave it out')
    found: dict[str, Recipe] = {}
    named: set[str] = set()
    for one in (x.strip() if isinstance(x, str) else x for x in asked):
        if isinstance(one, str) and one in GROUPS:
            known = {name: RECIPES[name] for name in GROUPS[one] if RECIPES[name].rounds}
            found = known | found
            continue
        recipe = parse(one)
        if recipe.name in named or found.get(recipe.name, recipe) != recipe:
            raise ValueError(f"what_if names {recipe.name!r} twice; name each recipe once")
        named.add(recipe.name)
        found[recipe.name] = recipe
    return list(found.values())


def asked_of_model(recipe: Recipe, model: nn.Module) -> Recipe:
    """A recipe as it would be in force in a model, whatever the device can compute.

    Raises:
        ValueError: a pattern matches no module.
    """
    caller = f"what_if, recipe {recipe.name!r}"
    return placed(replace(recipe, executor="emulated"), model, NOTHING, caller)


class Terms(NamedTuple):
    """What one recipe does to one product: the texts of its operands, or why it rounds nothing."""

    recipe: Recipe
    formats: ProductFormats | None
    why: str
    loss_log2: int


def terms_of(node: fx.Node, recipe: Recipe, prefix: str) -> Terms:
    """What a recipe does to a product, by its own rules."""
    found = gemm_at(node, recipe, prefix)
    loss = recipe.loss_scale
    log2 = DYNAMIC_LOSS_LOG2 if loss == "dynamic" else round(math.log2(float(loss or 1)))
    if found is None:
        by = multiplied(node, recipe, None, prefix=prefix)
        return Terms(recipe, None, FULL_PRECISION if by is None else str(by), log2)
    formats = formats_at(node, found, "emulated")
    taken = operands(node, rule_of(node))
    form = layer_of(node, *map(example, taken)) if len(taken) == 2 else None
    if form is not None:
        return Terms(recipe, formats.crossed() if form.is_crossed else formats, "", log2)
    texts = [str(operand) if operand.rounds else None for operand in operands_at(node, found)]
    return Terms(recipe, formats._replace(x_output=texts[0], w_output=texts[-1]), "", log2)


def complaints(
    rows: Sequence[Mapping[str, Any]], recipes: Sequence[str], model: str, step: int
) -> Iterator[str]:
    """What a step has nothing to say about, in words: no product, or none that a recipe rounds."""
    if not rows:
        yield (
            f"what_if: no product of this {model} was seen at step {step}, so nothing is known of "
            f"{', '.join(recipes)}"
        )
        return
    for name in recipes:
        whys = [row["recipes"][name].get("why") for row in rows]
        if all(why is not None for why in whys):
            products = "product" if len(rows) == 1 else "products"
            verb = "rounds" if whys[0].startswith(FULL_PRECISION) else "was measured in"
            yield (
                f"what_if: recipe {name!r} {verb} none of the {len(rows)} {products} of this "
                f"{model}; of {rows[0]['what_if']!r}: {whys[0]}"
            )
