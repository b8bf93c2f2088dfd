"""What the page's script draws: recordings and loss curves as compact JSON.

Numbers are rounded to what a screen can show: tenths of an octave or decibel, and two digits of a
share. So a hundred thousand samples of a tensor (500 tensors at 200 steps) fit in two megabytes.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

from unitscale.report.curve import Curve
from unitscale.report.operand import computes_scale, operand_test
from unitscale.report.recording import Recording, Row, Series, thin
from unitscale.report.verdict import Jump, Loss, Verdict, judge
from unitscale.report.what_if import RESULTS, Answer, answers_of, text_of
from unitscale.report.what_if import decibels as decibel_of

MAX_SAMPLES = 100_000
"""Of all recordings together: tensors times steps."""

MAX_HISTOGRAM_STEPS = 6
MAX_CURVE_POINTS = 500

SHARES = ("flushed", "subnormal", "saturated")


def page_data(recordings: Sequence[Recording], curves: Sequence[Curve]) -> dict[str, Any]:
    """Everything that the script needs."""
    return {
        "recordings": [
            recording_data(recording, judge(recording), MAX_SAMPLES // len(recordings))
            for recording in recordings
        ],
        "curves": [curve_data(curve) for curve in curves],
    }


def recording_data(recording: Recording, verdict: Verdict, max_samples: int) -> dict[str, Any]:
    """One recording: a matrix of tensors by steps for every quantity, and some histograms."""
    events: list[Jump | Loss] = [*verdict.jumps, *verdict.losses]
    eventful = [event.step for event in events[:20]]
    recording = thin(recording, max(max_samples // max(len(recording.series), 1), 2), eventful)
    steps = recording.steps
    histogram_steps = pick(steps, [*eventful[:1], steps[-1]] if steps else [])

    aligned = [rows_at(series, steps) for series in recording.series]

    def matrix(value: Callable[[Row], float | None]) -> list[list[float | None]]:
        return [[None if row is None else value(row) for row in rows] for rows in aligned]

    def known(row: Row, name: str) -> Row:
        # Of a scale that is computed from the tensor the shares of the tensor say nothing.
        is_own = computes_scale(row, recording.recipe)
        return {} if is_own else row.get("formats", {}).get(name, {})

    def share(name: str, kind: str) -> Callable[[Row], float | None]:
        return lambda row: two_digits(known(row, name).get(kind))

    def sqnr(name: str) -> Callable[[Row], float | None]:
        return lambda row: decibels(known(row, name))

    rounds = recording.recipe is None or recording.recipe.rounds
    is_operand = operand_test((s.rows[0] for s in recording.series), recording.recipe)
    focus = [(e.series.name, e.series.direction) for e in events[:1]]
    names = [(s.name, s.direction) for s in recording.series]
    asked = what_if_data(recording.what_if, max_samples) if recording.what_if else None
    return {
        "whatIf": asked,
        "label": recording.label,
        "focus": names.index(focus[0]) if focus else 0,
        "formats": {
            name: [octaves(x) for x in (limits.min_subnormal, limits.min_normal, limits.max)]
            for name, limits in recording.formats.items()
        },
        "steps": steps,
        "tensors": [[s.name, s.op, s.direction] for s in recording.series],
        "operands": [rounds and is_operand(s.rows[0]) for s in recording.series],
        "ownScale": [computes_scale(s.rows[0], recording.recipe) for s in recording.series],
        "held": matrix(lambda row: row.get("held_log2", 0)),
        "rms": matrix(lambda row: octaves(row.get("rms"))),
        "amax": matrix(lambda row: octaves(row.get("amax"))),
        "kurtosis": matrix(lambda row: two_digits(row.get("kurtosis"))),
        "shares": {
            name: {kind: matrix(share(name, kind)) for kind in SHARES}
            | {"sqnr": matrix(sqnr(name))}
            for name in recording.formats
        },
        "histogramSteps": histogram_steps,
        "histograms": [
            [row.get("histogram") if row else None for row in rows_at(series, histogram_steps)]
            for series in recording.series
        ],
    }


def what_if_data(rows: Sequence[Row], max_samples: int) -> dict[str, Any]:
    """Products by recipes for every quantity, and the worst result of each by step."""
    answers = answers_of(rows)
    recipes = list(dict.fromkeys(one.recipe for one in answers))
    names = list(dict.fromkeys(one.product for one in answers))
    by_place = {(one.product, one.recipe): one for one in answers}
    work = {row["what_if"]: row["macs"] for row in rows}
    total = sum(work.values()) or 1
    steps = sorted({row["step"] for row in rows})
    few = evenly(steps, max(max_samples // max(len(names) * len(recipes), 1), 2))
    place = {step: i for i, step in enumerate(few)}
    index = {name: i for i, name in enumerate(names)}
    history: list[list[list[float | None]]] = [[[None] * len(few) for _ in recipes] for _ in names]
    for row in rows:
        if row["step"] in place:
            lines = history[index[row["what_if"]]]
            for line, recipe in zip(lines, recipes, strict=True):
                line[place[row["step"]]] = worst_at(row["recipes"].get(recipe, {}))

    def matrix(value: Callable[[Answer], float | None]) -> list[list[float | None]]:
        found = [[by_place.get((name, recipe)) for recipe in recipes] for name in names]
        return [[None if one is None else value(one) for one in line] for line in found]

    def tenth(x: float | None) -> float | None:
        return None if x is None else round(x, 1)

    def percent(x: float | None) -> float | None:
        return None if x is None else two_digits(100 * x)

    def result(name: str) -> Callable[[Answer], float | None]:
        return lambda one: tenth(one.decibels.get(name))

    return {
        "recipes": recipes,
        "products": [[name, two_digits(100 * work[name] / total)] for name in names],
        "stepCount": len(steps),
        "whys": [[word_of(by_place.get((name, recipe))) for recipe in recipes] for name in names],
        "values": {
            "worst": matrix(lambda one: tenth(one.worst)),
            **{name: matrix(result(name)) for name in RESULTS},
            "sqnr": matrix(lambda one: tenth(one.sqnr)),
            "flushed": matrix(lambda one: percent(one.flushed)),
            "saturated": matrix(lambda one: percent(one.saturated)),
        },
        "steps": few,
        "history": history,
    }


def word_of(one: Answer | None) -> str | None:
    """What stands in place of all numbers of a product in a recipe; None where it has some."""
    found = text_of(one)
    return found if isinstance(found, str) and found != "lost" else None


def worst_at(numbers: Row) -> float | None:
    """The decibels of a product's worst result at one step."""
    errors = [decibel_of([error]) for error in numbers.get("errors", {}).values()]
    known = [x for x in errors if x is not None]
    return round(min(known)) if known and len(known) == len(errors) else None


def evenly(steps: Sequence[int], count: int) -> list[int]:
    """At most so many of the steps, evenly spread, with both ends."""
    if len(steps) <= count:
        return list(steps)
    return sorted({steps[round(i * (len(steps) - 1) / (count - 1))] for i in range(count)})


def rows_at(series: Series, steps: Sequence[int]) -> list[Row | None]:
    """The rows of some steps, None where there is none."""
    by_step = {row["step"]: row for row in series.rows}
    return [by_step.get(step) for step in steps]


def pick(steps: Sequence[int], wanted: Sequence[int]) -> list[int]:
    """A few steps, evenly spread, with those that are wanted."""
    count = min(MAX_HISTOGRAM_STEPS, len(steps))
    even = {steps[round(i * (len(steps) - 1) / max(count - 1, 1))] for i in range(count)}
    return sorted(even | set(wanted))


def curve_data(curve: Curve) -> dict[str, Any]:
    """A loss curve of at most MAX_CURVE_POINTS points, smoothed."""
    stride = max(1, math.ceil(len(curve.losses) / MAX_CURVE_POINTS))
    values = [round(x, 4) if math.isfinite(x) else None for x in curve.smoothed[::stride]]
    return {
        "recipe": curve.recipe,
        "stride": stride,
        "losses": values,
        "diverged": curve.diverged,
        "unitScaled": curve.unit_scaled,
    }


def octaves(x: float | None) -> float | None:
    """log2 to a tenth; None for what has none."""
    return round(math.log2(x), 1) if x and x > 0 and math.isfinite(x) else None


def decibels(shares: Row) -> float | None:
    """The SQNR to a decibel."""
    found = shares.get("sqnr_db")
    return None if found is None else round(found)


def two_digits(x: float | None) -> float | None:
    """Two significant digits."""
    return None if x is None else float(f"{x:.2g}")
