"""When a run counts as diverged: decided by its training losses alone."""

import math
from collections.abc import Sequence
from itertools import accumulate

WINDOW = 20
"""Steps over which losses are averaged first, so that one hard batch decides nothing."""

EXPLOSION = 1.0
"""Nats above the first loss where a run is stopped: it is worse than guessing, and stays so."""

RISE = 0.5
"""Nats above its best where a run that ended in numbers still counts as diverged."""

FINAL_WINDOW = 20
"""The final training loss is a mean over one in so many of the steps, the last ones."""

FINAL_OVER = "mean of the last twentieth of the steps"
"""The same in words, for tables and legends."""


def has_exploded(losses: Sequence[float]) -> bool:
    """Whether to stop now: the last loss is not finite, or the last 20 are far above the first."""
    if not math.isfinite(losses[-1]):
        return True
    recent = losses[-WINDOW:]
    return len(losses) > WINDOW and sum(recent) / WINDOW > losses[0] + EXPLOSION


def has_diverged(losses: Sequence[float]) -> bool:
    """Whether the run failed as a whole: it exploded, or ended far above its own best."""
    if has_exploded(losses):
        return True
    if len(losses) < 2 * WINDOW:
        return False
    sums = list(accumulate(losses, initial=0.0))
    means = [(sums[i + WINDOW] - sums[i]) / WINDOW for i in range(len(losses) - WINDOW + 1)]
    return means[-1] > min(means) + RISE


def final_loss(losses: Sequence[float]) -> float:
    """The final training loss: mean of the last `FINAL_WINDOW`, of at least one step.

    Wherever a final training loss is shown, it is this one; `FINAL_OVER` says so in words.
    """
    tail = losses[-max(len(losses) // FINAL_WINDOW, 1) :]
    return sum(tail) / len(tail)
