"""What a recording says, in words: how much is lost, where it is worst, and when it began."""

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from unitscale.report.recording import Recording, Row, Series, lost_fraction

WORTH_NAMING = 0.01
"""Share of a tensor's values from which on a loss is counted."""

JUMP_LOG2 = 10
"""Octaves that an RMS moves between two samples from which on it is a fault and no training.

The first steps of a Llama with a standard initialization move single gradients by eight.
"""


@dataclass(frozen=True, kw_only=True)
class Loss:
    """The sample at which a tensor loses the largest share in its format, and when that began."""

    series: Series
    format: str
    share: float
    step: int
    began: int
    flushed: float
    saturated: float


@dataclass(frozen=True, kw_only=True)
class Jump:
    """A sudden change of a tensor's RMS, in octaves, between two samples."""

    series: Series
    octaves: float
    before: int
    step: int


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What is wrong, the worst first; `paragraph` says it in words.

    Losses are of values and gradients: optimizer moments have a sentence of their own.
    """

    losses: Sequence[Loss]
    jumps: Sequence[Jump]
    judged: int
    sentences: Sequence[str]

    @property
    def paragraph(self) -> str:
        """The sentences in a row."""
        return " ".join(self.sentences)


def judge(recording: Recording) -> Verdict:
    """The verdict on a recording."""
    found = [loss for series in recording.series if (loss := worst(series, recording))]
    judged = [loss for loss in found if loss.series.direction != "state"]
    states = [loss for loss in found if loss.series.direction == "state"]
    losses = sorted((x for x in judged if x.share > WORTH_NAMING), key=lambda x: -x.share)
    jumps = sorted(
        (jump for series in recording.series if (jump := largest_jump(series))),
        key=lambda jump: (jump.step, -abs(jump.octaves)),
    )
    is_one = len(recording.steps) == 1
    sentences = [*fault_sentences(jumps), *loss_sentences(losses, judged, with_step=not is_one)]
    if losing := [loss for loss in states if loss.share > WORTH_NAMING]:
        sentences.append(
            f"Of the optimizer's moments, {len(losing)} of {len(states)} would lose more than 1 % "
            f"in {losing[0].format}."
        )
    sentences += unit_sentences(recording, is_all=not judged)
    return Verdict(losses=losses, jumps=jumps, judged=len(judged), sentences=sentences)


def worst(series: Series, recording: Recording) -> Loss | None:
    """Where a tensor loses most; None if no row knows its shares."""
    format_name = recording.format_for(series.direction)
    known = [
        (share, row)
        for row in series.rows
        if (share := lost_fraction(row, format_name)) is not None
    ]
    if not known:
        return None
    share, row = max(known, key=lambda pair: pair[0])
    began = next(r["step"] for s, r in known if s > WORTH_NAMING or r is row)
    shares = row["formats"][format_name]
    return Loss(
        series=series,
        format=format_name,
        share=share,
        step=row["step"],
        began=began,
        flushed=shares["flushed"],
        saturated=shares["saturated"],
    )


def largest_jump(series: Series) -> Jump | None:
    """The largest sudden change of a tensor's RMS, if it has one."""
    known = [row for row in series.rows if row.get("rms")]
    jumps = [
        Jump(series=series, octaves=octaves(a, b), before=a["step"], step=b["step"])
        for a, b in pairwise(known)
        if abs(octaves(a, b)) >= JUMP_LOG2
    ]
    return max(jumps, key=lambda jump: abs(jump.octaves), default=None)


def octaves(before: Row, after: Row) -> float:
    """log2 of the ratio of two RMS."""
    return math.log2(after["rms"] / before["rms"])


def fault_sentences(jumps: Sequence[Jump]) -> list[str]:
    """The first sudden change: which layer, what, when. One sentence, and one for later ones."""
    if not jumps:
        return []
    first = [jump for jump in jumps if jump.step == jumps[0].step]
    head = first[0]
    layers = [layer for layer, _ in Counter(jump.series.layer for jump in first).most_common()]
    kind = {"value": "values", "gradient": "gradients", "state": "optimizer moments"}
    text = (
        f"At step {head.step} the {kind[head.series.direction]} of {listing(layers)} "
        f"{'fell' if head.octaves < 0 else 'rose'} by 2^{abs(head.octaves):.0f} within one sample "
        f"(since step {head.before}); the largest change is in {head.series.label}, "
        f"one of {plural(len(first), 'tensor')} that moved."
    )
    rest = len(jumps) - len(first)
    return [text] + ([f"{plural(rest, 'more tensor')} jumped later."] if rest else [])


def loss_sentences(losses: Sequence[Loss], judged: Sequence[Loss], *, with_step: bool) -> list[str]:
    """How many tensors lose values, by format, and the worst of each."""
    sentences = []
    for name in dict.fromkeys(loss.format for loss in judged):
        total = sum(loss.format == name for loss in judged)
        found = [loss for loss in losses if loss.format == name]
        if not found:
            sentences.append(
                f"None of {total} tensors loses more than 1 % of its values in {name}."
            )
            continue
        verb = "loses" if len(found) == 1 else "lose"
        sentences.append(
            f"{len(found)} of {total} tensors {verb} more than 1 % of "
            f"{'its' if len(found) == 1 else 'their'} values in {name}; worst: "
            f"{found[0].series.label}, {fate(found[0])}{when(found[0]) if with_step else ''}."
        )
    return sentences


def when(loss: Loss) -> str:
    """The step at which a tensor loses most, and since when it loses."""
    since = f" (from step {loss.began} on)" if loss.began != loss.step else ""
    return f" at step {loss.step}{since}"


def unit_sentences(recording: Recording, *, is_all: bool) -> list[str]:
    """How many tensors lie in the middle of a format at the last step, before and after units.

    Args:
        is_all: there is nothing else to say; else tensors without units get no sentence.
    """
    last = [
        next((row for row in reversed(series.rows) if row.get("rms")), None)
        for series in recording.series
        if series.direction != "state"
    ]
    scales = [
        (row["rms"], row["rms"] * 2.0 ** row.get("held_log2", 0)) for row in last if row is not None
    ]
    is_held = any(before != after for before, after in scales)
    if not scales:
        return ["Nothing was measured."] if is_all else []
    before, after = (sum(0.5 <= pair[i] <= 2 for pair in scales) for i in (0, 1))
    total = len(scales)
    if is_held:
        return [
            f"{before} of {total} tensors have an RMS between 1/2 and 2 as the model computes "
            f"them, and {after} as they are held at their units."
        ]
    return [f"{before} of {total} tensors have an RMS between 1/2 and 2."] if is_all else []


def fate(loss: Loss) -> str:
    """What happens to the values that are lost."""
    parts = [
        f"{percent(share)} {word}"
        for share, word in ((loss.flushed, "flushed to zero"), (loss.saturated, "saturated"))
        if share > 0
    ]
    return " and ".join(parts)


def percent(share: float) -> str:
    """A share in words."""
    return f"{100 * share:.0f} %" if share >= 0.1 else f"{100 * share:.2g} %"


def listing(names: Sequence[str]) -> str:
    """Up to two names."""
    if len(names) <= 2:
        return " and ".join(names)
    return f"{names[0]}, {names[1]} and {plural(len(names) - 2, 'more layer')}"


def plural(count: int, noun: str) -> str:
    """`1 tensor`, `3 tensors`."""
    return f"{count} {noun}{'' if count == 1 else 's'}"


def latest_state(rows: Iterable[Row], formats: Sequence[str]) -> dict[str, object] | None:
    """For a progress line: the worst tensor of one step, and the share of tensors that lose much.

    Values are judged in the first format and gradients in the last, optimizer moments not at all;
    None if there are no rows.
    """
    found = [
        (lost_fraction(row, formats[-1 if row["direction"] == "gradient" else 0]) or 0.0, row)
        for row in rows
        if row["direction"] != "state"
    ]
    if not found:
        return None
    share, row = max(found, key=lambda pair: pair[0])
    return {
        "worst": Series(row["name"], row["op"], row["direction"]).label,
        "worst_lost_fraction": share,
        "losing_fraction": sum(lost > WORTH_NAMING for lost, _ in found) / len(found),
    }
