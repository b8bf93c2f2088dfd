"""Does the best learning rate move with width and depth? u-μP against standard AdamW.

Trains the byte-level language model at every width and depth of the sweep with every learning rate
and seed, in FP32, and compares the best rates. The unit-scaled model has its rates from
`unitscale.optim`, the standard one a single rate for torch's AdamW. Finished runs are kept in
`runs.jsonl`, so the sweep may be stopped at any time, and a wider grid only adds what is new.

    python experiments/width_transfer.py --out runs/width_transfer
    python experiments/width_transfer.py --out runs/smoke --widths 32,64 --depths 2 --steps 5
"""

import argparse
import json
import math
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean
from typing import Any

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes

from pool import mean_and_spread, run_all, setting
from unitscale.data import open_corpus
from unitscale.train import TrainConfig, train

PARAMETRIZATIONS = {"u-μP": "fp32-units", "standard": "fp32"}  # and their recipes
HEAD_SIZE = 32
BASE_WIDTH, BASE_DEPTH = 64, 2  # where the other dimension is held while one is swept


@dataclass(frozen=True, order=True, kw_only=True)
class Point:
    """One run of the sweep."""

    parametrization: str
    width: int
    depth: int
    lr_log2: float
    seed: int
    steps: int
    batch_size: int
    data: str | None


Curve = dict[float, list[float]]  # log2 of the learning rate to the loss of each seed
Curves = dict[tuple[str, int], Curve]  # by parametrization and size


def main() -> None:
    args = arguments()
    args.out.mkdir(parents=True, exist_ok=True)
    by_width = sweep(args, [(width, BASE_DEPTH) for width in args.widths])
    by_depth = sweep(args, [(BASE_WIDTH, depth) for depth in args.depths])
    points = sorted({*by_width, *by_depth}, key=lambda p: (p.width * p.width * p.depth, p))
    results = run_all(points, run, args.out / "runs.jsonl", workers=args.workers)
    losses = {
        point: math.inf if result["loss"] is None else result["loss"]
        for point, result in results.items()
    }
    found = {
        "width": curves("width", {point: losses[point] for point in by_width}),
        "depth": curves("depth", {point: losses[point] for point in by_depth}),
    }
    save(args, found)
    plot(found, args.out / "width_transfer.png")


def arguments() -> argparse.Namespace:
    def integers(text: str) -> list[int]:
        return [int(part) for part in text.split(",")]

    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("runs/width_transfer"))
    parser.add_argument("--data", help="a text file; without it, the embedded corpus")
    parser.add_argument("--widths", type=integers, default=[64, 128, 256, 512])
    parser.add_argument("--depths", type=integers, default=[2, 4, 8])
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--workers", type=int, default=2, help="processes of one thread each")
    parser.add_argument("--unit-lrs", type=integers, default=list(range(-4, 3)), help="log2")
    parser.add_argument("--standard-lrs", type=integers, default=list(range(-11, -4)), help="log2")
    return parser.parse_args()


def sweep(args: argparse.Namespace, sizes: list[tuple[int, int]]) -> list[Point]:
    """Both parametrizations with all rates and seeds, at each (width, depth)."""
    lrs = {"u-μP": args.unit_lrs, "standard": args.standard_lrs}
    return [
        Point(
            parametrization=parametrization,
            width=width,
            depth=depth,
            lr_log2=lr_log2,
            seed=seed,
            steps=args.steps,
            batch_size=args.batch_size,
            data=args.data,
        )
        for parametrization in PARAMETRIZATIONS
        for width, depth in sizes
        for lr_log2 in lrs[parametrization]
        for seed in range(args.seeds)
    ]


def run(point: Point) -> dict[str, float | None]:
    """Validation loss in nats per byte; None where the run diverged."""
    config = TrainConfig(
        recipe=PARAMETRIZATIONS[point.parametrization],
        model={
            "width": point.width,
            "depth": point.depth,
            "heads": max(point.width // HEAD_SIZE, 1),
        },
        steps=point.steps,
        batch_size=point.batch_size,
        lr=2.0**point.lr_log2,
        seed=point.seed,
        checkpoint_every=point.steps,
    )
    with tempfile.TemporaryDirectory() as folder:
        result = train(config, open_corpus(point.data), Path(folder) / "run")
    return {"loss": None if result.diverged else result.valid_loss}


def curves(dimension: str, losses: dict[Point, float]) -> Curves:
    found: Curves = {}
    for point, loss in losses.items():
        curve = found.setdefault((point.parametrization, getattr(point, dimension)), {})
        curve.setdefault(point.lr_log2, []).append(loss)
    return found


@dataclass(frozen=True, kw_only=True)
class Optimum:
    """The best learning rate of one curve.

    `lr_log2` is of the mean over seeds and refined by a parabola; `losses`, one per seed, are at
    the best rate tried, and `transferred_loss` at the one that was best for the smallest model.
    """

    parametrization: str
    size: int
    lr_log2: float
    lr_log2_by_seed: list[float]
    is_at_edge: bool
    losses: list[float]
    transferred_loss: float


def optima(found: Curves) -> Iterator[Optimum]:
    smallest_best: dict[str, float] = {}
    for (parametrization, size), curve in sorted(found.items()):
        means = {lr: mean(losses) for lr, losses in curve.items()}
        best = min(means, key=means.__getitem__)
        by_seed = [
            dict(zip(curve, losses, strict=True)) for losses in zip(*curve.values(), strict=True)
        ]
        yield Optimum(
            parametrization=parametrization,
            size=size,
            lr_log2=parabola_minimum(means),
            lr_log2_by_seed=[parabola_minimum(losses) for losses in by_seed],
            is_at_edge=best in (min(means), max(means)),
            losses=curve[best],
            transferred_loss=means.get(smallest_best.setdefault(parametrization, best), math.nan),
        )


def parabola_minimum(losses: dict[float, float]) -> float:
    """Of the parabola through the lowest point and its neighbors; else that point itself."""
    lrs = sorted(losses)
    index = min(range(len(lrs)), key=lambda i: losses[lrs[i]])
    if not 0 < index < len(lrs) - 1:
        return lrs[index]
    left, middle, right = (losses[lr] for lr in lrs[index - 1 : index + 2])
    curvature = left - 2 * middle + right
    if not 0 < curvature < math.inf:
        return lrs[index]
    return lrs[index] + (lrs[index + 1] - lrs[index]) * (left - right) / (2 * curvature)


def save(args: argparse.Namespace, found: dict[str, Curves]) -> None:
    """`results.json` for programs, `width_transfer.md` for people."""
    about = setting(
        data=open_corpus(args.data).name,
        steps=args.steps,
        batch_size=args.batch_size,
        seeds=args.seeds,
        processes=args.workers,
    )
    best = {dimension: list(optima(own)) for dimension, own in found.items()}
    losses = {
        dimension: [
            {"parametrization": parametrization, "size": size, "lr_log2": lr, "losses": values}
            for (parametrization, size), curve in own.items()
            for lr, values in curve.items()
        ]
        for dimension, own in found.items()
    }
    results = {"setting": about, "optima": jsonable(best), "losses": jsonable(losses)}
    (args.out / "results.json").write_text(json.dumps(results, indent=2, allow_nan=False) + "\n")
    tables = [line for dimension, own in best.items() for line in table(dimension, own)]
    text = "\n".join([about, NOTES, *tables]) + "\n"
    (args.out / "width_transfer.md").write_text(text)
    print(text)


NOTES = (
    "Validation losses in nats per byte; ± is the standard deviation over seeds. The best rate is "
    "refined by a parabola through three points; the last column has the rate that was best, on "
    "the grid, for the smallest model."
)


def jsonable(value: Any) -> Any:
    """Dataclasses as dicts, and null for what is not a finite number."""
    if isinstance(value, dict):
        return {key: jsonable(item) for key, item in value.items()}
    if isinstance(value, list):
        return [jsonable(item) for item in value]
    if isinstance(value, Optimum):
        return jsonable(asdict(value))
    return value if not isinstance(value, float) or math.isfinite(value) else None


def table(dimension: str, best: list[Optimum]) -> Iterator[str]:
    yield ""
    yield f"| | {dimension} | best log2 lr | of each seed | loss | loss at the smallest's best |"
    yield "|---|---|---|---|---|---|"
    for o in best:
        edge = " (edge of the grid)" if o.is_at_edge else ""
        by_seed = ", ".join(f"{lr:.2f}" for lr in o.lr_log2_by_seed)
        yield (
            f"| {o.parametrization} | {o.size} | {o.lr_log2:.2f}{edge} | {by_seed} "
            f"| {mean_and_spread(o.losses)} | {o.transferred_loss:.4f} |"
        )
    yield ""
    for parametrization in PARAMETRIZATIONS:
        lrs = [o.lr_log2 for o in best if o.parametrization == parametrization]
        factor = 2 ** (max(lrs) - min(lrs))
        yield f"- {parametrization}: the best rate moves by a factor of {factor:.2f}."


def plot(found: dict[str, Curves], path: Path) -> None:
    """Loss by rate: a row per dimension, a column per parametrization, a curve per size."""
    matplotlib.use("Agg")
    figure, axes = plt.subplots(2, 2, figsize=(10, 8), sharey="row", layout="constrained")
    for row, (dimension, own) in zip(axes, found.items(), strict=True):
        lowest = min(min(losses) for curve in own.values() for losses in curve.values())
        row[0].set_ylim(lowest - 0.05, lowest + 1.0)  # what diverges must not flatten the minima
        row[0].set_ylabel("validation loss, nats per byte")
        for axis, parametrization in zip(row, PARAMETRIZATIONS, strict=True):
            sizes = sorted(size for name, size in own if name == parametrization)
            for size, shade in zip(sizes, np.linspace(0.0, 0.85, len(sizes)), strict=True):
                draw_curve(axis, own[parametrization, size], f"{dimension} {size}", shade)
            axis.set_xscale("log", base=2)
            axis.set_xlabel("learning rate")
            axis.set_title(f"{parametrization}, by {dimension}")
            axis.grid(alpha=0.3)
        row[0].legend()
    figure.savefig(path, dpi=150)
    plt.close(figure)


def draw_curve(axis: Axes, curve: Curve, label: str, shade: float) -> None:
    """Mean, range over seeds, and a dot at the best."""
    color = matplotlib.colormaps["viridis"](shade)
    lrs = [2.0**lr for lr in curve]
    means = [mean(losses) for losses in curve.values()]
    axis.plot(lrs, means, ".-", color=color, label=label)
    lows, highs = ([pick(losses) for losses in curve.values()] for pick in (min, max))
    axis.fill_between(lrs, lows, highs, color=color, alpha=0.2, linewidth=0)
    best = min(range(len(means)), key=means.__getitem__)
    axis.plot(lrs[best], means[best], "o", color=color, markersize=9)


if __name__ == "__main__":
    main()
