"""The formula of a law, and its derivatives by every parameter.

    ln L = ln(A N_eff^-alpha + B D^-beta + E)
    N_eff = N * f_w(P_w) * f_a(P_a) * f_kv(P_kv)      f_x(P) = 1 - exp(-P / gamma_x + n_x)
    N_eff = N * f(P)^3                                    where all three have the same bits always
    N_eff = N * f_recipe                              where a run has a recipe instead of bits

Source: Kumar et al., Scaling Laws for Precision, arXiv 2411.04330, equations 2 to 4; the offsets
`n` are those of its Appendix K, with the sign that gives the optimum that the paper states.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from unitscale.laws.row import FULL, TOGETHER, Row

Array = npt.NDArray[np.float64]

LEAST_FACTOR = 1e-6
"""Of `f`: bits so few that the formula gives less leave this share of the parameters."""

LOWEST = {"A": -20.0, "B": -20.0, "E": -12.0, "alpha": 0.01, "beta": 0.01, "gamma": -4.0, "n": -8.0}
HIGHEST = {"A": 60.0, "B": 60.0, "E": 5.0, "alpha": 4.0, "beta": 4.0, "gamma": 4.0, "n": 12.0}
LOWEST_FACTOR, HIGHEST_FACTOR = -12.0, 1.0
"""Of the logarithm of a recipe's factor. It may come out above 0: noise is on both sides."""


@dataclass(frozen=True, kw_only=True)
class Form:
    """Which parameters a law has.

    Args:
        tied: alpha and beta are one number.
        tensors: those with a curve over bits; `w+a` is one curve for both.
        offsets: those of them whose curve has an `n`; that of the others is 0.
        recipes: with a factor of their own.
        reference: the recipe whose factor is 1.
    """

    tied: bool
    tensors: tuple[str, ...] = ()
    offsets: tuple[str, ...] = ()
    recipes: tuple[str, ...] = ()
    reference: str | None = None

    @cached_property
    def names(self) -> tuple[str, ...]:
        """The parameters in the order of a vector of them."""
        return (
            *("A", "B", "E", "alpha"),
            *(() if self.tied else ("beta",)),
            *(f"gamma_{name}" for name in self.tensors),
            *(f"n_{name}" for name in self.offsets),
            *(f"f_{name}" for name in self.recipes),
        )

    @cached_property
    def at(self) -> dict[str, int]:
        """Where each parameter is in a vector."""
        return {name: index for index, name in enumerate(self.names)}

    def is_logarithm(self, name: str) -> bool:
        """Whether a vector holds the logarithm of a parameter."""
        return name in ("A", "B", "E") or name.startswith(("gamma_", "f_"))

    @cached_property
    def limits(self) -> tuple[Array, Array]:
        """The lowest and the highest vector that a fit looks at."""
        low, high = [], []
        for name in self.names:
            kind = name.partition("_")[0]
            is_factor = kind == "f"
            low.append(LOWEST_FACTOR if is_factor else LOWEST[kind])
            high.append(HIGHEST_FACTOR if is_factor else HIGHEST[kind])
        return np.array(low), np.array(high)

    def values(self, vector: Array) -> dict[str, float]:
        """The parameters in natural units."""
        return {
            name: float(np.exp(value)) if self.is_logarithm(name) else float(value)
            for name, value in zip(self.names, vector, strict=True)
        }

    def vector(self, values: dict[str, float]) -> Array:
        """The inverse of `values`."""
        return np.array(
            [
                np.log(values[name]) if self.is_logarithm(name) else values[name]
                for name in self.names
            ]
        )


@dataclass(frozen=True)
class Design:
    """Runs as columns of numbers, for a form.

    Args:
        log_size, log_tokens: of N and D.
        bits: a column for each tensor of the form; infinite where it is not rounded.
        recipe: index of each run's recipe in the form; -1 where its factor is 1.
    """

    log_size: Array
    log_tokens: Array
    bits: Array
    recipe: npt.NDArray[np.int64]

    @classmethod
    def of(cls, rows: Sequence[Row], form: Form) -> "Design":
        """The columns of rows, all of whose precisions the form has."""
        first = [name.partition(TOGETHER)[0] for name in form.tensors]
        index = {name: number for number, name in enumerate(form.recipes)}
        return cls(
            np.log([row.size for row in rows]),
            np.log([row.tokens for row in rows]),
            np.array([[row.bits.get(name, FULL) for name in first] for row in rows]).reshape(
                len(rows), len(form.tensors)
            ),
            np.array([index.get(row.recipe or "", -1) for row in rows], dtype=np.int64),
        )

    def __len__(self) -> int:
        return len(self.log_size)


def curve(bits: Array, log_gamma: float, offset: float) -> tuple[Array, Array, Array]:
    """`ln f` over bits, and its derivatives by `ln gamma` and `n`: 0 where `f` is at its least.

    At infinitely many bits `f` is 1.
    """
    is_finite = np.isfinite(bits)
    ratio = np.where(is_finite, bits, 0.0) / np.exp(log_gamma)
    with np.errstate(over="ignore"):
        lost = np.where(is_finite, np.exp(np.minimum(offset - ratio, 50.0)), 0.0)
    is_free = lost < 1 - LEAST_FACTOR
    lost = np.where(is_free, lost, 1 - LEAST_FACTOR)
    slope = np.where(is_free, -lost / (1 - lost), 0.0)
    return np.log1p(-lost), slope * ratio, slope


def log_factor(form: Form, vector: Array, design: Design) -> tuple[Array, Array]:
    """`ln(N_eff / N)` of every run, and its derivatives by every parameter."""
    total = np.zeros(len(design))
    slopes = np.zeros((len(design), len(form.names)))
    for column, name in enumerate(form.tensors):
        offset = form.at.get(f"n_{name}")
        value, by_gamma, by_offset = curve(
            design.bits[:, column],
            vector[form.at[f"gamma_{name}"]],
            0.0 if offset is None else vector[offset],
        )
        count = len(name.split(TOGETHER))
        total += count * value
        slopes[:, form.at[f"gamma_{name}"]] = count * by_gamma
        if offset is not None:
            slopes[:, offset] = count * by_offset
    if form.recipes:
        first = form.at[f"f_{form.recipes[0]}"]
        has_own = design.recipe >= 0
        total[has_own] += vector[first + design.recipe[has_own]]
        slopes[np.flatnonzero(has_own), first + design.recipe[has_own]] = 1.0
    return total, slopes


def log_loss(form: Form, vector: Array, design: Design) -> tuple[Array, Array]:
    """`ln L` of every run, and its derivatives by every parameter."""
    factor, factor_slopes = log_factor(form, vector, design)
    alpha = vector[form.at["alpha"]]
    beta = vector[form.at["alpha" if form.tied else "beta"]]
    size = design.log_size + factor
    terms = np.stack(
        [
            vector[form.at["A"]] - alpha * size,
            vector[form.at["B"]] - beta * design.log_tokens,
            np.full(len(design), vector[form.at["E"]]),
        ]
    )
    top = terms.max(axis=0)
    parts = np.exp(terms - top)
    whole = parts.sum(axis=0)
    by_size, by_tokens, by_rest = parts / whole
    slopes = -(alpha * by_size)[:, None] * factor_slopes
    slopes[:, form.at["A"]] = by_size
    slopes[:, form.at["B"]] = by_tokens
    slopes[:, form.at["E"]] = by_rest
    slopes[:, form.at["alpha"]] = -by_size * size
    slopes[:, form.at["alpha" if form.tied else "beta"]] -= by_tokens * design.log_tokens
    return top + np.log(whole), slopes
