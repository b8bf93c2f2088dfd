"""What rows can say, and what they cannot: refusals and the form of the law that they allow."""

from collections.abc import Sequence

import numpy as np

from unitscale.laws.form import Form
from unitscale.laws.row import FULL, TENSORS, TOGETHER, Row
from unitscale.laws.width import width_of

FEWEST = 3
"""Sizes and numbers of tokens below which a power law and its floor cannot be told apart."""

TOO_ALIKE = 0.98
"""Correlation of `ln N` and `ln D` beyond which their two terms cannot be told apart."""


def form_for(
    rows: Sequence[Row], *, tied: bool, offsets: bool, reference: str | None
) -> tuple[Form, tuple[str, ...]]:
    """The form that the rows allow, and a note for each thing that it leaves out.

    Raises:
        ValueError: fewer than three sizes or numbers of tokens; sizes and tokens that grow
            together; one precision; fewer rows than parameters; no such reference.
    """
    check_extent(rows)
    precisions = dict.fromkeys(row.precision for row in rows)
    if len(precisions) < 2:
        raise ValueError(
            f"all {len(rows)} rows have one precision ({precision_text(rows[0])}); a law of "
            "precision needs at least two"
        )
    notes: list[str] = []
    tensors, with_offset = [], []
    for name, given in curves_of(rows).items():
        finite = {bits for bits in given if bits != FULL}
        if len(set(given)) < 2:
            if finite:
                notes.append(f"P_{name} is {given[0]:g} in every row: its effect is left out")
            continue
        tensors.append(name)
        if TOGETHER in name:
            notes.append(f"bits of {name} are equal in every row: their effects are one curve")
        if not offsets:
            continue
        if len(finite) < FEWEST:
            notes.append(
                f"P_{name} has {len(finite)} values, fewer than {FEWEST}: its offset n is held at 0"
            )
        else:
            with_offset.append(name)
    recipes = list(dict.fromkeys(row.recipe for row in rows if row.recipe is not None))
    first = reference_of(recipes, reference) if recipes else None
    form = Form(
        tied=tied,
        tensors=tuple(tensors),
        offsets=tuple(with_offset),
        recipes=tuple(sorted(name for name in recipes if name != first)),
        reference=first,
    )
    if len(rows) <= len(form.names):
        raise ValueError(
            f"{len(rows)} rows for {len(form.names)} parameters "
            f"({', '.join(form.names)}); expected more rows than parameters"
        )
    return form, tuple(notes)


def curves_of(rows: Sequence[Row]) -> dict[str, tuple[float, ...]]:
    """The bits in all rows that have bits, by tensor; those that are always equal together, as
    `w+a+kv`: no row tells their effects apart."""
    names: dict[tuple[float, ...], list[str]] = {}
    for name in TENSORS:
        column = tuple(row.bits.get(name, FULL) for row in rows if row.recipe is None)
        names.setdefault(column, []).append(name)
    return {TOGETHER.join(same): column for column, same in names.items()}


def check_extent(rows: Sequence[Row]) -> None:
    """Refuse rows that cannot tell size, tokens and floor apart.

    Raises:
        ValueError: see `form_for`.
    """
    for words, values in (
        ("sizes N", {row.size for row in rows}),
        ("numbers of tokens D", {row.tokens for row in rows}),
    ):
        if len(values) < FEWEST:
            listed = ", ".join(f"{value:g}" for value in sorted(values)) or "none"
            raise ValueError(
                f"{len(values)} different {words} ({listed}) in {len(rows)} rows; a law needs at "
                f"least {FEWEST}"
            )
    logs = np.log([[row.size, row.tokens] for row in rows])
    alike = float(np.corrcoef(logs.T)[0, 1])
    if abs(alike) > TOO_ALIKE:
        raise ValueError(
            f"N and D change together in the rows (correlation {alike:.3f} of their logarithms), "
            "so that their effects cannot be told apart; add sizes trained on other numbers of "
            "tokens"
        )


def reference_of(recipes: Sequence[str], wanted: str | None) -> str:
    """The recipe whose parameters count whole: the one that was asked for, or the widest.

    Of several that round nothing fp32 is taken.

    Raises:
        ValueError: the one that was asked for is not there, or no name is of a recipe of ours.
    """
    if wanted is not None:
        if wanted not in recipes:
            raise ValueError(
                f"the reference is {wanted!r}, which no row has; the rows have {', '.join(recipes)}"
            )
        return wanted
    widths = {name: width for name in recipes if (width := width_of(name)) is not None}
    if not widths:
        raise ValueError(
            f"none of the recipes {', '.join(recipes)} is one of ours, so that the most precise "
            "one is not known; say it, with reference="
        )
    return max(widths, key=lambda name: (widths[name], name == "fp32"))


def precision_text(row: Row) -> str:
    """The precision of a row in words."""
    if row.bits:
        return ", ".join(f"P_{name} {bits:g}" for name, bits in row.bits.items())
    return row.recipe or "not rounded"
