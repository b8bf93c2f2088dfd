"""Which size, how many tokens and which precision for a budget: the answer of `Law.plan`."""

import math
import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from unitscale.laws.answer import ExtrapolationWarning, Prediction, quantiles
from unitscale.laws.budget import (
    Choice,
    best_choice,
    choose,
    flat_choices,
    products_of,
)
from unitscale.laws.form import Array, Design, log_factor
from unitscale.laws.law import Law
from unitscale.laws.row import MOST_BITS
from unitscale.laws.width import kind_of, width_of

STEP = 0.02
"""Bits between the precisions that are tried where bits are free."""

TABLE_BITS = 16
"""Bits up to which the table has a line for each whole number."""

WIDEST = 32.0


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The best that a budget buys.

    Args:
        flops: the budget. precision: name of the recipe, or bits. bits: of its products.
        size, tokens: parameters without embedding tables, and tokens.
        loss, low, high: what a run of it would reach, with its 90 % interval.
        sizes: the best size in 90 % of the fits to resampled rows; None if it was given.
        flat_sizes: sizes with a loss within 0.5 % at this precision; None if it was given.
        flat: precisions within 0.5 % of the best loss, each at its own best size.
        sure: share of the fits to resampled rows in which this precision is the best one; None
            where bits are free, or nothing was resampled.
        choices: every precision that was compared. fixed: what was given.
        notes: what to know before one trusts it.
    """

    flops: float
    precision: str
    bits: float
    size: float
    tokens: float
    loss: float
    low: float | None
    high: float | None
    sizes: tuple[float, float] | None
    flat_sizes: tuple[float, float] | None
    flat: tuple[str, ...]
    sure: float | None
    choices: tuple[Choice, ...]
    fixed: Mapping[str, float | str]
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        from unitscale.laws.text import plan_text

        return plan_text(self)


def make_plan(
    law: Law,
    *,
    flops: float,
    fix: Mapping[str, float | str],
    hardware: Sequence[str] | None,
) -> Plan:
    """See `Law.plan`."""
    check(flops, fix)
    size, tokens = number(fix, "N"), number(fix, "D")
    allowed = precisions(law, fix.get("P"), hardware)
    is_free = not allowed
    if is_free:
        least = min(low for low, _ in law.scope.bits.values())
        allowed = {f"{p:.6g}": p for p in np.arange(least, WIDEST + STEP / 2, STEP).tolist()}

    def choices_of(vector: Array) -> list[Choice]:
        own = Law(form=law.form, values=law.form.values(vector), scope=law.scope)
        factors = factors_of(own, list(allowed))
        return [
            choose(name, width, factor, own.surface(factor), flops=flops, size=size, tokens=tokens)
            for (name, width), factor in zip(allowed.items(), factors, strict=True)
        ]

    fewest = min(products_of(flops, width) for width in allowed.values())
    check_buys(fewest / (size or tokens or 1.0), flops)
    choices = choices_of(law.vector)
    best = best_choice(choices)
    check_buys(min(best.size, best.tokens), flops)
    flat = flat_choices(choices, best)
    resampled = [best_choice(choices_of(np.array(draw))) for draw in drawn(law, is_free)]
    prediction = predicted(law, best)
    surface = law.surface(best.factor)
    notes = prediction.notes + (caution(law, flat) if is_free else ())
    for note in notes:
        if note not in law.marks():
            warnings.warn(note, ExtrapolationWarning, stacklevel=3)
    has_size = size is None and tokens is None
    product = products_of(flops, best.width)
    return Plan(
        flops=flops,
        precision=best.precision,
        bits=best.width,
        size=best.size,
        tokens=best.tokens,
        loss=best.loss,
        low=prediction.low,
        high=prediction.high,
        sizes=quantiles(np.array([c.size for c in resampled])) if resampled and has_size else None,
        flat_sizes=surface.flat_sizes(product, best.size) if has_size else None,
        flat=tuple(choice.precision for choice in flat),
        sure=None
        if is_free or not resampled
        else sum(choice.precision == best.precision for choice in resampled) / len(resampled),
        choices=shown(choices, is_free),
        fixed=dict(fix),
        notes=notes,
    )


def check(flops: float, fix: Mapping[str, float | str]) -> None:
    """Refuse a budget that is none, and what fixes it twice.

    Raises:
        ValueError: the message says what was expected.
    """
    if not (isinstance(flops, int | float) and 0 < flops < math.inf):
        raise ValueError(f"flops is {flops!r}; expected a finite number above 0")
    if unknown := sorted(set(fix) - {"N", "D", "P"}):
        raise ValueError(f"fix has {unknown[0]!r}; expected N, D or P")
    if {"N", "D"} <= set(fix):
        raise ValueError(
            "fix has both N and D; the budget and one of them decide the other: leave one out, and "
            "ask `predict` for a run with both"
        )


def check_buys(count: float, flops: float) -> None:
    """Refuse a budget that buys fewer than one parameter or token.

    Raises:
        ValueError: it does.
    """
    if count < 1:
        raise ValueError(
            f"flops is {flops:g}, which buys less than one parameter or token; expected more: "
            "6 N D at 16 bits"
        )


def number(fix: Mapping[str, float | str], name: str) -> float | None:
    """A number that is given.

    Raises:
        ValueError: it is none, or below 1.
    """
    if name not in fix:
        return None
    try:
        value = float(fix[name])
    except ValueError:
        value = math.nan
    if not 1 <= value < math.inf:
        raise ValueError(f"fix: {name} is {fix[name]!r}; expected a finite number from 1 on")
    return value


def precisions(
    law: Law, fixed: float | str | None, hardware: Sequence[str] | None
) -> dict[str, float]:
    """The precisions to compare and the bits that each costs; empty where bits are free.

    Raises:
        ValueError: one that the law never saw, or whose bits nobody says.
    """
    if fixed is not None:
        return expanded(law, str(fixed))
    if hardware is not None:
        if isinstance(hardware, str) or not hardware:
            raise ValueError(f"hardware is {hardware!r}; expected a list of formats, as ['fp8']")
        return {name: width for text in hardware for name, width in expanded(law, text).items()}
    if law.form.tensors and not law.recipes:
        return {}
    return {name: known_width(law, name) for name in law.recipes}


def expanded(law: Law, text: str) -> dict[str, float]:
    """The precisions of a law that an entry of `hardware` stands for, with what each costs.

    A kind of format (`fp8`) stands for every recipe of the law whose products have operands of it.

    Raises:
        ValueError: none; says what the law knows.
    """
    name, _, cost = text.partition(":")
    name = name.strip()
    width = None if not cost else bits_in(cost)
    if cost and width is None:
        raise ValueError(f"{text!r}: expected NAME:BITS, as fp8:8")
    of_kind = [recipe for recipe in law.recipes if kind_of(recipe) == name]
    if not of_kind and name in law.recipes:
        of_kind = [name]
    if of_kind:
        return {recipe: width or known_width(law, recipe) for recipe in of_kind}
    bits = bits_in(name.removeprefix("int"))
    if law.form.tensors and bits is not None:
        return {f"{bits:g}": width or bits}
    raise ValueError(f"this law never saw {name!r}; it knows {law.knows()}")


def bits_in(text: str) -> float | None:
    """The number of bits that a text is, if it is one."""
    if not re.fullmatch(r"[0-9]{1,3}(\.[0-9]{1,9})?", text.strip()):
        return None
    bits = float(text)
    return bits if 1 <= bits <= MOST_BITS else None


def known_width(law: Law, recipe: str) -> float:
    """The bits that the products of a recipe cost.

    Raises:
        ValueError: its name is not of a recipe of ours.
    """
    width = law.widths.get(recipe) or width_of(recipe)
    if width is None:
        raise ValueError(
            f"what a product of {recipe!r} costs is not known; say it, as "
            f"hardware=['{recipe}:8'] for 8 bits"
        )
    return width


def factors_of(law: Law, names: Sequence[str]) -> list[float]:
    """The factors of recipes, or of bits, all at once."""
    rows = [
        law.asked(1.0, 1.0, name, None)
        if name in law.recipes
        else law.asked(1.0, 1.0, None, float(name))
        for name in names
    ]
    logs, _ = log_factor(law.form, law.vector, Design.of(rows, law.form))
    return [float(factor) for factor in np.exp(logs)]


def drawn(law: Law, is_free: bool) -> Sequence[Sequence[float]]:
    """The resampled fits that a plan is repeated with: fewer where thousands of bits are tried."""
    return law.draws[:20] if is_free else law.draws


def predicted(law: Law, best: Choice) -> Prediction:
    """The loss of a choice, its interval and its notes; the caller warns."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExtrapolationWarning)
        if best.precision in law.recipes:
            return law.predict(size=best.size, tokens=best.tokens, recipe=best.precision)
        return law.predict(size=best.size, tokens=best.tokens, bits=float(best.precision))


def caution(law: Law, flat: Sequence[Choice]) -> tuple[str, ...]:
    """Where free bits are flat up to an end of what was tried."""
    low = min(low for low, _ in law.scope.bits.values())
    if float(flat[0].precision) <= low + STEP / 2:
        return (f"the flat range begins at {low:g} bits, the fewest of the rows",)
    return ()


def shown(choices: Sequence[Choice], is_free: bool) -> tuple[Choice, ...]:
    """The lines of the table: all recipes, best first, or whole numbers of bits."""
    if not is_free:
        return tuple(sorted(choices, key=lambda choice: choice.loss))
    return tuple(
        choice
        for choice in choices
        if abs((bits := float(choice.precision)) - round(bits)) < STEP / 2 and bits <= TABLE_BITS
    )
