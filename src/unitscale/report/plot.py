"""loss.png: the training losses of a comparison, readable at a glance.

Left the whole of every run, raw and smoothed, with a cross where a diverged one ended; right the
second half of those that stayed near the best, as means over seeds. Dashed lines are standard
models and solid ones unit-scaled.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from statistics import mean
from textwrap import wrap
from typing import Any, NamedTuple

from unitscale.report.atomic import replacing
from unitscale.report.curve import FINAL, Curve
from unitscale.report.extra import imported
from unitscale.report.summary import BASELINE

MARKERS = ("", "o", "s", "^", "D", "v")
"""Of the first ten recipes, the next ten, and so on."""

MARKS = 12
"""How many markers a line has."""

NEAR = 0.25
"""Nats above the best final loss up to which the right panel shows a recipe."""


class Pen(NamedTuple):
    """What tells the lines of one recipe from those of another."""

    color: Any
    marker: str

    def options(self, count: int) -> dict[str, Any]:
        """How matplotlib draws a line of so many points."""
        every = max(count // MARKS, 1)
        return {"color": self.color, "marker": self.marker, "markersize": 4, "markevery": every}


def draw_losses(curves: Sequence[Curve], path: Path, *, title: str) -> None:
    """Draw the curves of all runs, a color or a color and a marker per recipe, as a PNG.

    Raises:
        ValueError: matplotlib is not installed.
        OSError: the file cannot be written.
    """
    figure = new_figure(13, 5, dpi=120)
    whole, detail = figure.subplots(1, 2, width_ratios=(3, 2))
    by_recipe = {
        recipe: [curve for curve in curves if curve.recipe == recipe]
        for recipe in dict.fromkeys(curve.recipe for curve in curves)
    }
    pens = pick_pens(list(by_recipe))
    limits(whole, curves)
    # From the highest curve to the lowest, so that the legend has the order of the picture.
    lines = {
        recipe: draw_runs(whole, by_recipe[recipe], pens[recipe])
        for recipe in sorted(by_recipe, key=lambda recipe: -final_loss(by_recipe[recipe]))
    }
    draw_detail(detail, by_recipe, pens)
    for axes in (whole, detail):
        axes.set_xlabel("step")
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    whole.set_ylabel("training loss, nats a byte")
    detail.set_title("second half, near the best", loc="left", fontsize="medium")
    figure.suptitle(title, x=0.01, horizontalalignment="left", fontsize="medium")
    figure.legend(
        list(lines.values()),
        [legend_label(recipe, by_recipe[recipe]) for recipe in lines],
        loc="outside right upper",
        frameon=False,
        title="\n".join(
            [*wrap(f"recipe, final training loss: {FINAL}", 30), "(dashed: standard model)"]
        ),
        alignment="left",
    )
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png")


def new_figure(width: float, height: float, *, dpi: int) -> Any:
    """A figure that any backend can draw.

    Raises:
        ValueError: matplotlib is not installed.
    """
    figure = imported("matplotlib.figure").Figure(
        figsize=(width, height), dpi=dpi, layout="constrained"
    )
    imported("matplotlib.backends.backend_agg").FigureCanvasAgg(figure)
    return figure


def limits(axes: Any, curves: Sequence[Curve]) -> None:
    """From below the lowest loss to above the highest first one: no explosion flattens the rest."""
    values = [value for curve in curves for value in curve.smoothed if math.isfinite(value)]
    first = [curve.losses[0] for curve in curves if math.isfinite(curve.losses[0])]
    if values and first:
        low, high = min(values), max(first)
        pad = 0.05 * abs(high - low) + 0.01
        axes.set_ylim(low - pad, max(high, low) + pad)


def draw_runs(axes: Any, curves: Sequence[Curve], pen: Pen) -> Any:
    """Every seed of one recipe, over its whole length; returns the last line."""
    top, color = axes.get_ylim()[1], pen.color
    for curve in curves:
        steps = range(1, len(curve.losses) + 1)
        axes.plot(steps, curve.losses, color=color, alpha=0.13, linewidth=0.7)
        style = line_style(curve)
        options = pen.options(len(steps))
        (line,) = axes.plot(steps, curve.smoothed, linestyle=style, linewidth=1.7, **options)
        if curve.diverged:
            height = min(curve.end, top)
            axes.plot(steps[-1], height, "X", color=color, markersize=12, clip_on=False, zorder=9)
    return line


def draw_detail(axes: Any, by_recipe: dict[str, list[Curve]], pens: dict[str, Pen]) -> None:
    """The second half of every recipe that ended near the best, averaged over its seeds."""
    best = min(final_loss(curves) for curves in by_recipe.values())
    for recipe, curves in by_recipe.items():
        whole = [curve.smoothed for curve in curves if not curve.diverged]
        if whole and final_loss(curves) <= best + NEAR:
            means = [mean(values) for values in zip(*whole, strict=True)]
            half = len(means) // 2
            steps = range(half + 1, len(means) + 1)
            style = line_style(curves[0])
            options = pens[recipe].options(len(steps))
            axes.plot(steps, means[half:], linestyle=style, linewidth=1.7, **options)


def line_style(curve: Curve) -> str:
    """Solid for a unit-scaled model, dashed for a standard one."""
    return "-" if curve.unit_scaled else "--"


def pick_pens(recipes: Sequence[str]) -> dict[str, Pen]:
    """Black for the baseline, a color for each other; where they begin again, with a marker."""
    cycle = imported("matplotlib").color_sequences["tab10"]
    others = [recipe for recipe in recipes if recipe != BASELINE]
    found = {BASELINE: Pen("black", "")}
    for i, recipe in enumerate(others):
        found[recipe] = Pen(cycle[i % len(cycle)], MARKERS[i // len(cycle) % len(MARKERS)])
    return found


def final_loss(curves: Sequence[Curve]) -> float:
    """Mean over seeds of the final training losses that are numbers; infinity if none is."""
    found = [curve.final_loss for curve in curves if math.isfinite(curve.final_loss)]
    return mean(found) if found else math.inf


def legend_label(recipe: str, curves: Sequence[Curve]) -> str:
    """The name, the final loss, and whether the recipe diverged."""
    loss, diverged = final_loss(curves), sum(curve.diverged for curve in curves)
    label = recipe + (f"  {loss:.3f}" if math.isfinite(loss) else "")
    if not diverged:
        return label
    return f"{label}  × diverged" + (f" ({diverged} of {len(curves)})" if len(curves) > 1 else "")
