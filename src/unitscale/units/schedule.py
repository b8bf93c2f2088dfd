"""When units are measured: which training calls of a model are measuring steps."""

from collections.abc import Collection
from typing import Literal, get_args

__all__ = ["CEILING", "Remeasure", "Schedule", "check_schedule", "is_due", "never_measures"]

Schedule = Literal["geometric", "drift", "once", "never"]
Remeasure = Schedule | Collection[int]

DRIFT_INTERVAL = 64
"""Steps between two looks of the `drift` schedule."""

SHARE, FLOOR, CEILING = 8, 16, 1024
"""Of the `geometric` schedule: looks in each doubling of the step, and the fewest and most steps
between two of them, so that it never goes blind. With one look in a doubling a gradient of a small
BERT grew 395-fold from step 64 to 84 and left FP16 (3 of 3 seeds)."""


def check_schedule(remeasure: Remeasure) -> None:
    """Refuse a word that names no schedule.

    Raises:
        ValueError: another word.
    """
    if isinstance(remeasure, str) and remeasure not in get_args(Schedule):
        raise ValueError(
            f"remeasure is {remeasure!r}; expected one of {get_args(Schedule)} or a list of steps."
        )


def is_due(step: int, remeasure: Remeasure) -> bool:
    """Whether the training call number `step` (from 0) is a measuring step.

    geometric: 0, 1, 2, 4, 8, 16, then every 16th to 256, every 32nd to 512, and so on eight in each
    doubling, in the end every 1,024th; drift: those and every 64th; once: 0; never: none; else the
    steps of the collection.

    Raises:
        ValueError: another word.
    """
    check_schedule(remeasure)
    if not isinstance(remeasure, str):
        return step in remeasure
    doubling = 1 << step.bit_length() >> 1  # the power of two at or below
    gap = min(max(doubling // SHARE, FLOOR), CEILING)
    geometric = doubling == step or step % gap == 0
    return {
        "geometric": geometric,
        "drift": geometric or step % DRIFT_INTERVAL == 0,
        "once": step == 0,
        "never": False,
    }[remeasure]


def never_measures(remeasure: Remeasure) -> bool:
    """Whether no call measures, not even the first: units are 1, or those of `load_units`."""
    return remeasure == "never" or (not isinstance(remeasure, str) and not remeasure)
