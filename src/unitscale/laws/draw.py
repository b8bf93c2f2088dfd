"""Pictures of a law: what it fits, what each precision leaves, where the optimum is."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from unitscale.laws.advice import precisions
from unitscale.laws.budget import FULL_WIDTH
from unitscale.laws.form import Design, log_loss
from unitscale.laws.identify import precision_text
from unitscale.laws.law import Law
from unitscale.laws.row import FULL, TOGETHER, Row
from unitscale.report.figure import save
from unitscale.report.plot import new_figure, pick_pens

DPI = 120
POINTS = 120
POST_LINES = (3.0, 4.0, 5.0, 6.0)
"""Bits after training that a law of bits is drawn at, where its rows have them."""


def draw_fit(law: Law, rows: Sequence[Row], path: Path) -> None:
    """The measured losses over the predicted ones, and the share of parameters that count.

    On the right a dot is a run: the share that explains its loss alone, given the run of the same
    size and tokens at the highest precision (Kumar et al., equation of figure 3).

    Raises:
        ValueError: matplotlib is not installed, or the file's name says another format.
        OSError: the file cannot be written.
    """
    figure = new_figure(11, 4.6, dpi=DPI)
    left, right = figure.subplots(1, 2)
    names = [precision_text(row) if row.bits == {} else "bits" for row in rows]
    colors = {name: pen.color for name, pen in pick_pens(list(dict.fromkeys(names))).items()}
    predicted = np.exp(log_loss(law.form, law.vector, Design.of(rows, law.form))[0])
    for name in dict.fromkeys(names):
        chosen = [i for i, own in enumerate(names) if own == name]
        left.plot(
            predicted[chosen],
            [rows[i].loss for i in chosen],
            "o",
            markersize=4,
            color=colors[name],
            label=name,
        )
    ends = [min(row.loss for row in rows), max(row.loss for row in rows)]
    left.plot(ends, ends, color="gray", linewidth=0.8)
    left.set_xlabel("predicted loss")
    left.set_ylabel("measured loss")
    left.legend(frameon=False, fontsize="small")
    draw_factors(right, law, rows, colors)
    finish(figure, (left, right), law, path)


def draw_factors(axes: Any, law: Law, rows: Sequence[Row], colors: dict[str, Any]) -> None:
    """N_eff / N: a bar with its interval for each recipe, or a curve over bits with its band."""
    dots = list(empirical_factors(law, rows))
    if law.form.tensors:
        low = min(low for low, _ in law.scope.bits.values())
        bits = np.linspace(low, 16, POINTS)
        axes.plot(bits, [law.factor(bits=float(b)) for b in bits], color="black")
        if law.draws:
            spans = [law.factor_interval(bits=float(b)) for b in bits]
            ends = np.array([span for span in spans if span is not None])
            axes.fill_between(bits, ends[:, 0], ends[:, 1], alpha=0.2, color="gray")
        shared = [
            (row.bits["w"], f)
            for row, f in dots
            if len(set(row.bits.values())) == 1
            and len(row.bits) == sum(len(name.split(TOGETHER)) for name in law.form.tensors)
            and "w" in row.bits
        ]
        if shared:
            axes.plot(*zip(*shared, strict=True), "o", markersize=3, alpha=0.5)
        axes.set_xlabel("bits of all tensors")
    else:
        for place, name in enumerate(law.recipes):
            own = [f for row, f in dots if row.recipe == name]
            axes.plot([place] * len(own), own, "o", color=colors.get(name), markersize=3, alpha=0.5)
            factor = law.factor(recipe=name)
            least, most = law.factor_interval(recipe=name) or (factor, factor)
            error = [[max(factor - least, 0.0)], [max(most - factor, 0.0)]]
            axes.errorbar(place + 0.2, factor, yerr=error, fmt="s", color="black", capsize=3)
        axes.set_xticks(range(len(law.recipes)), law.recipes, rotation=30, ha="right")
        axes.set_ylim(0, 1.6)
    axes.set_ylabel("share of the parameters that count")


def empirical_factors(law: Law, rows: Sequence[Row]) -> list[tuple[Row, float]]:
    """Each run with the share of its parameters that explains its loss, where one does.

    `f = [(L - L_full) / A + N^-alpha]^(-1 / alpha) / N`, L_full the mean loss of the runs of its
    size and tokens that are not rounded, or have the reference recipe.
    """
    full: dict[tuple[float, float], list[float]] = {}
    for row in rows:
        is_full = (
            row.recipe == law.form.reference
            if row.recipe is not None
            else min(row.bits.values(), default=FULL) >= FULL_WIDTH
        )
        if is_full:
            full.setdefault(row.cell, []).append(row.loss)
    alpha, found = law.values["alpha"], []
    for row in rows:
        if row.cell not in full:
            continue
        more = (row.loss - float(np.mean(full[row.cell]))) / law.values["A"]
        rest = more + row.size**-alpha
        if rest > 0:
            found.append((row, float(rest ** (-1 / alpha)) / row.size))
    return found


def draw_plan(law: Law, path: Path, *, flops: float) -> None:
    """The loss over the size at a budget, for each precision; a dot is the best size of each.

    Sizes and tokens outside of the rows are dotted. Where the law knows of rounding after training,
    the loss over tokens after that is beside it, with the tokens past which more of them hurt;
    where it has curves over bits, so are lines of equal loss over size and bits.

    Raises:
        ValueError: as `draw_fit`.
        OSError: as `draw_fit`.
    """
    count = 1 + bool(law.damage) + bool(law.form.tensors)
    figure = new_figure(1.5 + 5 * count, 4.6, dpi=DPI)
    panels = figure.subplots(1, count, squeeze=False)[0]
    axes = panels[0]
    compared = precisions(law, None, None) or {f"{b:g}": float(b) for b in (4, 5, 6, 8, 12, 16)}
    pens = pick_pens(list(compared))
    for name, width in compared.items():
        is_recipe = name in law.recipes
        factor = law.factor(recipe=name) if is_recipe else law.factor(bits=float(name))
        surface, product = law.surface(factor), flops * FULL_WIDTH / (6 * width)
        best = surface.best_size(product)
        sizes = best * np.exp(np.linspace(-2.5, 2.5, POINTS))
        losses = [surface.loss(size, product / size) for size in sizes]
        label = name if is_recipe else f"{name} bits"
        inside = [
            law.scope.sizes[0] <= size <= law.scope.sizes[1]
            and law.scope.tokens[0] <= product / size <= law.scope.tokens[1]
            for size in sizes
        ]
        color = pens[name].color
        axes.plot(sizes, losses, ":", color=color, linewidth=1.2)
        axes.plot(sizes, np.where(inside, losses, math.nan), color=color, label=label)
        axes.plot(best, surface.loss(best, product / best), "o", color=color, markersize=5)
    axes.set_xscale("log")
    axes.set_xlabel(f"parameters, at {flops:.3g} FLOP (dotted: beyond the rows)")
    axes.set_ylabel("loss")
    axes.legend(frameon=False, fontsize="small")
    if law.damage is not None:
        draw_post(panels[1], law)
    if law.form.tensors:
        draw_equal(panels[-1], law, flops)
    finish(figure, panels, law, path)


def draw_equal(axes: Any, law: Law, flops: float) -> None:
    """Lines of equal loss over size and bits of all tensors, at a budget; the best of both."""
    low = min(low for low, _ in law.scope.bits.values())
    bits = np.linspace(low, 16, POINTS // 2)
    surfaces = [law.surface(law.factor(bits=float(b))) for b in bits]
    products = flops * FULL_WIDTH / (6 * bits)
    best = [s.best_size(float(p)) for s, p in zip(surfaces, products, strict=True)]
    reached = [s.loss(n, float(p) / n) for s, n, p in zip(surfaces, best, products, strict=True)]
    least = int(np.argmin(reached))
    sizes = best[least] * np.exp(np.linspace(-2.5, 2.5, POINTS // 2))
    losses = np.array(
        [
            [s.loss(float(n), float(p / n)) for n in sizes]
            for s, p in zip(surfaces, products, strict=True)
        ]
    )
    levels = reached[least] * (1 + np.array([0.005, 0.01, 0.02, 0.04, 0.08]))
    lines = axes.contour(sizes, bits, losses, levels=levels)
    axes.clabel(lines, fontsize=7, fmt="%.3f")
    axes.plot(best[least], bits[least], "o", color="black", markersize=5)
    axes.set_xscale("log")
    axes.set_xlabel(f"parameters, at {flops:.3g} FLOP")
    axes.set_ylabel("bits of all tensors (lines: equal loss)")


def draw_post(axes: Any, law: Law) -> None:
    """The loss over tokens of the middle size, after rounding to some bits."""
    assert law.damage is not None
    low, high = law.scope.post_bits or (POST_LINES[0], POST_LINES[-1])
    size = math.sqrt(law.scope.sizes[0] * law.scope.sizes[1])
    surface = law.surface(1.0)
    tokens = np.geomspace(law.scope.tokens[0] / 2, law.scope.tokens[1] * 4, POINTS)
    for bits in (b for b in POST_LINES if low <= b <= high):

        def loss(count: float, bits: float = bits) -> float:
            assert law.damage is not None
            added = law.damage.loss(
                log_size=math.log(size), log_tokens=math.log(count), post_bits=bits, bits={}
            )
            return surface.loss(size, count) + added

        (line,) = axes.plot(tokens, [loss(float(t)) for t in tokens], label=f"{bits:g} bits")
        worst = law.damage.critical_tokens(
            size=size, post_bits=bits, b=surface.b, beta=surface.beta
        )
        if tokens[0] <= worst <= tokens[-1]:
            axes.plot(worst, loss(worst), "o", color=line.get_color())
    axes.set_xscale("log")
    axes.set_xlabel(f"tokens, N = {size:.3g} (dot: more of them hurt)")
    axes.set_ylabel("loss after rounding the weights")
    axes.legend(frameon=False, fontsize="small")


def finish(figure: Any, panels: Sequence[Any], law: Law, path: Path) -> None:
    """Write it, with the mark of a law that is not one's own."""
    for axes in panels:
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    if law.demo is not None:
        figure.suptitle(law.demo, x=0.01, horizontalalignment="left", fontsize="small")
    save(figure, path)
