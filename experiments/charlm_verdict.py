"""What paired losses say of a claim: it holds, it does not, or it cannot be told.

Two arms are compared seed by seed: the same text in the same order. The claim is judged by the 95 %
interval of the mean difference and by a margin that was chosen before the runs, in nats a byte.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import mean, stdev
from typing import Literal

from unitscale.sweep.interval import t_quantile

MARGIN = 0.03
"""Nats a byte. Chosen before the runs: seeds of one arm lie 0.01 to 0.02 apart at these sizes."""

Claim = Literal["worse", "no worse"]
HOLDS, FAILS, OPEN = "holds", "does not hold", "cannot tell"


@dataclass(frozen=True)
class Difference:
    """The mean of `a - b` over seeds that both have, with its interval; Inf where `a` diverged."""

    mean: float
    half: float
    n: int

    @classmethod
    def of(cls, a: Mapping[int, float], b: Mapping[int, float]) -> "Difference":
        """Of losses by seed. A diverged run has a loss of Inf."""
        seeds = sorted(a.keys() & b.keys())
        values = [a[seed] - b[seed] for seed in seeds]
        if not values:
            return cls(math.nan, math.inf, 0)
        if not all(map(math.isfinite, values)):
            all_of_a = all(a[s] == math.inf and math.isfinite(b[s]) for s in seeds)
            return cls(
                math.inf if all_of_a else math.nan, 0.0 if all_of_a else math.inf, len(seeds)
            )
        n = len(values)
        half = t_quantile(n - 1) * stdev(values) / math.sqrt(n) if n > 1 else math.inf
        return cls(mean(values), half, n)

    def __str__(self) -> str:
        if math.isnan(self.mean):
            return "no runs" if not self.n else f"some of {self.n} diverged"
        if self.mean == math.inf:
            return f"all {self.n} diverged"
        half = "" if self.half == math.inf else f" ± {self.half:.3f}"
        return f"{self.mean:+.3f}{half} (n = {self.n})"


def verdict(found: Difference, claim: Claim, margin: float = MARGIN) -> str:
    """Whether `a` is worse than `b`, or no worse, by more than the margin.

    "worse" holds where the whole interval lies above the margin, "no worse" where it lies below.
    """
    if math.isnan(found.mean) or found.n < 2:
        return OPEN
    if found.mean - found.half > margin:
        return HOLDS if claim == "worse" else FAILS
    if found.mean + found.half < margin:
        return FAILS if claim == "worse" else HOLDS
    return OPEN
