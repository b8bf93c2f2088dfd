"""What a recording says, in words: how much is lost, where it is worst, and when it began."""

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from unitscale.recipes import Recipe
from unitscale.report.operand import computes_scale, operand_test
from unitscale.report.own_scale import own_scale_sentences
from unitscale.report.reach import outgrown, reach_sentences
from unitscale.report.recording import (
    FormatLimits,
    Recording,
    Row,
    Series,
    known_recipe,
    lost_fraction,
)
from unitscale.report.wording import plural

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
class Blank:
    """The first sample in which a tensor that should hold data holds none: all is NaN or infinite.

    Args:
        series: the first of them, in the order in which they are computed.
        data_fraction: share of its elements that still are numbers.
        before: the sample before, in which it had data; None if there is none.
        count, total: tensors without data at that step, and all tensors at that step.
    """

    series: Series
    data_fraction: float
    step: int
    before: int | None
    count: int
    total: int


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What is wrong, the worst first; `paragraph` says it in words.

    Losses are of what the recipe of the run rounds (`report.operand`): none for a recipe that
    rounds nothing, of which the sentences say what it would lose, and none of an operand whose
    scale is computed from it (`report.own_scale`).
    """

    blank: Blank | None
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
    recipe = recording.recipe
    is_operand = operand_test((series.rows[0] for series in recording.series), recipe)
    taken = [series for series in recording.series if is_operand(series.rows[0])]
    own = [series for series in taken if computes_scale(series.rows[0], recipe)]
    judged = [loss for series in taken if series not in own and (loss := worst(series, recording))]
    would_lose = sorted((x for x in judged if x.share > WORTH_NAMING), key=lambda x: -x.share)
    blank = first_blank(recording)
    jumps = sorted(
        (
            jump
            for series in recording.series
            if may_jump(series, is_operand) and (jump := largest_jump(series))
        ),
        key=lambda jump: (jump.step, -abs(jump.octaves)),
    )
    rounds = recipe is None or recipe.rounds
    sentences = [] if blank is None else blank_sentences(blank)
    sentences += fault_sentences(jumps)
    sentences += reach_sentences(outgrown(recording))
    if judged and recipe is not None and not rounds:
        sentences.append(f"{recipe.name} rounds no product.")
    with_step = len(recording.steps) > 1
    sentences += loss_sentences(would_lose, judged, with_step=with_step, is_real=rounds)
    sentences += own_scale_sentences(recording, own, worth_naming=WORTH_NAMING)
    sentences += unit_sentences(recording, is_all=not judged and not own)
    return Verdict(
        blank=blank,
        losses=would_lose if rounds else [],
        jumps=jumps,
        judged=len(judged),
        sentences=sentences,
    )


def may_jump(series: Series, is_operand: Callable[[Row], bool]) -> bool:
    """Whether a jump of this tensor is worth a word.

    An optimizer's moment is none of the model's tensors, and a bias or a gain that starts at zero
    rises by any factor within a step.
    """
    if series.direction == "state":
        return False
    is_parameter = series.op == "parameter" and series.direction == "value"
    return not is_parameter or is_operand(series.rows[0])


def first_blank(recording: Recording) -> Blank | None:
    """Where a run went NaN: the first step at which a tensor lost its data, and the tensor.

    A step counts if a tensor that had data before has none, or if the last value of the model, the
    loss, has none. So a mask's infinities and an empty tensor do not count: the ones leave some
    data, and the other never had any.
    """
    last: dict[tuple[str, str], Row] = {}
    order = [s for s in recording.series if s.direction != "state"]
    values = [s for s in order if s.direction == "value"]
    # Values are computed from the first tensor to the last, and then gradients back.
    order = [*values, *reversed([s for s in order if s.direction == "gradient"])]
    by_step: dict[int, list[tuple[Series, Row]]] = {}
    for series in order:
        for row in series.rows:
            if row.get("data_fraction") is not None:
                by_step.setdefault(row["step"], []).append((series, row))
    for step, found in sorted(by_step.items()):
        lost = [pair for pair in found if pair[1]["data_fraction"] == 0]
        known = [pair for pair in lost if (pair[0].name, pair[0].direction) in last]
        computed = [pair for pair in found if pair[0].direction == "value"]
        if known or (computed and computed[-1] in lost):
            first, row = next(
                (pair for pair in found if has_shrunk(*pair, last)), (known or lost)[0]
            )
            before = last.get((first.name, first.direction))
            return Blank(
                series=first,
                data_fraction=row["data_fraction"],
                step=step,
                before=None if before is None else before["step"],
                count=len(known or lost),
                total=len(found),
            )
        last |= {(s.name, s.direction): row for s, row in found if row["data_fraction"] > 0}
    return None


def has_shrunk(series: Series, row: Row, last: Mapping[tuple[str, str], Row]) -> bool:
    """Whether a tensor that was all data before has become less: the first sign of a NaN."""
    before = last.get((series.name, series.direction))
    return before is not None and before["data_fraction"] == 1 > row["data_fraction"]


def blank_sentences(blank: Blank) -> list[str]:
    """Which tensor holds no data, at which step, and when it still did."""
    share = blank.data_fraction
    left = "none left" if share == 0 else f"{percent(share)} of its data left"
    since = "" if blank.before is None else f" (it had data at step {blank.before})"
    return [
        f"At step {blank.step} {plural(blank.count, 'tensor')} of {blank.total} "
        f"{'holds' if blank.count == 1 else 'hold'} no data: all is NaN, infinite, or beyond 2^64. "
        f"The first in the order of computation is {blank.series.label}, which has {left}{since}."
    ]


def worst(series: Series, recording: Recording) -> Loss | None:
    """Where a tensor loses most; None if no row knows its shares."""
    format_name = recording.format_of(series.rows[0])
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
    kind = {"value": "values", "gradient": "gradients"}
    text = (
        f"At step {head.step} the {kind[head.series.direction]} of {listing(layers)} "
        f"{'fell' if head.octaves < 0 else 'rose'} by 2^{abs(head.octaves):.0f} within one sample "
        f"(since step {head.before}); the largest change is in {head.series.label}, "
        f"one of {plural(len(first), 'tensor')} that moved."
    )
    rest = len(jumps) - len(first)
    return [text] + ([f"{plural(rest, 'more tensor')} jumped later."] if rest else [])


def loss_sentences(
    losses: Sequence[Loss], judged: Sequence[Loss], *, with_step: bool, is_real: bool
) -> list[str]:
    """How many operands lose values, by format, and the worst of each.

    Args:
        is_real: the run rounds them; else the sentences say what they would lose.
    """
    sentences = []
    for name in dict.fromkeys(loss.format for loss in judged):
        total = sum(loss.format == name for loss in judged)
        found = [loss for loss in losses if loss.format == name]
        one = "loses" if is_real else "would lose"
        verb = one if is_real and len(found) <= 1 else "lose" if is_real else one
        if not found:
            sentences.append(
                f"None of {plural(total, 'operand')} {one} more than 1 % of its values in {name}."
            )
            continue
        sentences.append(
            f"{len(found)} of {plural(total, 'operand')} {verb} more than 1 % of "
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
    total, have = len(scales), "has" if len(scales) == 1 else "have"
    if is_held:
        is_constant = recording.recipe is not None and not recording.recipe.unit_scaled
        word = "constants" if is_constant else "units"
        return [
            f"{before} of {plural(total, 'tensor')} {have} an RMS between 1/2 and 2 as the model "
            f"computes them, and {after} as they are held at their {word}."
        ]
    return [f"{before} of {plural(total, 'tensor')} {have} an RMS between 1/2 and 2."] * is_all


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


def latest_state(
    rows: Sequence[Row], formats: Sequence[str], recipe: Recipe | None = None
) -> dict[str, object] | None:
    """For a progress line: the worst operand of one step, and the share of operands that lose much.

    Args:
        formats: values are judged in the first, gradients in the last, unless the rows say how
            they are rounded.
        recipe: that of the run; unless given, every operand counts as rounded.
    Returns:
        None if there are no operands, or the recipe rounds none. Where it computes the scales of
        all of them, `not_judged` alone: why, and how to see what is lost.
    """
    if recipe is not None and not recipe.rounds:
        return None
    is_operand = operand_test(rows, recipe)
    taken = [row for row in rows if is_operand(row)]
    if not taken:
        return None
    limits = {name: FormatLimits(1.0, 1.0, 1.0) for name in formats}  # by their names alone
    recording = Recording(limits, [], recipe=recipe)
    found = [
        (lost_fraction(row, recording.format_of(row)) or 0.0, row)
        for row in taken
        if not computes_scale(row, recipe)
    ]
    if not found:
        asked = "RECIPE" if recipe is None or known_recipe(recipe.name) is None else recipe.name
        return {"not_judged": f"scales are computed: analyse --what-if {asked} says what is lost"}
    share, row = max(found, key=lambda pair: pair[0])
    return {
        "worst": Series(row["name"], row["op"], row["direction"]).label,
        "worst_lost_fraction": share,
        "losing_fraction": sum(lost > WORTH_NAMING for lost, _ in found) / len(found),
    }
