"""The training losses of a run, and the one number that they end in."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate

FINAL_PART = 20
FINAL = "the mean of the last twentieth of the steps"
"""What a final training loss is, wherever one is shown: in tables, legends and results.json."""


@dataclass(frozen=True, kw_only=True)
class Curve:
    """The training losses of one run, a step each; NaN or infinity where there was no number.

    Args:
        reported: the final training loss in the run's result, which tables show; None computes it
            from the losses, in the same way.
    """

    recipe: str
    losses: Sequence[float]
    diverged: bool
    unit_scaled: bool
    reported: float | None = None

    @property
    def final_loss(self) -> float:
        """The final training loss, as everything that shows one shows it; see `FINAL`."""
        if self.reported is not None:
            return self.reported
        tail = self.losses[-max(len(self.losses) // FINAL_PART, 1) :]
        return sum(tail) / len(tail) if tail else math.nan

    @property
    def first_blank(self) -> int | None:
        """The step, counted from 1, of the first loss that is no number; None if all are."""
        blank = (step for step, loss in enumerate(self.losses, 1) if not math.isfinite(loss))
        return next(blank, None)

    @cached_property
    def smoothed(self) -> list[float]:
        """Mean over about a twentieth of the run around each step, of the finite losses in it."""
        reach = len(self.losses) // 40
        finite = [math.isfinite(loss) for loss in self.losses]
        counts = list(accumulate(finite, initial=0))
        known = (
            loss if is_finite else 0.0 for loss, is_finite in zip(self.losses, finite, strict=True)
        )
        sums = list(accumulate(known, initial=0.0))
        means = []
        for step in range(len(self.losses)):
            first, stop = max(step - reach, 0), min(step + reach + 1, len(self.losses))
            count = counts[stop] - counts[first]
            means.append((sums[stop] - sums[first]) / count if count else math.nan)
        return means

    @property
    def end(self) -> float:
        """The last smoothed loss that is a number; infinity if none is."""
        return next((value for value in reversed(self.smoothed) if math.isfinite(value)), math.inf)
