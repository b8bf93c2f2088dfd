"""Which products to keep in full precision, by how far the error of each moves the loss.

A product's harm under a recipe is the relative error of each of its results times what is at stake
in that result (`stake.py`; both from `what_if` rows), summed, and averaged over the steps. What a
module saves is the sum of the harm of its products, what it costs their multiply-adds. Modules are
taken by harm per multiply-add until the budget is spent:

    v_proj    error 0.1, at stake 0.006, 1 of 100 multiply-adds     0.00060 for each      first
    down_proj error 0.2, at stake 0.004, 3 of 100                   0.00027 for each      second

The error alone will not do: those of most products are alike, while what is at stake differs a
hundredfold, from the values and the read-out to the queries and keys of the last layers.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from glob import escape
from typing import Any

from unitscale.recipes import Recipe

__all__ = ["Candidate", "Gain", "candidates", "gains", "suggest_skip"]

Row = Mapping[str, Any]

LOST = 1.0
"""The relative error of a result that is no number: as if all of it was lost."""


@dataclass
class Candidate:
    """A module that may be kept in full precision.

    Args:
        pattern: of its path, as `skip=` takes it.
        harm: of its products, the sum.
        share: of the multiply-adds that the recipe rounds.
    """

    pattern: str
    harm: float
    share: float

    @property
    def gain(self) -> float:
        """Harm that is saved for each multiply-add."""
        return self.harm / self.share if self.share else math.inf


@dataclass(frozen=True, kw_only=True)
class Gain:
    """What one pattern of a skip list is predicted to save and to cost, after those before it.

    Args:
        pattern: of the module.
        error_before, error_after: how far the errors of all products move the loss, without and
            with the module in full precision: the sum of their harms.
        share: of the multiply-adds that the recipe rounds, which are kept high for it.
    """

    pattern: str
    error_before: float
    error_after: float
    share: float


@dataclass
class Measured:
    """One product: its module, its multiply-adds and its harm at the steps."""

    module: str
    macs: int
    harms: list[float]


def suggest_skip(rows: Iterable[Any], recipe: str | Recipe, *, budget: float = 0.1) -> list[str]:
    """The modules to keep in full precision under a recipe, as patterns for `skip=`, best first.

    Args:
        rows: of a recording with `what_if=[recipe]`; rows of other kinds are passed over.
        budget: the share, of the multiply-adds that the recipe rounds, that may stay in full
            precision.
    Raises:
        ValueError: a budget outside of 0 to 1; rows that say nothing of this recipe.
    """
    if not 0 <= budget <= 1:
        raise ValueError(f"suggest_skip: budget is {budget}; expected a share from 0 to 1")
    chosen: list[str] = []
    left = budget * (1 + 1e-9)  # shares are rounded, and a budget of 1 is all
    for candidate in candidates(rows, recipe):
        if candidate.share <= left:
            left -= candidate.share
            chosen.append(candidate.pattern)
    return chosen


def gains(rows: Iterable[Any], recipe: str | Recipe, patterns: Iterable[str]) -> list[Gain]:
    """What each pattern of a skip list is predicted to save and to cost, one after another.

    Args:
        rows: as `suggest_skip` takes them.
        patterns: that it gave for these rows.
    Raises:
        ValueError: rows that say nothing of this recipe, a pattern of no candidate.
    """
    name, rows = recipe.name if isinstance(recipe, Recipe) else recipe, list(rows)
    known = {candidate.pattern: candidate for candidate in candidates(rows, name)}
    error = sum(sum(p.harms) / len(p.harms) for p in measured(rows, name).values())
    found = []
    for pattern in patterns:
        if pattern not in known:
            raise ValueError(
                f"suggest_skip: {pattern!r} is no candidate of these rows; expected of "
                f"{', '.join(known)}"
            )
        one = known.pop(pattern)
        after = max(0.0, error - one.harm)  # sums in another order
        found.append(Gain(pattern=pattern, error_before=error, error_after=after, share=one.share))
        error = after
    return found


def candidates(rows: Iterable[Any], recipe: str | Recipe) -> list[Candidate]:
    """The modules with products that a recipe rounds, by harm for each multiply-add.

    A module that has products of its own and modules with products inside stands for all of them,
    as its pattern does; what is inside stands there too. Products outside of every module have no
    pattern.

    Raises:
        ValueError: rows that say nothing of this recipe.
    """
    name = recipe.name if isinstance(recipe, Recipe) else recipe
    products = measured(rows, name)
    total = sum(product.macs for product in products.values())
    found: list[Candidate] = []
    for module in dict.fromkeys(p.module for p in products.values() if p.module):
        inside = [
            p for p in products.values() if p.module == module or p.module.startswith(module + ".")
        ]
        harm = sum(sum(p.harms) / len(p.harms) for p in inside)
        share = sum(p.macs for p in inside) / total if total else 0.0
        found.append(Candidate(escape(module), harm, share))
    found.sort(key=lambda candidate: -candidate.gain)
    return without_what_is_inside(found)


def without_what_is_inside(found: list[Candidate]) -> list[Candidate]:
    """Candidates without those that lie inside a better one, whose multiply-adds count there."""
    kept: list[Candidate] = []
    for candidate in found:
        around = [
            other
            for other in kept
            if candidate.pattern.startswith(other.pattern + ".")
            or other.pattern.startswith(candidate.pattern + ".")
        ]
        if not around:
            kept.append(candidate)
    return kept


def measured(rows: Iterable[Any], recipe: str) -> dict[str, Measured]:
    """The products that a recipe rounds, by name.

    Raises:
        ValueError: the rows have no what-if at all, none of this recipe, or it rounds nothing; no
            gradient came.
    """
    found: dict[str, Measured] = {}
    recipes: dict[str, None] = {}
    whys: dict[str, None] = {}
    has_stakes = False
    for row in rows:
        if not isinstance(row, Mapping) or "what_if" not in row:
            continue
        recipes |= dict.fromkeys(row["recipes"])
        numbers = row["recipes"].get(recipe)
        if numbers is None:
            continue
        if "why" in numbers:
            whys[numbers["why"]] = None
            continue
        product = found.setdefault(row["what_if"], Measured(row["module"], row["macs"], []))
        has_stakes |= bool(row.get("stakes"))
        product.harms.append(harm_of(numbers["errors"], row.get("stakes", {})))
    if not recipes:
        raise ValueError(
            f"suggest_skip: no row says what {recipe} would do; record with what_if=[{recipe!r}]"
        )
    if recipe not in recipes:
        raise ValueError(
            f"suggest_skip: the rows say nothing of {recipe}; they know {', '.join(recipes)}"
        )
    if not found:
        raise ValueError(
            f"suggest_skip: {recipe} was measured in no product here, so there is nothing to keep: "
            f"{'; '.join(list(whys)[:2])}"
        )
    if not has_stakes:
        raise ValueError(
            "suggest_skip: the rows do not say what is at stake in any product: no gradient came "
            "(call loss.backward() while recording), or they are of an older version"
        )
    return found


def harm_of(errors: Mapping[str, float | None], stakes: Mapping[str, float | None]) -> float:
    """How far the errors of a product's results move the loss; those that nothing is known of, not.

    What is at stake may be no number either: it counts as nothing, as the step is of no use.
    """
    return sum(
        (LOST if error is None else error) * (stakes.get(name) or 0.0)
        for name, error in errors.items()
    )
