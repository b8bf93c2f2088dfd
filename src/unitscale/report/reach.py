"""Tensors that grow out of the range at which a recipe holds them: what precedes a divergence.

The reach of a tensor is its largest magnitude, as it is held, over the largest value of its format:
`amax * 2**held_log2 / max`. At a unit that is `amax / RMS` with the RMS of when the unit was
measured. A measuring step leaves it at 1/2 or less. Where units no longer follow the model it rises
for hundreds of steps while the loss still falls: more and more of the tensor is cut off.

    the rule    An operand that a recipe rounds at a unit, a constant or as it is, has been beyond
                4 times the largest value of its format in 3 samples in a row, and at 4 times the
                reach of its first sample.

Kurtosis and amax over the RMS of now say nothing of it: in a Llama whose units are those of its
first step both *fall* (`docs/numerics.md`), because what grows is the whole tensor.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from unitscale.recipes import Recipe
from unitscale.report.operand import Row, computes_scale, operand_of, operand_test
from unitscale.report.recording import Recording, Series

__all__ = ["Outgrown", "outgrown", "reach_sentences"]

BEYOND = 4.0
"""Reach from which on a sample counts, and the growth since the first sample that it needs. The
largest of healthy runs of a small Llama, one each, was 0.9 (`fp32`) and 0.13 (`fp8`)."""

IN_A_ROW = 3


@dataclass(frozen=True, kw_only=True)
class Outgrown:
    """A tensor that has outgrown its format.

    Args:
        began: the first of the samples in a row.
        reach: the largest in them.
        first: the reach of the first sample of all.
    """

    series: Series
    format: str
    began: int
    reach: float
    first: float


def outgrown(recording: Recording) -> list[Outgrown]:
    """The tensors to which the rule of this file applies, the earliest first."""
    recipe = recording.recipe
    is_operand = operand_test((series.rows[0] for series in recording.series), recipe)
    found = []
    for series in recording.series:
        if is_given(series.rows[0], recipe) and is_operand(series.rows[0]):
            one = first_run(series, recording)
            found += [] if one is None else [one]
    return sorted(found, key=lambda one: (one.began, -one.reach))


def is_given(row: Row, recipe: Recipe | None) -> bool:
    """Whether a tensor is rounded at a scale that does not follow it by itself."""
    operand = operand_of(row, recipe)
    return operand is not None and operand.rounds and not computes_scale(row, recipe)


def first_run(series: Series, recording: Recording) -> Outgrown | None:
    """The first samples in a row that are beyond the range; None if there are none."""
    name = recording.format_of(series.rows[0])
    top = recording.formats[name].max
    known = [
        (row["step"], row["amax"] * 2.0 ** row.get("held_log2", 0) / top)
        for row in series.rows
        if row.get("amax")
    ]
    if not known:
        return None
    first = known[0][1]
    run: list[tuple[int, float]] = []
    for step, reach in known:
        run = [*run, (step, reach)] if reach >= BEYOND * max(first, 1.0) else []
        if len(run) == IN_A_ROW:
            largest = max(reach for _, reach in known)
            return Outgrown(series=series, format=name, began=run[0][0], reach=largest, first=first)
    return None


def reach_sentences(found: Sequence[Outgrown]) -> list[str]:
    """A warning that names the first tensor and says what to do; none if there is nothing."""
    if not found:
        return []
    one, more = found[0], len(found) - 1
    rest = f", and {more} more {'tensors' if more > 1 else 'tensor'} later" if more else ""
    return [
        f"From step {one.began} on {one.series.label} has outgrown {one.format}: its largest "
        f"magnitude as it is held was {one.reach:.3g} times the largest value of the format "
        f"({one.first:.2g} times in the first sample){rest}. Runs diverge after this; measure the "
        "units again, or use a scale that is computed from each tensor."
    ]
