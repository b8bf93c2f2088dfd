"""What other recipes would make of a run, in words and tables: from its what-if rows.

How far a result is from FP32's is said in decibels, `-20 log10(error)`: an error of 3.2 % is 30 dB,
and one of 100 %, where nothing is left, 0 dB. Several steps count by the mean of their squares.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from unitscale.report.wording import plural

__all__ = ["Answer", "Answers", "answers_of", "recipe_rows", "sentences", "worst_rows"]

Row = Mapping[str, Any]

WORTH_NAMING_DB = 3.0
"""Decibels below the median of a recipe from which on a result is named: half of its signal."""

BEST_DB = 150.0
"""An error of float32's own rounding and less counts as this."""

RESULTS = ("output", "grad_input", "grad_weight")
WORDS = {
    "output": "the output",
    "grad_input": "the gradient of the input",
    "grad_weight": "the gradient of the weight",
}


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What one recipe makes of one product over all steps.

    Args:
        why: it has full precision, or was not measured; None of one that is rounded.
        decibels: of each result; None where it is no number.
        sqnr: the lowest of its operands; None where none has one.
        flushed, saturated: the largest share of an operand.
    """

    product: str
    module: str
    recipe: str
    why: str | None
    decibels: Mapping[str, float | None]
    sqnr: float | None
    flushed: float | None
    saturated: float | None

    @property
    def worst(self) -> float | None:
        """The decibels of its worst result; None if one is no number, or nothing was measured."""
        known = list(self.decibels.values())
        numbers = [x for x in known if x is not None]
        return min(numbers) if numbers and len(numbers) == len(known) else None


Answers = Sequence[Answer]


def answers_of(rows: Iterable[Row]) -> list[Answer]:
    """One answer for each product and recipe, in the order of the rows."""
    found: dict[tuple[str, str], list[tuple[Row, Row]]] = {}
    for row in rows:
        for recipe, numbers in row["recipes"].items():
            found.setdefault((row["what_if"], recipe), []).append((row, numbers))
    return [answer(product, recipe, pairs) for (product, recipe), pairs in found.items()]


def answer(product: str, recipe: str, pairs: Sequence[tuple[Row, Row]]) -> Answer:
    """What a recipe makes of a product, from its rows at the steps."""
    known = [numbers for _, numbers in pairs if "why" not in numbers]
    operands = [lost for numbers in known for lost in numbers["operands"].values()]
    sqnrs = [lost[0] for lost in operands if lost[0] is not None]
    results = dict.fromkeys(name for numbers in known for name in numbers["errors"])
    return Answer(
        product=product,
        module=pairs[0][0]["module"],
        recipe=recipe,
        why=None if known else pairs[-1][1].get("why", "not measured"),
        decibels={name: decibels([n["errors"].get(name, 0.0) for n in known]) for name in results},
        sqnr=min(sqnrs, default=None),
        flushed=max((lost[1] for lost in operands), default=None),
        saturated=max((lost[2] for lost in operands), default=None),
    )


def decibels(errors: Sequence[float | None]) -> float | None:
    """The decibels of the root of the mean square of some errors; None if one is no number."""
    known = [error for error in errors if error is not None]
    if not known or len(known) < len(errors):
        return None
    error = math.sqrt(sum(error**2 for error in known) / len(known))
    return min(-20 * math.log10(error), BEST_DB) if error else BEST_DB


def by_recipe(answers: Answers) -> dict[str, list[Answer]]:
    """The answers of each recipe that were measured; none of one that rounds nothing here."""
    found: dict[str, list[Answer]] = {}
    for one in answers:
        found.setdefault(one.recipe, [])
        if one.why is None:
            found[one.recipe].append(one)
    return found


def recipe_rows(answers: Answers) -> list[dict[str, Any]]:
    """One row for each recipe: the median of its results over the products, and the worst."""
    rows = []
    for recipe, found in by_recipe(answers).items():
        row: dict[str, Any] = {"recipe": recipe, "products": len(found)}
        for name in RESULTS:
            row[f"{name}, dB"] = middle([one.decibels.get(name) for one in found])
        worst = worst_of(found)
        row["worst product"] = "–" if worst is None else worst.product
        row["its worst, dB"] = None if worst is None else shortened(worst.worst)
        rows.append(row)
    return rows


def worst_rows(answers: Answers, limit: int | None = None) -> list[dict[str, Any]]:
    """One row for each product, with a column for each recipe: decibels of its worst result.

    The first is the one that is furthest below a recipe's median.
    """
    recipes = list(by_recipe(answers))
    usual = {r: middle([a.worst for a in found]) for r, found in by_recipe(answers).items()}
    products: dict[str, dict[str, Answer]] = {}
    for one in answers:
        products.setdefault(one.product, {})[one.recipe] = one

    def excess(found: Mapping[str, Answer]) -> float:
        gaps = [(usual[r], one) for r, one in found.items() if one.why is None]
        return max((gap(median_db, one.worst) for median_db, one in gaps), default=-math.inf)

    ordered = sorted(products.items(), key=lambda item: -excess(item[1]))
    return [
        {"product": name} | {recipe: text_of(found.get(recipe)) for recipe in recipes}
        for name, found in ordered[:limit]
    ]


def text_of(one: Answer | None) -> str | float | None:
    """What a table says of an answer: decibels, or why there are none, in a word."""
    if one is None:
        return None
    if one.why is not None:
        return "full" if one.why.startswith("full precision") else "–"
    return "lost" if one.worst is None else shortened(one.worst)


def gap(usual: float | None, found: float | None) -> float:
    """How far decibels are below the usual ones; what is no number is furthest."""
    if found is None:
        return math.inf
    return 0.0 if usual is None else usual - found


def worst_of(found: Sequence[Answer]) -> Answer | None:
    """The answer with the lowest decibels; one that is no number is lower than any."""
    return min(found, key=lambda a: -math.inf if a.worst is None else a.worst, default=None)


def middle(values: Iterable[float | None]) -> float | None:
    """The median of what is known, to a tenth."""
    known = [value for value in values if value is not None]
    return shortened(median(known)) if known else None


def shortened(value: float | None) -> float | None:
    """Decibels to a tenth."""
    return None if value is None else round(value, 1) + 0.0  # so that -0.04 is 0, without a sign


def whole(value: float) -> str:
    """Decibels as a whole number; none has the sign of -0.3."""
    return f"{round(value)} dB"


def sentences(rows: Sequence[Row]) -> list[str]:
    """The verdict: which recipe is the closest to FP32, and what each loses more of than usual."""
    answers = answers_of(rows)
    found = by_recipe(answers)
    measured = {recipe: known for recipe, known in found.items() if known}
    lines = [ranking(measured)] if len(measured) > 1 else []
    said = {recipe: sentence(recipe, known) for recipe, known in measured.items()}
    lines += [text for text in said.values() if text is not None]
    if even := [recipe for recipe, text in said.items() if text is None]:
        counts = {recipe: plural(len(measured[recipe]), "product") for recipe in even}
        where, of = listed(even), f" of {counts[even[0]]}"
        if len(set(counts.values())) > 1:
            where, of = listed([f"{recipe} ({count})" for recipe, count in counts.items()]), ""
        lines.append(
            f"In {where} no result{of} would lose {WORTH_NAMING_DB:.0f} dB more than the median."
        )
    for recipe in (recipe for recipe in found if recipe not in measured):
        why = next(one.why for one in answers if one.recipe == recipe)
        lines.append(f"In {recipe} no product of this model is rounded ({why}).")
    return lines


def ranking(measured: Mapping[str, Sequence[Answer]]) -> str:
    """The recipes that are closest to FP32 and furthest from it, by their worst results."""
    usual = {recipe: middle([a.worst for a in known]) for recipe, known in measured.items()}
    order = sorted(usual.items(), key=lambda item: -(item[1] if item[1] is not None else -math.inf))
    (best, most), (last, least) = order[0], order[-1]

    def said(value: float | None) -> str:
        return "no number" if value is None else whole(value)

    return (
        f"Of {len(order)} recipes {best} would be the closest to FP32 (the worst result of the "
        f"median product has {said(most)}) and {last} the furthest ({said(least)})."
    )


def sentence(recipe: str, known: Sequence[Answer]) -> str | None:
    """What one recipe loses more of than usual: one kind of result, and the layers.

    None if it loses nowhere much more than at its median.
    """
    worst: tuple[float, str, list[Answer], float | None] | None = None
    for name in dict.fromkeys(name for one in known for name in one.decibels):
        having = [one for one in known if name in one.decibels]
        usual = middle([one.decibels[name] for one in having])
        far = [one for one in having if gap(usual, one.decibels[name]) >= WORTH_NAMING_DB]
        far = furthest(far, name, usual)
        most = gap(usual, far[0].decibels[name]) if far else 0.0
        if far and (worst is None or most > worst[0]):
            worst = (most, name, far, usual)
    if worst is None:
        return None
    most, name, far, usual = worst
    what = WORDS.get(name, f"the {name.replace('grad_', 'gradient of the ')}")
    if math.isinf(most):
        far = [one for one in far if one.decibels[name] is None]
        return f"In {recipe} {what} of {places(far)} would be no number."
    return (
        f"In {recipe} {what} of {places(far)} would lose {most:.0f} dB more than the median "
        f"({'no number' if usual is None else whole(usual)})."
    )


def furthest(found: Sequence[Answer], name: str, usual: float | None) -> list[Answer]:
    """Answers by how far one of their results is below the usual, the furthest first."""
    return sorted(found, key=lambda one: -gap(usual, one.decibels[name]))


def places(found: Sequence[Answer]) -> str:
    """The modules of some products: those of one name in several layers together."""
    groups: dict[str, list[int]] = {}
    for one in found:
        layer, name = split(one)
        groups.setdefault(name, [])
        if layer is not None and layer not in groups[name]:
            groups[name].append(layer)
    texts = [
        f"layer{'s' if len(layers) > 1 else ''} {ranges(layers)}'s {name}" if layers else name
        for name, layers in groups.items()
    ]
    return listed(texts)


def ranges(numbers: Sequence[int]) -> str:
    """`0`, `10 and 11`, `0 to 3 and 7`."""
    runs: list[list[int]] = []
    for number in sorted(numbers):
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    parts = [
        part
        for run in runs
        for part in ([f"{run[0]} to {run[-1]}"] if len(run) > 2 else map(str, run))
    ]
    return listed(parts)


def split(one: Answer) -> tuple[int | None, str]:
    """The number of the layer in a product's path, if there is one, and what it is called there."""
    parts = (one.module or one.product).split(".")
    at = next((i for i, part in enumerate(parts) if part.isdigit()), None)
    op = one.product.rpartition(".")[2]
    name = parts[-1] if at is None or at < len(parts) - 1 else op
    if name.isdigit():  # of a Sequential within the layer
        name = f"{op} {name}"
    return (None if at is None else int(parts[at])), name


def listed(names: Sequence[str]) -> str:
    """Up to three names, and how many more."""
    if len(names) > 3:
        return f"{', '.join(names[:3])} and {len(names) - 3} more"
    return " and ".join(filter(None, [", ".join(names[:-1]), names[-1]]))
