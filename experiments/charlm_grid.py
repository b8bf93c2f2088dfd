"""The paper's character-model grid at small scale: layer types x norms x residual schemes.

Every arm trains the byte-level model of `unitscale.models` under four recipes with the default
learning rate of its parametrization: FP32 and FP16 cast without a scale for the standard model,
FP16 and FP8 for the unit-scaled one.

    python experiments/charlm_grid.py --data FILE --out runs/charlm_grid
"""

import argparse
import math
import tempfile
from dataclasses import dataclass
from itertools import product
from pathlib import Path

from pool import Result, mean_and_spread, run_all, setting
from unitscale.data import open_corpus
from unitscale.train import TrainConfig, train

LAYERS = ("attention", "conv", "rnn")
NORMS = ("pre", "post", "none")
RESIDUALS = ("fixed", "running-mean")
RECIPES = ("fp32", "fp16-none", "fp16", "fp8")


@dataclass(frozen=True, kw_only=True)
class Point:
    """One run of the grid."""

    layer: str
    norm: str
    residual: str
    recipe: str
    seed: int
    steps: int
    width: int
    depth: int
    batch_size: int
    sequence_length: int
    data: str | None


def main() -> None:
    args = arguments()
    size = {k: getattr(args, k) for k in ("steps", "width", "depth", "batch_size", "data")}
    points = [
        Point(
            layer=layer,
            norm=norm,
            residual=residual,
            recipe=recipe,
            seed=seed,
            sequence_length=args.sequence_length,
            **size,
        )
        for seed, layer, norm, residual, recipe in product(
            range(args.seeds), args.layers, NORMS, RESIDUALS, RECIPES
        )
    ]
    results = run_all(points, run, args.out / "runs.jsonl", workers=args.workers)
    text = report(args, results)
    (args.out / "charlm_grid.md").write_text(text)
    print(text)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("runs/charlm_grid"))
    parser.add_argument("--data", help="a text file; without it, the embedded corpus")
    parser.add_argument("--layers", nargs="+", choices=LAYERS, default=LAYERS)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--depth", type=int, default=2)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--sequence-length", type=int, default=64)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--workers", type=int, default=2, help="processes of one thread each")
    return parser.parse_args()


def run(point: Point) -> Result:
    """Validation loss in nats per byte."""
    config = TrainConfig(
        recipe=point.recipe,
        model={
            "layer": point.layer,
            "norm": point.norm,
            "residual": point.residual,
            "width": point.width,
            "depth": point.depth,
        },
        steps=point.steps,
        batch_size=point.batch_size,
        sequence_length=point.sequence_length,
        seed=point.seed,
        checkpoint_every=point.steps,
    )
    with tempfile.TemporaryDirectory() as folder:
        result = train(config, open_corpus(point.data), Path(folder) / "run")
    return {"loss": None if result.diverged else result.valid_loss, "diverged": result.diverged}


def report(args: argparse.Namespace, results: dict[Point, Result]) -> str:
    """The table of validation losses: a row per model, a column per recipe."""
    header = setting(
        data=open_corpus(args.data).name,
        steps=args.steps,
        width=args.width,
        depth=args.depth,
        batch=f"{args.batch_size} x {args.sequence_length} bytes",
        seeds=args.seeds,
    )
    lines = [header, "Validation loss in nats per byte, mean ± standard deviation over seeds.", ""]
    lines += [f"| layer | norm | residual | {' | '.join(RECIPES)} |", "|---" * 7 + "|"]
    for layer, norm, residual in product(args.layers, NORMS, RESIDUALS):
        cells = [
            cell(
                [
                    r["loss"]
                    for p, r in results.items()
                    if (p.layer, p.norm, p.residual, p.recipe) == (layer, norm, residual, recipe)
                ]
            )
            for recipe in RECIPES
        ]
        lines.append(f"| {layer} | {norm} | {residual} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def cell(losses: list[float | None]) -> str:
    """Mean and spread, or how many runs diverged."""
    finite = [loss for loss in losses if loss is not None and math.isfinite(loss)]
    if len(finite) < len(losses):
        return f"{len(losses) - len(finite)} of {len(losses)} diverged"
    return mean_and_spread(finite)


if __name__ == "__main__":
    main()
