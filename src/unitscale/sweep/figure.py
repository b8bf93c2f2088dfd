"""lr.png: the loss over the learning rate, a line for each recipe and size. Imports no torch."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from textwrap import wrap
from typing import Any

from unitscale.report.figure import save
from unitscale.report.plot import new_figure, pick_pens
from unitscale.sweep.interval import LEVEL
from unitscale.sweep.summary import Group

STYLES = ("-", "--", ":", "-.")
MARKS = "osD^v<>P"
WIDEST = 38
"""Characters of a line of the legend."""

ROOM = 0.6
"""Of the highest line's height above the lowest: how far up the picture goes beyond the best
losses, so that one rate that hardly learns does not flatten all others."""


def draw_rates(groups: Sequence[Group], path: Path, *, title: str) -> None:
    """Draw the loss of every group over its learning rates; a cross is a rate that diverged.

    Bars are intervals over seeds; a ring is the best rate of its group. A color is a recipe, a
    style of line a size.

    Raises:
        ValueError: matplotlib is not installed, or the file's name says another format.
        OSError: the file cannot be written.
    """
    labels = {group.label: "\n".join(wrap(group.label, WIDEST)) for group in groups}
    lines = sum(label.count("\n") + 1 for label in labels.values())
    figure = new_figure(9, max(5.0, 1.0 + 0.19 * lines), dpi=120)
    axes = figure.subplots()
    pens = pick_pens(list(dict.fromkeys(group.settings["recipe"] for group in groups)))
    colors = {recipe: pen.color for recipe, pen in pens.items()}
    seen: dict[str, int] = {}
    for index, group in enumerate(groups):
        recipe = group.settings["recipe"]
        number = seen[recipe] = seen.get(recipe, -1) + 1
        draw_group(axes, group, colors[recipe], STYLES[number % len(STYLES)], index, labels)
    axes.set_xscale("log", base=2)
    mark_diverged(axes, groups, colors)
    axes.set_xlabel("peak learning rate")
    axes.set_ylabel("validation loss, nats a byte")
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    figure.suptitle(title, x=0.01, horizontalalignment="left", fontsize="medium")
    figure.legend(
        loc="outside right upper",
        frameon=False,
        fontsize="small",
        title=f"bars: {LEVEL:.0%} interval over seeds\nring: best, ×: diverged, triangle: above",
        title_fontsize="small",
        alignment="left",
    )
    save(figure, path)


def draw_group(
    axes: Any, group: Group, color: Any, style: str, index: int, labels: Mapping[str, str]
) -> None:
    """The line of one group, and the ring around its best rate.

    Marks differ from group to group: where lines of two recipes coincide, both can be told.
    """
    known = [rate for rate in group.rates if rate.loss is not None]
    losses = [rate.loss.mean for rate in known if rate.loss is not None]
    halves = [(rate.loss.half or 0.0) for rate in known if rate.loss is not None]
    axes.errorbar(
        [rate.lr for rate in known],
        losses,
        yerr=halves,
        color=color,
        linestyle=style,
        marker=MARKS[index % len(MARKS)],
        fillstyle="none" if index % 2 else "full",
        markersize=5,
        linewidth=1.5,
        capsize=2.5,
        label=labels[group.label],
    )
    if group.best is not None and group.best.loss is not None:
        axes.plot(
            group.best.lr,
            group.best.loss.mean,
            "o",
            color=color,
            fillstyle="none",
            markersize=11,
            zorder=9,
        )


def mark_diverged(axes: Any, groups: Sequence[Group], colors: dict[str, Any]) -> None:
    """Limits that show the best rates well; at the top, what is above them and what diverged."""
    found = [rate.loss for group in groups for rate in group.rates if rate.loss is not None]
    if found:
        low = min(loss.mean for loss in found)  # a wide interval ends outside of the picture
        best = [group.best.loss.mean for group in groups if group.best and group.best.loss]
        high = max(loss.mean for loss in found)
        worst = max(best, default=high)
        top = min(high, worst + max(ROOM * (high - low), 0.5))
        pad = 0.1 * (top - low) + 0.005
        axes.set_ylim(low - 2 * pad, top + 2 * pad)
    top = axes.get_ylim()[1]
    at: dict[float, int] = {}
    for group in groups:
        for rate in group.rates:
            is_above = rate.loss is not None and rate.loss.mean > top
            if rate.diverged or is_above:
                # Several crosses at one rate stand beside one another.
                shift = at[rate.lr] = at.get(rate.lr, -1) + 1
                axes.plot(
                    rate.lr * math.exp2(0.25 * shift),
                    top,
                    "X" if rate.diverged else "^",
                    color=colors[group.settings["recipe"]],
                    markersize=9,
                    clip_on=False,
                    zorder=9,
                )
