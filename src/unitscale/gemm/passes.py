"""Count the passes over memory that a recipe adds to a layer's products, by running one.

    amax        a reduction over a whole tensor, which has to end before its cast can begin
    casts       a tensor read in the model's dtype and written in few bits, scales of rows and
                blocks included: they need no pass of their own
    transposes  a copy of few-bit data, which hardware wants with the contraction last

A product without a recipe has none of them. One layer has three products and three tensors.
"""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

__all__ = ["KINDS", "counting", "note"]

KINDS = ("amax", "casts", "transposes")
COUNTS: ContextVar[Counter[str] | None] = ContextVar("unitscale_passes", default=None)


@contextmanager
def counting() -> Iterator[Counter[str]]:
    """Counts the passes of the eager products inside, by kind."""
    counts: Counter[str] = Counter(dict.fromkeys(KINDS, 0))
    token = COUNTS.set(counts)
    try:
        yield counts
    finally:
        COUNTS.reset(token)


def note(kind: str) -> None:
    """Count one pass, if somebody counts."""
    counts = COUNTS.get()
    if counts is not None:
        counts[kind] += 1
