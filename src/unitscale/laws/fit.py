"""From rows to a law: the fit, its intervals, and how well it predicts a size left out."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from unitscale.laws.answer import quantiles
from unitscale.laws.damage import Damage, DamageRows, damage_rows, fit_damage
from unitscale.laws.form import Array, Design, Form, log_factor, log_loss
from unitscale.laws.identify import FEWEST, form_for
from unitscale.laws.law import Law
from unitscale.laws.robust import Minimum, best_of
from unitscale.laws.row import FULL, TOGETHER, Row, Table, rows_of
from unitscale.laws.scope import HeldOut, Scope
from unitscale.laws.width import width_of

DELTA = 1e-3
"""Of the Huber loss of `ln L`: that of Hoffmann et al. (Chinchilla)."""

STARTS = 16
FEW_STARTS = 2
"""Beside the answer to the whole data, of fits to a part of them."""

DRAWS = 100
MOST_TRIES = 3
"""Draws of rows, for each one wanted, before those that a fit would refuse are too many."""

NEAR = 1e-6
"""A parameter of a fit that is so near to a limit is at it."""

ENOUGH_DRAWS = 20
"""Of which the middle 90 % leave one out at each end."""

POINT = 1e-6
"""An interval whose ends differ by this share of them is none: seeds alone scatter by 1e-3."""

WIDE = 3.0
"""An interval whose ends differ by this factor does not pin a parameter down."""


def fit(
    rows: Iterable[Row] | Iterable[Mapping[str, Any]] | Table,
    *,
    tied: bool = True,
    offsets: bool = True,
    reference: str | None = None,
    draws: int = DRAWS,
    noise: float = 0.0,
    seed: int = 0,
) -> Law:
    """The law of training runs.

    The parameters are those with the least Huber loss of `ln L`, the best of 16 starts. Intervals
    come from fits to resampled runs; runs of one size and number of tokens are drawn together, as
    what the formula gets wrong there is common to them.

    Args:
        rows: runs; of mappings, see `rows_of` for their columns.
        tied: alpha and beta are one number, as in the published law.
        offsets: curves over bits have an offset each, where the rows have three values of bits.
        reference: the recipe whose parameters count whole; unless given, the most precise one.
        draws: of the bootstrap; 0 leaves intervals out.
        noise: nats; rows whose loss rises by no more when rounded after training say nothing of
            that.
        seed: of starts and draws.
    Raises:
        ValueError: the rows say too little: see `rows_of` and `identify.form_for`.
    """
    table = table_of(rows)
    table = of_common_seeds(table)
    runs = runs_of(table.rows)
    form, notes = form_for(runs, tied=tied, offsets=offsets, reference=reference)
    chosen = damage_rows(table.rows, floor=noise)
    problem = Problem.of(runs, form)
    rng = np.random.default_rng(seed)
    best = problem.solve(problem.starts(STARTS, rng))
    damage = None if chosen is None else damage_of(chosen, form, best.vector)
    vectors: list[Array] = []
    damages: list[Damage] = []
    for weights in problem.resampled(draws, rng):
        vector = problem.solve([best.vector], weights=weights).vector
        vectors.append(vector)
        if chosen is not None:
            damages.append(damage_of(chosen, form, vector, rng))
    residuals = problem.residuals(best.vector)[0]
    law = Law(
        form=form,
        values=form.values(best.vector),
        scope=scope_of(table.rows, runs, form),
        draws=tuple(tuple(vector.tolist()) for vector in vectors),
        damage=damage,
        damage_draws=tuple(damages),
        residuals=tuple((-residuals).tolist()),
        widths={
            name: width
            for name in (form.reference, *form.recipes)
            if name is not None and (width := width_of(name)) is not None
        },
        held_out=held_out(runs, form, best.vector, rng),
        notes=table.notes + notes + (() if chosen is None else chosen.notes),
    )
    return replace(law, notes=law.notes + unsure(law))


def table_of(rows: Iterable[Row] | Iterable[Mapping[str, Any]] | Table) -> Table:
    """The rows of whatever `fit` is given, checked.

    Raises:
        ValueError: as `rows_of`.
    """
    if isinstance(rows, Table):
        return rows
    listed: list[Any] = list(rows)
    if all(isinstance(row, Row) for row in listed):
        return Table(tuple(listed))
    return rows_of(listed)


def of_common_seeds(table: Table) -> Table:
    """The rows of seeds that every precision has, at each size and number of tokens.

    Equal seeds see the same batches from the same first weights, so that precisions differ by far
    less than seeds do. A seed that only some have would shift the factors of the others. Where no
    seed is common all rows are kept.
    """
    seeds: dict[tuple[float, float], dict[Any, set[int | None]]] = {}
    for row in table.rows:
        seeds.setdefault(row.cell, {}).setdefault(row.precision, set()).add(row.seed)
    common = {cell: set.intersection(*own.values()) for cell, own in seeds.items()}
    kept = tuple(row for row in table.rows if not common[row.cell] or row.seed in common[row.cell])
    notes = table.notes
    if left := len(table.rows) - len(kept):
        notes += (f"{left} rows left out: of seeds that not every precision of their cell has",)
    if apart := sum(not own for own in common.values()):
        notes += (
            f"{apart} pairs of N and D have no seed that all of their precisions have: their "
            "factors have the scatter of seeds in them",
        )
    return Table(kept, notes)


def runs_of(rows: Sequence[Row]) -> tuple[Row, ...]:
    """Each training run once: rounded after training to several bits, it has a row for each."""
    found: dict[tuple[Any, ...], Row] = {}
    for number, row in enumerate(rows):
        own = number if row.post_bits is None else None
        key = (*row.cell, row.precision, row.seed, row.rate, row.loss, own)
        found.setdefault(key, row)
    return tuple(found.values())


@dataclass(frozen=True)
class Problem:
    """Rows as a fit has them."""

    form: Form
    design: Design
    target: Array
    weights: Array
    cells: tuple[tuple[float, float], ...]

    @classmethod
    def of(cls, rows: Sequence[Row], form: Form) -> "Problem":
        """The problem of these rows."""
        return cls(
            form,
            Design.of(rows, form),
            np.log([row.loss for row in rows]),
            np.array([row.weight for row in rows]),
            tuple(row.cell for row in rows),
        )

    def residuals(self, vector: Array) -> tuple[Array, Array]:
        """`ln L_predicted - ln L`, and its derivatives."""
        value, slopes = log_loss(self.form, vector, self.design)
        return value - self.target, slopes

    def solve(self, starts: Sequence[Array], weights: Array | None = None) -> Minimum:
        """The best parameters, of some starts."""
        return best_of(
            self.residuals,
            starts,
            weights=self.weights if weights is None else weights,
            delta=DELTA,
            limits=self.form.limits,
        )

    def starts(self, count: int, rng: np.random.Generator) -> list[Array]:
        """Vectors to begin at: a floor below the losses, and what is above it shared by both terms
        at the middle of the rows."""
        loss = np.exp(self.target)
        size, tokens = self.design.log_size.mean(), self.design.log_tokens.mean()
        found = []
        for _ in range(count):
            alpha, beta = rng.uniform(0.1, 0.9, 2)
            beta = alpha if self.form.tied else beta
            floor = loss.min() * rng.uniform(0.3, 0.95)
            share = rng.uniform(0.3, 0.7) * (loss.mean() - floor)
            rest = loss.mean() - floor - share
            start = dict.fromkeys(self.form.names, 0.0)
            start |= {
                "A": float(share * np.exp(alpha * size)),
                "B": float(rest * np.exp(beta * tokens)),
                "E": float(floor),
                "alpha": float(alpha),
            }
            if not self.form.tied:
                start["beta"] = float(beta)
            for name in self.form.names:
                if name.startswith("gamma_"):
                    start[name] = float(rng.uniform(0.5, 4.0))
                elif name.startswith("n_"):
                    start[name] = float(rng.uniform(-0.5, 1.5))
                elif name.startswith("f_"):
                    start[name] = float(rng.uniform(0.3, 1.0))
            found.append(self.form.vector(start))
        return found

    def resampled(self, count: int, rng: np.random.Generator) -> list[Array]:
        """Weights of as many resamplings of the cells, each of which a fit would take.

        Raises:
            ValueError: too few would be.
        """
        cells = list(dict.fromkeys(self.cells))
        own = np.array([cells.index(cell) for cell in self.cells])
        found: list[Array] = []
        for _ in range(count * MOST_TRIES):
            if len(found) == count:
                break
            drawn = np.bincount(rng.integers(len(cells), size=len(cells)), minlength=len(cells))
            weights = self.weights * drawn[own]
            if self.says_enough(weights > 0):
                found.append(weights)
        if len(found) < count:
            raise ValueError(
                f"{len(cells)} pairs of N and D are too few to resample: too often fewer than "
                f"{FEWEST} sizes or numbers of tokens are drawn; add runs, or set draws=0 for a "
                "law without intervals"
            )
        return found

    def says_enough(self, is_there: Any) -> bool:
        """Whether these rows still have three sizes, three numbers of tokens and every recipe."""
        design = self.design
        return bool(
            len(np.unique(design.log_size[is_there])) >= FEWEST
            and len(np.unique(design.log_tokens[is_there])) >= FEWEST
            and set(design.recipe[is_there]) >= set(range(len(self.form.recipes)))
        )


def damage_of(
    chosen: DamageRows, form: Form, vector: Array, rng: np.random.Generator | None = None
) -> Damage:
    """The constants of the damage, given those of training; with `rng`, of resampled rows."""
    factor, _ = log_factor(form, vector, Design.of(chosen.rows, form))
    log_size = np.log([row.size for row in chosen.rows]) + factor
    weights = np.array([row.weight for row in chosen.rows])
    if rng is not None:
        count = len(chosen.rows)
        weights = weights * np.bincount(rng.integers(count, size=count), minlength=count)
    return fit_damage(chosen, log_size, weights)


def held_out(
    rows: Sequence[Row], form: Form, vector: Array, rng: np.random.Generator
) -> HeldOut | None:
    """Errors of each size, predicted from the others; None if too few would be left.

    A recipe or bits that only that size has are not predicted.
    """
    sizes = sorted({row.size for row in rows})
    if len(sizes) <= FEWEST:
        return None
    errors: list[float] = []
    for size in sizes:
        others = [row for row in rows if row.size != size]
        known = {row.recipe for row in others}
        own = [row for row in rows if row.size == size and row.recipe in known]
        if not own or len(others) <= len(form.names):
            continue
        problem = Problem.of(others, form)
        found = problem.solve([vector, *problem.starts(FEW_STARTS, rng)]).vector
        logs, _ = log_loss(form, found, Design.of(own, form))
        errors += [
            abs(float(np.exp(log)) / row.loss - 1) for log, row in zip(logs, own, strict=True)
        ]
    if not errors:
        return None
    return HeldOut(mean=float(np.mean(errors)), worst=max(errors), sizes=len(sizes))


def scope_of(table: Sequence[Row], rows: Sequence[Row], form: Form) -> Scope:
    """What the rows were: the table, and each training run in it once."""
    bits = {
        name: [b for row in rows if (b := row.bits.get(name.partition(TOGETHER)[0], FULL)) != FULL]
        for name in form.tensors
    }
    sizes, tokens = [row.size for row in rows], [row.tokens for row in rows]
    recipes = [row.recipe for row in rows if row.recipe is not None]
    post = [row.post_bits for row in table if row.post_bits is not None]
    return Scope(
        rows=len(rows),
        sizes=(min(sizes), max(sizes)),
        tokens=(min(tokens), max(tokens)),
        n_sizes=len(set(sizes)),
        n_tokens=len(set(tokens)),
        bits={name: (min(values), max(values)) for name, values in bits.items()},
        recipes={name: recipes.count(name) for name in dict.fromkeys(recipes)},
        post_bits=(min(post), max(post)) if post else None,
    )


def unsure(law: Law) -> tuple[str, ...]:
    """A note for each part that the rows do not pin down, and each recipe whose cost they do not
    show."""
    notes = []
    if 0 < len(law.draws) < ENOUGH_DRAWS:
        notes.append(
            f"intervals are of {len(law.draws)} resampled fits; fewer than {ENOUGH_DRAWS} make "
            "them too narrow"
        )
    if law.draws:
        for words, name, power, most in (
            ("size", "A", "alpha", law.scope.sizes[1]),
            ("tokens", "B", "alpha" if law.form.tied else "beta", law.scope.tokens[1]),
        ):
            # A constant and its exponent trade off; what counts is the term, at the rows' far end.
            term, exponent = law.form.at[name], law.form.at[power]
            logs = [draw[term] - draw[exponent] * np.log(most) for draw in law.draws]
            low, high = np.exp(quantiles(np.array(logs)))
            if high > WIDE * low:
                notes.append(
                    f"the term of {words} is not pinned down: {low:.3g} to {high:.3g} nats at "
                    f"{most:.3g}"
                )
    low_end, high_end = law.form.limits
    for name, value, low, high in zip(law.form.names, law.vector, low_end, high_end, strict=True):
        if name == "E" and value <= low + NEAR:
            notes.append("the rows show no floor E: their losses fall as if it were 0")
        elif not low + NEAR < value < high - NEAR:
            notes.append(f"{name} is at an end of the values that are looked at: do not trust it")
    for name in ("E", "alpha", "beta"):
        span = law.interval(name) if name in law.form.names else None
        if span is not None and span[1] <= span[0] * (1 + POINT):
            notes.append(
                f"the interval of {name} has no width: the rows lie on the formula without any "
                "scatter, which measured losses do not, or every resampled fit was the same"
            )
        if span is not None and span[1] > WIDE * span[0]:
            notes.append(f"{name} is not pinned down: {span[0]:.3g} to {span[1]:.3g}")
    for recipe in law.form.recipes:
        span = law.factor_interval(recipe=recipe)
        if span is not None and span[0] <= 1 <= span[1]:
            notes.append(
                f"{recipe} is not told apart from {law.form.reference}: its factor is "
                f"{span[0]:.3f} to {span[1]:.3f}"
            )
    return tuple(notes)
