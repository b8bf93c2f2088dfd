"""What a law answers: a loss or a number of tokens, each with an interval and notes."""

import math
from dataclasses import dataclass

import numpy as np

from unitscale.laws.form import Array

MOST_SHOWN = 1e4
"""Of a loss with four decimals; what is more is no loss of a model that was trained."""

LEVEL = 0.90
"""Of every interval."""


class ExtrapolationWarning(UserWarning):
    """A law was asked far beyond the runs that it was fitted to."""


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """A loss, with the interval in which a run of these settings falls in 90 of 100 cases.

    Args:
        loss: nats a token. low, high: None of a law that came without rows.
        factor: share of the parameters that count, N_eff / N.
        damage: how much of the loss rounding after training adds; None if it was not asked for.
        notes: what to know before one trusts it.
    """

    loss: float
    low: float | None
    high: float | None
    factor: float
    damage: float | None = None
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        text = f"loss {interval_text(self.loss, self.low, self.high)}, "
        text += f"{self.factor:.1%} of the parameters count"
        if self.damage is not None:
            text += f"; {self.damage:.4f} of it by rounding after training"
        return "\n".join([text, *self.notes])


@dataclass(frozen=True, kw_only=True)
class Critical:
    """Tokens past which more of them hurt, with their 90 % interval. Infinite: none do."""

    tokens: float
    low: float | None
    high: float | None
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        is_none = math.isinf(self.tokens)
        text = "no number of tokens: more never hurt" if is_none else f"{self.tokens:.3g} tokens"
        if self.low is not None and self.high is not None:
            text += f" ({span_text(self.low, self.high, '.3g')})"
        return "\n".join([text, *self.notes])


def quantiles(values: Array) -> tuple[float, float]:
    """The ends of the middle `LEVEL` of values, which may be infinite."""
    rest = (1 - LEVEL) / 2
    low, high = np.quantile(values, [rest, 1 - rest], method="inverted_cdf")
    return float(low), float(high)


def interval_text(value: float, low: float | None, high: float | None) -> str:
    """A number with its interval."""
    text = f"{value:.4f}" if value < MOST_SHOWN else f"{value:.4g}"
    shown = ".4f" if value < MOST_SHOWN else ".4g"
    return text + ("" if low is None or high is None else f" ({span_text(low, high, shown)})")


NO_WIDTH = "an interval of no width: all resampled fits give it"


def span_text(low: float, high: float, shown: str) -> str:
    """The ends of an interval; one that is a point in the digits shown is called that.

    It says that the rows have no scatter, or that there was one fit, not that the value is sure.
    """
    first, last = f"{low:{shown}}", f"{high:{shown}}"
    return NO_WIDTH if first == last else f"{first} to {last}"
