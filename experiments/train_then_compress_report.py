"""Put the tables of train_then_compress.py into docs/train_then_compress.md, and its picture.

    python experiments/train_then_compress_report.py experiments/train_then_compress_rows.jsonl

A table goes between the lines `<!-- NAME -->` and `<!-- end -->` of the page; the text around it
stays. Increases of the loss are paired: each model against itself before it was compressed.
"""

import argparse
from collections.abc import Iterable
from pathlib import Path
from statistics import mean
from typing import NamedTuple

from charlm_page import placed
from train_then_compress import BITS, BUDGETS, ROUND_SPARSITY, SHARES, STEPS, read
from train_then_compress_checks import checks
from train_then_compress_pack import FP8, FULL
from train_then_compress_rows import (
    EQUAL_TIME,
    WIDTHS,
    Row,
    increase,
    of_part,
    paired,
    plain_loss,
    shown,
    table,
    widths_of,
    words,
)
from unitscale.report.atomic import write_text
from unitscale.report.figure import save
from unitscale.report.plot import new_figure, pick_pens

PAGE = Path(__file__).parents[1] / "docs" / "train_then_compress.md"
PICTURE = "train_then_compress.png"
HOWS = (
    *((0.0, bits) for bits in (FP8, *BITS)),
    *((share, FULL) for share in SHARES),
)


class Point(NamedTuple):
    """One compressed model: what it is, what its file takes, and its loss."""

    width: int
    how: str
    size: float
    loss: float


def ladder(rows: list[Row]) -> str:
    """Sizes, what a step costs, and losses at equal steps and at equal CPU time."""
    first = {row["width"]: row for row in reversed(of_part(rows, "steps"))}
    head = ["width", "layers", "parameters", "in blocks", "rate", "ms a step"]
    head += [f"{STEPS} steps", "the same, FP8 with units"]
    head += [f"{budget} CPU s (steps)" for budget in BUDGETS]
    lines = []
    for width, row in first.items():
        cells = [str(width), str(row["depth"]), f"{row['parameters']:,}"]
        cells += [f"{row['block_parameters']:,}", f"{row['lr']:g}"]
        cells += [f"{1000 * row['step_cpu_s']:.0f}"]
        cells += [shown([r["trained_loss"] for r in of_part(rows, "steps", width=width)])]
        cells += [shown([r["trained_loss"] for r in of_part(rows, "fp8", width=width)])]
        for budget in BUDGETS:
            runs = of_part(rows, "budget", width=width, budget=budget)
            steps = f", {runs[0]['steps']:,}" if runs else ""
            cells.append(shown([r["loss"] for r in runs]) + steps)
        lines.append((width, cells))
    return table(head, [cells for _, cells in sorted(lines)])


def increases(rows: list[Row]) -> str:
    """The increase of the loss per compression and size, of runs of one part."""
    widths = widths_of(rows)
    head = ["", *(f"width {width}" for width in widths)]
    lines = []
    for share, bits in HOWS:
        cells = [words(share, bits)]
        for width in widths:
            own = [row for row in rows if row["width"] == width]
            cells.append(shown([increase(row, share, bits) for row in own]))
        lines.append(cells)
    return table(head, lines)


def recovered(rows: list[Row]) -> str:
    """Pruning at once and in rounds, with and without training, over the dense model."""
    runs = [row for row in of_part(rows, "steps") if "recovered" in row]
    head = ["width", "at once, no training", "at once, then training", "in rounds"]
    head += ["the dense model after as much training"]
    lines = []
    for width in widths_of(runs):
        own = [row for row in runs if row["width"] == width]
        cells = [str(width), shown([increase(row, ROUND_SPARSITY, FULL) for row in own])]
        for name in ("at once", "in rounds", "dense"):
            cells.append(shown([row["recovered"][name] - row["loss"] for row in own]))
        lines.append(cells)
    return table(head, lines)


def units(rows: list[Row]) -> str:
    """What training in FP8 with units changes in the damage, paired by seed."""
    widths = widths_of(of_part(rows, "fp8"))
    head = ["", *(f"width {width}" for width in widths)]
    lines = [["loss before", *(shown(paired(rows, width, plain_loss)) for width in widths)]]
    for share, bits in HOWS:
        cells = [words(share, bits)]
        for width in widths:
            cells.append(shown(paired(rows, width, lambda r, s=share, b=bits: increase(r, s, b))))
        lines.append(cells)
    return table(head, lines)


def points(runs: list[Row]) -> list[Point]:
    """All compressed models: means over the seeds that every size has."""
    by_width = {w: {r["seed"] for r in runs if r["width"] == w} for w in widths_of(runs)}
    seeds = set.intersection(*by_width.values()) if by_width else set()
    found: dict[tuple[int, str], list[tuple[float, float]]] = {}
    for row in runs:
        if row["seed"] in seeds:
            for one in row["compressed"]:
                how = words(one["share"], one["bits"], one["rounds"])
                at = found.setdefault((row["width"], how), [])
                at.append((one["saved_bytes"], one["loss"]))
    return [
        Point(width, how, mean(size for size, _ in own), mean(loss for _, loss in own))
        for (width, how), own in found.items()
        if len(own) == len(seeds)  # rounds were not made of every run
    ]


def front(found: Iterable[Point]) -> list[Point]:
    """Those than which none is smaller and better, the smallest first."""
    best: list[Point] = []
    for point in sorted(found, key=lambda point: (point.size, point.loss)):
        if not best or point.loss < best[-1].loss:
            best.append(point)
    return best


def runs_of(rows: list[Row], name: str) -> list[Row]:
    """The runs of the two comparisons: at equal steps, or at equal CPU time."""
    if name == "steps":
        return of_part(rows, "steps")
    return of_part(rows, "budget", budget=EQUAL_TIME)


def fronts(rows: list[Row]) -> str:
    """The Pareto fronts of loss against bytes."""
    lines = []
    for name in ("steps", "time"):
        for point in front(points(runs_of(rows, name))):
            title = "equal steps" if name == "steps" else f"{EQUAL_TIME} CPU s each"
            cells = [title, str(point.width), point.how, f"{point.size / 1000:.1f}"]
            lines.append([*cells, f"{point.loss:.3f}"])
    return table(["", "width", "compression", "kB", "loss"], lines)


def times(rows: list[Row]) -> list[Point]:
    """Every run in FP32 as its CPU time and loss."""
    runs = [*of_part(rows, "steps"), *of_part(rows, "budget")]
    seeds = [row for row in runs if row["seed"] == 0]
    return [Point(r["width"], f"{r['steps']:,} steps", r["cpu_s"], r["loss"]) for r in seeds]


def time_front(rows: list[Row]) -> str:
    """The Pareto front of loss against CPU time; one seed."""
    lines = [
        [f"{point.size:.1f}", str(point.width), point.how, f"{point.loss:.3f}"]
        for point in front(times(rows))
    ]
    return table(["CPU s", "width", "", "loss"], lines)


def draw(rows: list[Row], path: Path) -> None:
    """Loss over bytes at equal steps and at equal time, and over CPU time."""
    figure = new_figure(14, 4.6, dpi=100)
    panels = figure.subplots(1, 3)
    pens = pick_pens([str(width) for width in WIDTHS])
    titles = ("equal steps", f"{EQUAL_TIME} CPU s each", "before compression")
    for axes, name, title in zip(panels, ("steps", "time", ""), titles, strict=True):
        found = points(runs_of(rows, name)) if name else times(rows)
        for width in widths_of(rows):
            own = sorted((p for p in found if p.width == width), key=lambda p: p.size)
            axes.plot(
                [p.size / (1000 if name else 1) for p in own],
                [p.loss for p in own],
                "o" if name else "o-",
                markersize=4,
                color=pens[str(width)].color,
                label=f"width {width}",
            )
        best = front(found)
        axes.plot(
            [p.size / (1000 if name else 1) for p in best],
            [p.loss for p in best],
            color="black",
            linewidth=0.8,
            label="best",
        )
        axes.set_xscale("log")
        if not name:
            axes.set_xticks([3, 6, 12, 24, 48])
        axes.xaxis.set_major_formatter("{x:g}")
        axes.xaxis.set_minor_formatter("")
        axes.set_xlabel("kB of packed tensors" if name else "CPU seconds of training")
        if found:
            least = min(p.loss for p in found)
            axes.set_ylim(least - 0.03, least + 0.9)
        axes.set_title(title, loc="left", fontsize="medium")
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("validation loss, nats a byte")
    panels[0].legend(frameon=False, fontsize="small")
    save(figure, path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("rows", type=Path)
    parser.add_argument("--page", type=Path, default=PAGE)
    options = parser.parse_args()
    rows, page = read(options.rows), options.page.read_text()
    page = filled(page, rows)
    draw(rows, options.page.with_name(PICTURE))
    write_text(options.page, page)


def filled(page: str, rows: list[Row]) -> str:
    """The page with all tables of these rows."""
    made = {
        "ladder": ladder(rows),
        "time": time_front(rows),
        "steps": increases(of_part(rows, "steps")),
        "budget": increases(of_part(rows, "budget", budget=EQUAL_TIME)),
        "rounds": recovered(rows),
        "units": units(rows),
        "fronts": fronts(rows),
        "checks": checks(rows),
    }
    for name, text in made.items():
        page = placed(page, name, text)
    return page


if __name__ == "__main__":
    main()
