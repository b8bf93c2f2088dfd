"""What-if against truth: errors predicted on an FP32 run, and those of a run under the recipe.

    python experiments/what_if_truth.py --out runs/what_if_truth

For each model an FP32 run is recorded with what-if, and then one run under each recipe, from the
same start and on the same text, in which what-if asks for the recipe of the run itself: its
operands, and so its errors, are those of the training. (That what-if says of a step what the recipe
does in it, is a test of its own, to four digits.) Printed is Spearman's rank correlation over the
products, of the mean error over the recorded steps. Runs that are done are kept in a file.
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean

import torch

from pool import Result, run_all, setting
from small_run import Row, give, small_model, train

RECIPES = ("fp8-current", "mxfp8", "nvfp4")
MODELS = ("llama", "gpt2")
RESULTS = ("output", "grad_input", "grad_weight")


@dataclass(frozen=True, kw_only=True)
class Point:
    """One run: under FP32 it is asked about all recipes, else about its own."""

    model: str
    recipe: str
    steps: int
    every: int
    width: int
    depth: int
    seed: int = 0


def main() -> None:
    """Run what is missing, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("runs/what_if_truth"))
    parser.add_argument("--steps", type=int, default=101)
    parser.add_argument("--every", type=int, default=25)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--depth", type=int, default=4)
    parser.add_argument("--workers", type=int, default=1, help="processes of one thread each")
    args = parser.parse_args()
    size = {"steps": args.steps, "every": args.every, "width": args.width, "depth": args.depth}
    points = [
        Point(model=model, recipe=recipe, **size)
        for model in MODELS
        for recipe in ("fp32", *RECIPES)
    ]
    found = run_all(points, run, args.out / "runs.jsonl", workers=args.workers)
    text = report(found)
    (args.out / "README.md").write_text(text)
    print(text)


def run(point: Point) -> Result:
    """The errors of every product, by recipe and result: means over the steps after the first."""
    torch.manual_seed(point.seed)
    model = small_model(point.model, point.seed, width=point.width, depth=point.depth)
    give(model, point.recipe)
    asked = RECIPES if point.recipe == "fp32" else (point.recipe,)
    losses, rows = train(
        model, steps=point.steps, seed=point.seed, what_if=asked, every=point.every
    )
    return {
        "loss": mean(losses[-20:]),
        "errors": {recipe: errors_of(rows, recipe) for recipe in asked},
    }


def errors_of(rows: Sequence[Row], recipe: str) -> dict[str, float]:
    """Mean errors by product and result; the first step is the same in all runs, and left out."""
    found: dict[str, list[float]] = {}
    for row in rows:
        if row["step"] > 0:
            for result, error in row["recipes"][recipe].get("errors", {}).items():
                found.setdefault(f"{row['what_if']} {result}", []).append(error)
    return {name: mean(errors) for name, errors in found.items()}


def report(found: dict[Point, Result]) -> str:
    """A row for each model and recipe."""
    one = next(iter(found))
    lines = [
        setting(models=f"width {one.width}, depth {one.depth}", steps=one.steps, every=one.every),
        "",
        "| model | recipe | products | " + " | ".join((*RESULTS, "all")) + " | true / predicted |",
        "|---" * 8 + "|",
    ]
    for point, result in found.items():
        if point.recipe == "fp32":
            continue
        plain = next(r for p, r in found.items() if (p.model, p.recipe) == (point.model, "fp32"))
        predicted, true = plain["errors"][point.recipe], result["errors"][point.recipe]
        names = sorted(predicted.keys() & true.keys())
        kinds = [[n for n in names if n.endswith(f" {kind}")] for kind in RESULTS]
        ranks = [
            f"{spearman([predicted[n] for n in few], [true[n] for n in few]):.2f}"
            for few in (*kinds, names)
        ]
        ratios = sorted(true[n] / predicted[n] for n in names)
        count = len(kinds[0])
        lines.append(
            f"| {point.model} | {point.recipe} | {count} | {' | '.join(ranks)} | "
            f"{ratios[0]:.2f} to {ratios[-1]:.2f}, median {ratios[len(ratios) // 2]:.2f} |"
        )
    return "\n".join(lines) + "\n"


def spearman(x: Sequence[float], y: Sequence[float]) -> float:
    """The rank correlation: Pearson's of the ranks, those of equal values being their mean."""
    a, b = (torch.tensor(ranks(values), dtype=torch.float64) for values in (x, y))
    return float(torch.corrcoef(torch.stack([a, b]))[0, 1])


def ranks(values: Sequence[float]) -> list[float]:
    """The rank of each value, from 1."""
    ordered = sorted(values)
    return [ordered.index(v) + (ordered.count(v) + 1) / 2 for v in values]


if __name__ == "__main__":
    main()
