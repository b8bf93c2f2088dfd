"""Figures for papers, as PNG, SVG or PDF by the name of the file: exponents, SNR, depth."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from unitscale.report.atomic import replacing
from unitscale.report.extra import imported
from unitscale.report.operand import computes_scale
from unitscale.report.page import octaves
from unitscale.report.plot import new_figure
from unitscale.report.point import Labels, labeled
from unitscale.report.recording import FormatLimits, Recording, Row, Series

KINDS = {"value": "values", "gradient": "gradients"}
PICTURES = ("png", "svg", "pdf")
DPI = 150
POINTS_PER_INCH = 72
NAME_SIZE = 6
LEADER = {"arrowstyle": "-", "linewidth": 0.5, "color": "gray"}
SHIFTS = (8, -8, 17, -17, 26, -26, 35, -35, 44, -44, 53, -53)
"""Points by which a name may stand above or below its point, the nearest first."""

NAMED = 48
"""Tensors up to which their names fit below a figure."""

FULL = 0.6
"""Share of a tensor's values in one octave from which on its color is the darkest."""

Points = Sequence[tuple[float, float]]


def save(figure: Any, path: Path) -> None:
    """Write the figure in the format that the file's name says; PNG if it says none.

    Raises:
        ValueError: another format.
        OSError: the file cannot be written.
    """
    kind = path.suffix[1:].lower() or "png"
    if kind not in PICTURES:
        raise ValueError(f"{path} ends in {path.suffix}; expected .png, .svg or .pdf")
    # Text stays text in an SVG, and no date makes two files of one figure differ.
    with (
        imported("matplotlib").rc_context({"svg.fonttype": "none", "svg.hashsalt": "unitscale"}),
        replacing(path) as temporary,
    ):
        metadata = {"Date": None} if kind == "svg" else None
        figure.savefig(temporary, format=kind, metadata=metadata)


def draw_exponents(
    recording: Recording, path: Path, *, step: int | None = None, label: Labels = None
) -> list[str]:
    """A column per tensor, dark where its exponents are; lines are the limits of the formats.

    Above the values, below the gradients; right of each as they are held, if units hold them.

    Args:
        step: which sample; the last unless given.
        label: the tensors whose names stand below their columns, see `point.labeled`; unless
            given all of them, where they fit.
    Returns:
        The labels of the tensors that `label` chose.
    Raises:
        ValueError: no histogram at that step; no tensor with a name that `label` has; matplotlib
            is not installed.
        OSError: the file cannot be written.
    """
    step = recording.steps[-1] if step is None and recording.steps else step
    found = {kind: histograms(recording, kind, step) for kind in KINDS}
    if not any(found.values()):
        raise ValueError(
            f"no histogram at step {step}; the recorded steps are {recording.steps[:20]}"
        )
    chosen = labeled([pair for pairs in found.values() for pair in pairs], recording, label)
    kinds = [kind for kind in KINDS if found[kind]]
    is_held = any(row.get("held_log2") for kind in kinds for _, row in found[kind])
    figure = new_figure(12 if is_held else 8, 3.6 * len(kinds) + 0.6, dpi=DPI)
    grid = figure.subplots(len(kinds), 1 + is_held, squeeze=False)
    for axes_row, kind in zip(grid, kinds, strict=True):
        for axes, held in zip(axes_row, (False, True), strict=False):
            name = recording.format_for(kind)
            limits = limits_of(name, found[kind], recording)
            mesh = draw_columns(axes, found[kind], recording.formats[name], held=held)
            if label is not None or len(found[kind]) <= NAMED:
                name_columns(axes, [series for series, _ in found[kind]], chosen, label)
            else:
                axes.set_xlabel("tensor, in the order of the model")
            axes.set_title(
                f"{KINDS[kind]}{' as held' if held else ''}, {limits}",
                loc="left",
                fontsize="small",
            )
        figure.colorbar(
            mesh, ax=axes_row, label="share of the tensor's values", pad=0.01, extend="max"
        )
    figure.suptitle(f"Exponents at step {step}", x=0.01, ha="left", fontsize="medium")
    save(figure, path)
    return chosen


def limits_of(name: str, found: Sequence[tuple[Series, Row]], recording: Recording) -> str:
    """What the lines of a figure are, in words.

    Where scales are computed from the tensors, no line holds for a tensor as it is drawn.
    """
    is_own = any(computes_scale(row, recording.recipe) for _, row in found)
    return f"limits of {name}{' (each tensor is scaled into them)' if is_own else ''}"


def histograms(recording: Recording, direction: str, step: int | None) -> list[tuple[Series, Row]]:
    """The rows of one direction that have a histogram at a step."""
    return [
        (series, row)
        for series in recording.series
        if series.direction == direction
        for row in series.rows
        if row["step"] == step and row.get("histogram", [0, []])[1]
    ]


def draw_columns(
    axes: Any, rows: Sequence[tuple[Series, Row]], limits: FormatLimits, *, held: bool
) -> Any:
    """Histograms side by side, as shares of each tensor's values; returns the colored mesh."""
    shifts = [int(row.get("held_log2", 0)) if held else 0 for _, row in rows]
    lows = [int(row["histogram"][0]) + s for (_, row), s in zip(rows, shifts, strict=True)]
    tops = [low + len(row["histogram"][1]) for low, (_, row) in zip(lows, rows, strict=True)]
    bottom, top = min(lows), max(tops)
    grid = np.zeros((top - bottom, len(rows)))
    for column, (low, (_, row)) in enumerate(zip(lows, rows, strict=True)):
        counts = np.array(row["histogram"][1])
        grid[low - bottom : low - bottom + len(counts), column] = counts / counts.sum()
    grid[grid == 0] = np.nan
    blues = imported("matplotlib").colormaps["Blues"]
    mesh = axes.pcolormesh(
        np.arange(len(rows) + 1),
        np.arange(bottom, top + 1),
        grid,
        cmap=imported("matplotlib.colors").ListedColormap(blues(np.linspace(0.2, 1, 256))),
        vmin=0,
        vmax=FULL,
        rasterized=True,
    )
    mark_limits(axes, limits)
    axes.set_ylabel("log2 |x|")
    return mesh


def name_columns(
    axes: Any, columns: Sequence[Series], chosen: Sequence[str], label: Labels
) -> None:
    """Names below columns: of all, or of those that were chosen, moved apart if close."""
    if label is None:
        axes.set_xticks(np.arange(len(columns)) + 0.5, [s.name for s in columns], rotation=90)
        axes.tick_params(axis="x", labelsize=NAME_SIZE)
        return
    named = [(at + 0.5, s.name) for at, s in enumerate(columns) if s.label in chosen]
    axes.set_xticks([at for at, _ in named], [""] * len(named))
    width = (
        axes.get_figure().get_figwidth()
        * POINTS_PER_INCH
        / axes.get_subplotspec().get_gridspec().ncols
    )
    gap = 1.5 * NAME_SIZE * len(columns) / width
    for (at, name), place in zip(named, spread([at for at, _ in named], gap), strict=True):
        axes.annotate(
            name,
            (at, 0),
            (place, -0.12),
            xycoords=("data", "axes fraction"),
            textcoords=("data", "axes fraction"),
            rotation=90,
            ha="center",
            va="top",
            fontsize=NAME_SIZE,
            arrowprops=LEADER,
        )


def mark_limits(axes: Any, limits: FormatLimits) -> None:
    """Lines at the smallest value, the smallest normal and the largest, named at the right."""
    for limit, style, name, side in (
        (limits.min_subnormal, "--", "smallest", "top"),
        (limits.min_normal, ":", "normal", "bottom"),
        (limits.max, "--", "largest", "bottom"),
    ):
        at = octaves(limit)
        axes.axhline(at, color="crimson", linestyle=style, linewidth=0.9)
        axes.annotate(
            name,
            (1, at),
            xycoords=("axes fraction", "data"),
            xytext=(-2, 1 if side == "bottom" else -1),
            textcoords="offset points",
            ha="right",
            va=side,
            fontsize=6,
            color="crimson",
        )


def draw_depth(
    recording: Recording, path: Path, *, step: int | None = None, label: Labels = None
) -> list[str]:
    """RMS of every tensor in the order of the model: as computed, and as held where units hold it.

    Args:
        step: which sample; the last unless given.
        label: the tensors whose names stand beside their points, see `point.labeled`; none unless
            given.
    Returns:
        The labels of the tensors that `label` chose.
    Raises:
        ValueError: nothing was recorded at that step; no tensor with a name that `label` has;
            matplotlib is not installed.
        OSError: the file cannot be written.
    """
    step = recording.steps[-1] if step is None and recording.steps else step
    found = {kind: rows_of(recording, kind, step) for kind in KINDS}
    kinds = [kind for kind in KINDS if found[kind]]
    if not kinds:
        raise ValueError(f"nothing at step {step}; the recorded steps are {recording.steps[:20]}")
    chosen = labeled([pair for pairs in found.values() for pair in pairs], recording, label)
    place: dict[str, int] = {}
    for series in recording.series:
        place.setdefault(series.name, len(place))
    figure = new_figure(9, 2.7 * len(kinds) + 0.8, dpi=DPI)
    grid = figure.subplots(len(kinds), 1, sharex=True, squeeze=False)
    for axes, kind, color in zip(grid[:, 0], kinds, ("tab:blue", "tab:orange"), strict=False):
        x = [place[series.name] for series, _ in found[kind]]
        scales = [octaves(row["rms"]) or 0.0 for _, row in found[kind]]
        held = [
            scale + row.get("held_log2", 0)
            for scale, (_, row) in zip(scales, found[kind], strict=True)
        ]
        is_held = held != scales
        if is_held:
            axes.plot(x, held, "o", color=color, markersize=3, label="as held at its unit")
        axes.plot(
            x,
            scales,
            "o",
            color=color,
            markersize=3,
            fillstyle="none" if is_held else "full",
            alpha=0.6 if is_held else 1,
            label="as computed",
        )
        name = recording.format_for(kind)
        mark_limits(axes, recording.formats[name])
        named = [
            (at, height, series.name)
            for at, height, (series, _) in zip(x, held, found[kind], strict=True)
            if series.label in chosen
        ]
        name_points(axes, sorted(named))
        axes.set_ylabel("log2 RMS")
        limits = limits_of(name, found[kind], recording)
        axes.set_title(f"{KINDS[kind]}, {limits}", loc="left", fontsize="small")
        if is_held:
            axes.legend(
                frameon=False,
                fontsize="small",
                ncols=2,
                loc="lower right",
                bbox_to_anchor=(1, 0.99),
                borderaxespad=0.2,
            )
    grid[-1, 0].set_xlabel("tensor, in the order of the model")
    figure.suptitle(f"Scale at step {step}", x=0.01, ha="left", fontsize="medium")
    save(figure, path)
    return chosen


def name_points(axes: Any, points: Sequence[tuple[float, float, str]]) -> None:
    """A circle around each point, and its name above or below where no other name is."""
    low, high = axes.get_xlim()
    height, width = (size * POINTS_PER_INCH * 0.8 for size in (2.7, 9))
    bottom, top = axes.get_ylim()
    taken: list[tuple[float, float, float]] = []
    for at, value, name in points:
        axes.plot([at], [value], "o", color="black", markersize=6, fillstyle="none")
        x, y = (at - low) / (high - low) * width, (value - bottom) / (top - bottom) * height
        is_right = x > width / 2
        length = 0.55 * NAME_SIZE * len(name)
        left = x - length - 10 if is_right else x + 10
        shift = next(
            (
                shift
                for shift in SHIFTS
                if 0 < y + shift < height - NAME_SIZE
                and not any(
                    abs(y + shift - other) < 1.3 * NAME_SIZE
                    and left < end
                    and start < left + length
                    for start, end, other in taken
                )
            ),
            SHIFTS[0],
        )
        taken.append((left, left + length, y + shift))
        axes.annotate(
            name,
            (at, value),
            xytext=(-10 if is_right else 10, shift),
            textcoords="offset points",
            ha="right" if is_right else "left",
            va="center",
            fontsize=NAME_SIZE,
            arrowprops=LEADER,
            bbox={"boxstyle": "round,pad=0.1", "facecolor": "white", "alpha": 0.8, "linewidth": 0},
        )


def spread(places: Sequence[float], gap: float) -> list[float]:
    """Ascending places, moved apart to at least `gap`; a cluster stays around where it was."""
    moved = list(places)
    for i in range(1, len(moved)):
        moved[i] = max(moved[i], moved[i - 1] + gap)
    # The first pass pushed all to the right: take half of that back, from the last one on.
    for i in reversed(range(len(moved))):
        after = moved[i + 1] - gap if i + 1 < len(moved) else math.inf
        moved[i] = min(after, max((moved[i] + places[i]) / 2, places[i]))
    return moved


def rows_of(recording: Recording, direction: str, step: int | None) -> list[tuple[Series, Row]]:
    """The rows of one direction that have a scale at a step."""
    return [
        (series, row)
        for series in recording.series
        if series.direction == direction
        for row in series.rows
        if row["step"] == step and row.get("rms")
    ]


def draw_snr(measured: Mapping[str, Points], expected: Mapping[str, Points], path: Path) -> None:
    """SNR of Gaussian data against its scale: measured (dots) over the closed form (lines)."""
    figure = new_figure(8, 4.2, dpi=DPI)
    axes = figure.subplots()
    for index, (name, points) in enumerate(expected.items()):
        color = f"C{index}"
        axes.plot(*zip(*points, strict=True), color=color, linewidth=1.3, label=name)
        axes.plot(*zip(*measured[name], strict=True), ".", color=color, markersize=3)
    axes.axvline(0, color="gray", linewidth=0.8, linestyle=":")
    axes.set_ylim(bottom=0)
    axes.set_xlabel("log2 of the standard deviation")
    axes.set_ylabel("signal to noise, dB")
    axes.set_title(
        "Gaussian data rounded to each format: measured (dots), closed form (lines)",
        loc="left",
        fontsize="medium",
    )
    axes.grid(alpha=0.25)
    axes.legend(frameon=False)
    save(figure, path)
