"""What rounding the weights after training costs, and past how many tokens more training hurts.

    delta = C_T D^gamma_D / N_eff^gamma_N * exp(-P_post / gamma_post)
            * prod_x [1 - exp(-C_x (P_x - P_post))]

The product is over tensors that were rounded while training: a model trained in low precision
loses less (each factor), and more (its N_eff is smaller).

Source: Kumar et al., arXiv 2411.04330, equations 6 and 9. The bias that its Appendix K has in the
exponent is one with C_T, and is held in it.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from unitscale.laws.form import Array
from unitscale.laws.robust import best_of
from unitscale.laws.row import FULL, TENSORS, Row

DELTA = 0.1
"""Of the Huber loss of `ln delta`: damages of runs scatter by tens of percent."""

FIXED = ("C_T", "gamma_D", "gamma_N", "gamma_post")
LIMITS = {
    "C_T": (-60.0, 60.0),
    "gamma_D": (-3.0, 3.0),
    "gamma_N": (-3.0, 3.0),
    "gamma_post": (-4.0, 4.0),
    "C": (-8.0, 5.0),
}


@dataclass(frozen=True)
class Damage:
    """The constants of the damage.

    Args:
        c: C_T. by_tokens, by_size: gamma_D and gamma_N. by_bits: gamma_post.
        robust: C_x by tensor; none of a tensor that no row rounded while training.
    """

    c: float
    by_tokens: float
    by_size: float
    by_bits: float
    robust: Mapping[str, float]

    def loss(
        self, *, log_size: float, log_tokens: float, post_bits: float, bits: Mapping[str, float]
    ) -> float:
        """What is added to the loss, in nats; 0 where no fewer bits are left than trained with.

        Args:
            log_size: of N_eff.
            bits: of each tensor while training; infinite, or absent, if it was not rounded.
        """
        if bits.get("w", FULL) <= post_bits:
            return 0.0
        value = math.log(self.c) + self.by_tokens * log_tokens - self.by_size * log_size
        damage = math.exp(value - post_bits / self.by_bits)
        for name, constant in self.robust.items():
            trained = bits.get(name, FULL)
            if trained != FULL:
                damage *= max(0.0, 1 - math.exp(-constant * (trained - post_bits)))
        return damage

    def critical_tokens(self, *, size: float, post_bits: float, b: float, beta: float) -> float:
        """The tokens past which more of them raise the loss after rounding; infinite if none do.

        `[beta B N^gamma_N exp(P_post / gamma_post) / (gamma_D C_T)]^(1 / (gamma_D + beta))`, of a
        model that was not rounded while training.
        """
        if self.by_tokens <= 0:
            return math.inf
        log = math.log(beta * b) + self.by_size * math.log(size) + post_bits / self.by_bits
        log -= math.log(self.by_tokens) + math.log(self.c)
        log /= self.by_tokens + beta
        return math.exp(log) if log < math.log(1e300) else math.inf


@dataclass(frozen=True)
class DamageRows:
    """The rows of a fit that say what rounding after training cost."""

    rows: tuple[Row, ...]
    tensors: tuple[str, ...]
    notes: tuple[str, ...] = ()


def damage_rows(rows: Sequence[Row], *, floor: float) -> DamageRows | None:
    """Those with a damage above `floor`, in nats; None if no row was rounded after training.

    Raises:
        ValueError: they are too few, or of one size, number of tokens or number of bits.
    """
    post = [row for row in rows if row.post_bits is not None and row.post_loss is not None]
    if not post:
        return None
    found = [
        row
        for row in post
        if (row.post_loss or 0.0) - row.loss > floor
        and row.bits.get("w", FULL) > (row.post_bits or 0.0)
    ]
    what: dict[str, set[float | None]] = {
        "sizes": {row.size for row in found},
        "numbers of tokens": {row.tokens for row in found},
        "values of P_post": {row.post_bits for row in found},
    }
    columns: dict[tuple[float, ...], str] = {}
    for name in TENSORS:  # of several that are always equal, the first stands for all
        column = tuple(row.bits.get(name, FULL) for row in found)
        if len(set(column) - {FULL}) > 1:
            columns.setdefault(column, name)
    tensors = tuple(columns.values())
    for words, values in what.items():
        if len(values) < 2:
            raise ValueError(
                f"{len(found)} rows have a loss_ptq more than {floor:g} above their loss, with "
                f"{len(values)} {words}; expected at least 2: leave the column P_post out, or add "
                "such rows"
            )
    if len(found) < len(FIXED) + len(tensors) + 1:
        raise ValueError(
            f"{len(found)} rows have a loss_ptq more than {floor:g} above their loss; expected at "
            f"least {len(FIXED) + len(tensors) + 1}"
        )
    left = len(post) - len(found)
    note = f"{left} of {len(post)} rows with P_post left out: damage below {floor:.3g} nats"
    return DamageRows(tuple(found), tensors, (note,) if left else ())


def fit_damage(chosen: DamageRows, log_size: Array, weights: Array) -> Damage:
    """The constants that fit `ln delta` best.

    Args:
        log_size: of the N_eff of each row. weights: how much each counts.
    """
    rows, tensors = chosen.rows, chosen.tensors
    log_tokens = np.log([row.tokens for row in rows])
    post = np.array([row.post_bits for row in rows], dtype=float)
    target = np.log([(row.post_loss or 0.0) - row.loss for row in rows])
    gap = np.array([[row.bits.get(name, FULL) for name in tensors] for row in rows])
    gap = gap.reshape(len(rows), len(tensors)) - post[:, None]

    def residuals(vector: Array) -> tuple[Array, Array]:
        c, by_tokens, by_size, log_bits = vector[:4]
        ratio = post / np.exp(log_bits)
        value = c + by_tokens * log_tokens - by_size * log_size - ratio
        slopes = np.zeros((len(rows), len(vector)))
        slopes[:, 0], slopes[:, 1], slopes[:, 2], slopes[:, 3] = 1, log_tokens, -log_size, ratio
        for column in range(len(tensors)):
            is_rounded = np.isfinite(gap[:, column])
            decay = np.exp(vector[4 + column]) * np.where(is_rounded, gap[:, column], 1.0)
            kept = -np.expm1(-decay)
            value += np.where(is_rounded, np.log(np.maximum(kept, 1e-300)), 0.0)
            slope = decay * np.exp(-decay) / np.maximum(kept, 1e-300)
            slopes[:, 4 + column] = np.where(is_rounded, slope, 0.0)
        return value - target, slopes

    names = (*FIXED, *("C" for _ in tensors))
    limits = (
        np.array([LIMITS[name][0] for name in names]),
        np.array([LIMITS[name][1] for name in names]),
    )
    starts = [
        np.array([np.mean(target), 0.5, 0.3, log_bits, *(log_c for _ in tensors)])
        for log_bits in (-0.5, 0.5)
        for log_c in (-1.0, 1.0)
    ]
    found = best_of(residuals, starts, weights=weights, delta=DELTA, limits=limits).vector
    return Damage(
        c=float(np.exp(found[0])),
        by_tokens=float(found[1]),
        by_size=float(found[2]),
        by_bits=float(np.exp(found[3])),
        robust={name: float(np.exp(value)) for name, value in zip(tensors, found[4:], strict=True)},
    )
