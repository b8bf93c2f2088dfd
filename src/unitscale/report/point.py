"""Which points of a figure have their names beside them: the worst ones, or those asked for."""

import math
from collections.abc import Sequence
from difflib import get_close_matches
from fnmatch import fnmatchcase

from unitscale.report.operand import computes_scale, operand_test
from unitscale.report.recording import Recording, Row, Series, lost_fraction

Labels = int | Sequence[str] | None
"""How many of the worst tensors to name, or patterns of names such as `layers.0.*`."""


def labeled(found: Sequence[tuple[Series, Row]], recording: Recording, labels: Labels) -> list[str]:
    """The labels (`Series.label`) of the tensors to name, the worst first.

    The worst is the operand that loses most in its format; of those that lose alike, or whose loss
    is not known (`report.own_scale`), the one whose RMS, as it is held, is furthest from 1. A
    pattern matches a name or a label; capitals count.

    Raises:
        ValueError: a number below 1; no pattern; a pattern that matches no tensor.
    """
    if labels is None:
        return []
    if isinstance(labels, int):
        if labels < 1:
            raise ValueError(f"label is {labels}; expected at least 1, or names of tensors")
        is_operand = operand_test((row for _, row in found), recording.recipe)
        known = [pair for pair in found if is_operand(pair[1])]
        ordered = sorted(known, key=lambda pair: badness(pair[1], recording), reverse=True)
        return [series.label for series, _ in ordered[:labels]]
    if not labels:
        raise ValueError("label is empty; expected a number of tensors, or names of tensors")
    chosen: dict[str, None] = {}
    for pattern in labels:
        matching = [
            series.label
            for series, _ in found
            if pattern in (series.name, series.label)
            or fnmatchcase(series.name, pattern)
            or fnmatchcase(series.label, pattern)
        ]
        if not matching:
            near = get_close_matches(pattern, [series.name for series, _ in found], n=1)
            hint = f"; the nearest name is {near[0]!r}" if near else ""
            raise ValueError(f"label {pattern!r} matches no tensor{hint}")
        chosen |= dict.fromkeys(matching)
    return list(chosen)


def badness(row: Row, recording: Recording) -> tuple[float, float]:
    """Share lost, and octaves between RMS 1 and the tensor as it is held."""
    is_known = not computes_scale(row, recording.recipe)
    lost = (lost_fraction(row, recording.format_of(row)) or 0.0) if is_known else 0.0
    rms = row.get("rms")
    distance = abs(math.log2(rms) + row.get("held_log2", 0)) if rms else 0.0
    return lost, distance
