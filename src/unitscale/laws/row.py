"""One training run as a law sees it, and how a table of any source becomes such rows."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

TENSORS = ("w", "a", "kv")
"""What a precision in bits is of: weights, activations, keys and values. Forward pass only."""

TOGETHER = "+"
"""Between the names of tensors whose bits are equal in every row, which have one curve."""

FULL = math.inf
"""Bits of a tensor that is not rounded."""

MOST_BITS = 64
SPOILED = ("diverged", "failed")
"""The `status` of a run whose loss says nothing of its size."""

UNSTABLE_BITS = 3
"""Activations, keys and values of so few bits did not train stably (Kumar et al.): such rows are
left out of a fit."""

ALIASES = {
    "N": ("N", "n_params"),
    "D": ("D", "n_tokens"),
    "loss": ("loss", "valid_loss"),
}
"""Columns that every row needs, and the names that `sweep` and `compare` have for them."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """A finished run.

    Its precision is `bits`, where they are given, or else its `recipe`.

    Args:
        size: parameters without embedding tables, N.
        tokens: it was trained on, D.
        loss: validation loss at the end, nats a token.
        bits: of each tensor in `TENSORS` that is rounded to so many bits; the others are not.
        recipe: name of the recipe, the precision of a row that says no bits.
        post_bits: of weights that were rounded after training. post_loss: the loss then.
        weight: how much it counts, beside 1.
        rate: learning rate, where the source says it. model: the kind of model, likewise.
    """

    size: float
    tokens: float
    loss: float
    bits: Mapping[str, float] = field(default_factory=dict)
    recipe: str | None = None
    post_bits: float | None = None
    post_loss: float | None = None
    weight: float = 1.0
    rate: float | None = None
    seed: int | None = None
    model: str | None = None

    @property
    def precision(self) -> tuple[Any, ...]:
        """What is equal for runs of one precision."""
        return tuple(sorted(self.bits.items())) if self.bits else (self.recipe,)

    @property
    def cell(self) -> tuple[float, float]:
        """Runs of one size and length: what a bootstrap draws together."""
        return self.size, self.tokens


@dataclass(frozen=True)
class Table:
    """The rows of a source that a fit can use, and a note for each thing that was left out."""

    rows: tuple[Row, ...]
    notes: tuple[str, ...] = ()


def rows_of(table: Iterable[Mapping[str, Any]]) -> Table:
    """The rows of a table, each checked.

    Columns: `N` (or `n_params`, from which `n_embedding_params` is taken away), `D` (`n_tokens`),
    `loss` (`valid_loss`), `recipe` or bits `P_w`, `P_a`, `P_kv` (`P`: all three); if there are,
    `P_post` with `loss_ptq`, `weight`, `lr`, `seed`, `model`. An empty cell of bits is a tensor
    that is not rounded.

    Rows of runs that diverged or failed are left out and counted in a note, and so are rows of
    activations or keys and values of three bits or fewer, and those of learning rates that were
    not the best ones of their size, length and precision.

    Raises:
        ValueError: a column is missing, a value is no positive number, several kinds of models:
            the message says which row, and what was expected there.
    """
    found: list[Row] = []
    spoiled = unstable = 0
    for number, cells in enumerate(table, 1):
        if not isinstance(cells, Mapping):
            raise ValueError(f"row {number} is {cells!r}; expected values by the names of columns")
        if is_spoiled(cells):
            spoiled += 1
            continue
        row = row_of(cells, number)
        if any(row.bits.get(name, FULL) <= UNSTABLE_BITS for name in ("a", "kv")):
            unstable += 1
            continue
        found.append(row)
    models = dict.fromkeys(row.model for row in found if row.model is not None)
    if len(models) > 1:
        raise ValueError(
            f"the rows are of several models ({', '.join(models)}); a law is of one: give it the "
            "rows of one"
        )
    best = of_best_rates(found)
    counted = (
        (spoiled, "of runs that diverged or failed"),
        (unstable, f"with activations, keys or values of {UNSTABLE_BITS} bits or fewer"),
        (len(found) - len(best), "of learning rates that were not the best of their kind of run"),
    )
    return Table(
        tuple(best), tuple(f"{count} rows left out: {why}" for count, why in counted if count)
    )


def is_spoiled(cells: Mapping[str, Any]) -> bool:
    """Whether a row says itself that its run went wrong."""
    diverged = cells.get("diverged")
    return cells.get("status") in SPOILED or diverged is True or str(diverged).lower() == "true"


def row_of(cells: Mapping[str, Any], number: int) -> Row:
    """One row, checked.

    Raises:
        ValueError: as `rows_of`.
    """
    where = f"row {number}"
    values = {}
    for name, names in ALIASES.items():
        column = next((alias for alias in names if alias in cells), None)
        if column is None:
            raise ValueError(
                f"{where} has no column {' or '.join(names)}; it has "
                f"{', '.join(map(str, cells)) or 'none'}"
            )
        values[name] = positive(cells[column], f"{where}: {column}")
    if "N" not in cells and not is_blank(cells.get("n_embedding_params")):
        tables = number_of(cells["n_embedding_params"], f"{where}: n_embedding_params")
        if not 0 <= tables < values["N"]:
            raise ValueError(
                f"{where}: n_embedding_params is {tables:g} of n_params {values['N']:g}; expected "
                "fewer, a law is of the parameters outside of embedding tables"
            )
        values["N"] -= tables
    bits = bits_of(cells, where)
    recipe = None if is_blank(cells.get("recipe")) else str(cells["recipe"])
    has_bits = any(f"P_{name}" in cells for name in TENSORS) or "P" in cells
    if recipe is None and not has_bits:
        raise ValueError(
            f"{where} says no precision; expected a recipe, or bits in columns "
            f"{', '.join(f'P_{name}' for name in TENSORS)}"
        )
    post = {
        name: None if is_blank(cells.get(name)) else positive(cells[name], f"{where}: {name}")
        for name in ("P_post", "loss_ptq")
    }
    if (post["P_post"] is None) != (post["loss_ptq"] is None):
        there = next(name for name, value in post.items() if value is not None)
        raise ValueError(f"{where} has {there} alone; P_post and loss_ptq belong together")
    given = {
        name: None if is_blank(cells.get(name)) else positive(cells[name], f"{where}: {name}")
        for name in ("weight", "lr")
    }
    seed = None if is_blank(cells.get("seed")) else number_of(cells["seed"], f"{where}: seed")
    return Row(
        size=values["N"],
        tokens=values["D"],
        loss=values["loss"],
        bits=bits,
        recipe=None if bits else recipe,
        post_bits=post["P_post"],
        post_loss=post["loss_ptq"],
        weight=1.0 if given["weight"] is None else given["weight"],
        rate=given["lr"],
        seed=None if seed is None else int(seed),
        model=None if is_blank(cells.get("model")) else str(cells["model"]),
    )


def bits_of(cells: Mapping[str, Any], where: str) -> dict[str, float]:
    """The bits that a row has, by tensor; a tensor that is not rounded is not there.

    Raises:
        ValueError: no number of bits.
    """
    found: dict[str, float] = {}
    for name in TENSORS:
        for column in (f"P_{name}", "P"):
            if not is_blank(cells.get(column)):
                bits = number_of(cells[column], f"{where}: {column}", can_be_infinite=True)
                if not (1 <= bits <= MOST_BITS or bits == FULL):
                    raise ValueError(
                        f"{where}: {column} is {bits:g} bits; expected 1 to {MOST_BITS}, or an "
                        "empty cell for a tensor that is not rounded"
                    )
                if bits != FULL:
                    found[name] = bits
                break
    return found


def is_blank(value: Any) -> bool:
    """Whether a cell holds nothing."""
    return value is None or (isinstance(value, str) and not value.strip())


def number_of(value: Any, what: str, *, can_be_infinite: bool = False) -> float:
    """The number in a cell.

    Raises:
        ValueError: none, or one that is not finite.
    """
    try:
        number = math.nan if isinstance(value, bool) or value is None else float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if math.isnan(number) or (math.isinf(number) and not can_be_infinite):
        raise ValueError(
            f"{what} is {value!r}; expected a finite number: mend the row, or leave it out"
        )
    return number


def positive(value: Any, what: str) -> float:
    """The number above zero in a cell.

    Raises:
        ValueError: another.
    """
    number = number_of(value, what)
    if number <= 0:
        raise ValueError(
            f"{what} is {value!r}; expected a number above 0: mend the row, or leave it out"
        )
    return number


def of_best_rates(rows: Sequence[Row]) -> list[Row]:
    """Of runs that differ in nothing but rate and seed, those of the rate that is best on average.

    A law is of what a size can reach; a rate that fewer seeds finished at than at another is none
    that one would train at, and is not taken.
    """
    groups: dict[tuple[Any, ...], dict[float | None, list[Row]]] = {}
    for row in rows:
        key = (*row.cell, row.precision, row.post_bits)
        groups.setdefault(key, {}).setdefault(row.rate, []).append(row)
    kept: set[int] = set()
    for rates in groups.values():
        most = max(map(len, rates.values()))
        whole = [same for same in rates.values() if len(same) == most]
        best = min(whole, key=lambda same: sum(row.loss for row in same))
        kept |= set(map(id, best))
    return [row for row in rows if id(row) in kept]
