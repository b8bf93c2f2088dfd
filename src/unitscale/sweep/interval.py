"""Means over seeds with Student's t-interval, without scipy. Imports no torch."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean, stdev

LEVEL = 0.95
"""Of every interval: how often one that is made so holds the mean over all seeds."""


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A mean of `n` values and half the width of its interval.

    `half` is None for one value, of which nothing says how far another would be.
    """

    mean: float
    half: float | None
    n: int

    @classmethod
    def of(cls, values: Sequence[float]) -> "Interval":
        """The t-interval of the mean: `mean ± t(n - 1) * stdev / sqrt(n)`, at `LEVEL`.

        Raises:
            ValueError: no value.
        """
        n = len(values)
        if not n:
            raise ValueError("an interval of 0 values; expected at least one")
        half = t_quantile(n - 1) * stdev(values) / math.sqrt(n) if n > 1 else None
        return cls(mean=mean(values), half=half, n=n)

    def __str__(self) -> str:
        return f"{self.mean:.4f}" + ("" if self.half is None else f" ± {self.half:.4f}")


def t_quantile(freedom: int, level: float = LEVEL) -> float:
    """The t between which and its negative the share `level` of Student's distribution lies.

    Source: Abramowitz and Stegun, 26.7.3 and 26.7.4, inverted by bisection to the last digits.
    """
    low, high = 0.0, 1.0
    while within(high, freedom) < level:
        high *= 2
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if within(middle, freedom) < level else (low, middle)
    return (low + high) / 2


def within(t: float, freedom: int) -> float:
    """The probability of a value between -t and t, a finite sum for whole degrees of freedom."""
    angle = math.atan2(t, math.sqrt(freedom))
    sine, cosine = math.sin(angle), math.cos(angle)
    is_odd = freedom % 2
    term = cosine if is_odd else 1.0
    total = 0.0
    for k in range(1, freedom // 2 + 1):
        total += term
        term *= cosine**2 * ((2 * k) / (2 * k + 1) if is_odd else (2 * k - 1) / (2 * k))
    return 2 / math.pi * (angle + sine * total) if is_odd else sine * total
