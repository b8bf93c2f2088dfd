"""The paper's character models at small scale, with the rate of every arm swept.

For each model (layer, norm, residual, optimizer) and each arm (parametrization and numerics) seed 0
is trained at powers of two of the rate, further out while the best is at the edge; other seeds are
trained at the best rate. The runs and their folders are those of `unitscale sweep`; what is done is
not done again. Seeds are outermost, so that a table of one seed is there first.

    python experiments/charlm_arms.py --data FILE --out runs/charlm_arms --seeds 3
    python experiments/charlm_arms.py --data FILE --out runs/charlm_arms --seeds 3 --report
"""

import argparse
import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from charlm_verdict import MARGIN, Claim, Difference, verdict
from pool import setting
from unitscale.data import open_corpus
from unitscale.sweep.interval import Interval
from unitscale.sweep.job import point_of, run_point
from unitscale.sweep.row import FINISHED

FTZ, SCALED, IEEE = "fp16-true-ftz", "fp16-true-ftz(11)", "fp16-true"
UNITS, UNITS_FTZ = "fp32-units", "fp16-true-ftz-units"
ARMS = ("fp32", FTZ, SCALED, IEEE, UNITS, UNITS_FTZ)

CENTER = {"adamw": {False: -8, True: -1}, "sgd": {False: -3, True: -6}}
"""Binary logarithm of the rate at which the sweep of an arm begins, by optimizer and units."""

FARTHEST = 4
"""Octaves from there that a sweep goes at most."""


@dataclass(frozen=True)
class Cell:
    """A model and its optimizer."""

    layer: str = "attention"
    norm: str = "pre"
    residual: str = "default"
    optimizer: str = "adamw"

    def __str__(self) -> str:
        return f"{self.layer}, {self.norm}, {self.residual}, {self.optimizer}"


CELLS = (
    Cell(),
    Cell(optimizer="sgd"),
    Cell(norm="post"),
    Cell(norm="none"),
    Cell(residual="fixed"),
    Cell(residual="running-mean"),
    Cell(layer="conv"),
    Cell(layer="rnn"),
)
"""One thing changed at a time; the whole product would be 54."""

CLAIMS: tuple[tuple[str, str, str, Claim], ...] = (
    ("FP16 without a loss scale is worse than FP32 (subnormals flushed)", FTZ, "fp32", "worse"),
    ("... with IEEE subnormals too", IEEE, "fp32", "worse"),
    ("a loss scale of 2^11 restores it", SCALED, "fp32", "no worse"),
    ("unit-scaled FP32 is no worse than standard FP32", UNITS, "fp32", "no worse"),
    ("unit-scaled FP16 without a scale is no worse than in FP32", UNITS_FTZ, UNITS, "no worse"),
    ("unit-scaled FP16 without a scale is no worse than FP32", UNITS_FTZ, "fp32", "no worse"),
)

Losses = dict[tuple[Cell, str, int, int], float]
"""By cell, recipe, binary logarithm of the rate, and seed; Inf of a run that diverged."""


def main() -> None:
    args = arguments()
    file = args.out / "losses.jsonl"
    losses = read(file)
    if not args.report:
        for seed in range(args.seeds):
            for cell in CELLS[: args.cells]:
                for recipe in ARMS:
                    fill(losses, cell, recipe, seed, lambda *point: run(args, *point))
                    write(file, losses)
                    print(f"seed {seed}: {cell}: {recipe} done", flush=True)
            (args.out / "charlm_arms.md").write_text(report(args, losses))
    text = report(args, losses)
    (args.out / "charlm_arms.md").write_text(text)
    print(text)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("runs/charlm_arms"))
    parser.add_argument("--data", type=Path, help="a text file; without it, the embedded corpus")
    parser.add_argument("--steps", type=int, default=250)
    parser.add_argument("--width", type=int, default=32)
    parser.add_argument("--depth", type=int, default=1)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--sequence-length", type=int, default=64)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--cells", type=int, help="train the first so many models alone")
    parser.add_argument("--report", action="store_true", help="write the table of what is there")
    return parser.parse_args()


def fill(
    losses: Losses,
    cell: Cell,
    recipe: str,
    seed: int,
    train: Callable[[Cell, str, int, int], float],
) -> None:
    """Train what is missing of one arm and one seed: a sweep for seed 0, else the best rate."""

    def at(rate: int) -> float:
        key = cell, recipe, rate, seed
        if key not in losses:
            losses[key] = train(*key)
        return losses[key]

    if seed:
        at(best_rate(losses, cell, recipe))
        return
    center = CENTER[cell.optimizer][recipe.endswith("-units")]
    low, high = center - 1, center + 1
    for rate in (center, low, high):
        at(rate)
    while True:
        best = min(range(low, high + 1), key=at)
        if best == low and low > center - FARTHEST:
            low -= 1
        elif best == high and high < center + FARTHEST:
            high += 1
        else:
            return


def best_rate(losses: Losses, cell: Cell, recipe: str) -> int:
    """The rate with the lowest loss of seed 0."""
    found = {
        r: x for (c, name, r, seed), x in losses.items() if (c, name, seed) == (cell, recipe, 0)
    }
    return min(found, key=lambda rate: found[rate])


def run(args: argparse.Namespace, cell: Cell, recipe: str, rate: int, seed: int) -> float:
    """The validation loss of one run, in nats a byte; Inf if it diverged."""
    values: dict[str, Any] = {
        "recipe": recipe,
        "lr": 2.0**rate,
        "seed": seed,
        "optimizer": cell.optimizer,
        "steps": args.steps,
        "batch_size": args.batch_size,
        "sequence_length": args.sequence_length,
        "checkpoint_every": args.steps,
        "model.layer": cell.layer,
        "model.norm": cell.norm,
        "model.residual": cell.residual,
        "model.width": args.width,
        "model.depth": args.depth,
    }
    row = run_point(point_of(values), args.out, data=args.data)
    if row["status"] == "failed":
        raise RuntimeError(row["reason"])
    return row["loss"] if row["status"] == FINISHED else math.inf


def read(file: Path) -> Losses:
    """What is done."""
    if not file.exists():
        return {}
    lines = map(json.loads, file.read_text().splitlines())
    return {
        (Cell(*line["cell"]), line["recipe"], line["rate"], line["seed"]): (
            math.inf if line["loss"] is None else line["loss"]
        )
        for line in lines
    }


def write(file: Path, losses: Losses) -> None:
    """Keep what is done, whole or not at all."""
    file.parent.mkdir(parents=True, exist_ok=True)
    lines = [
        json.dumps(
            {
                "cell": [cell.layer, cell.norm, cell.residual, cell.optimizer],
                "recipe": recipe,
                "rate": rate,
                "seed": seed,
                "loss": loss if math.isfinite(loss) else None,
            }
        )
        for (cell, recipe, rate, seed), loss in losses.items()
    ]
    part = file.with_suffix(".part")
    part.write_text("\n".join(lines) + "\n")
    part.replace(file)


def at_best(losses: Losses, cell: Cell, recipe: str) -> dict[int, float]:
    """Losses by seed at the best rate; empty where seed 0 has not been trained."""
    if not any(key[:2] == (cell, recipe) for key in losses):
        return {}
    rate = best_rate(losses, cell, recipe)
    return {key[3]: x for key, x in losses.items() if key[:3] == (cell, recipe, rate)}


def report(args: argparse.Namespace, losses: Losses) -> str:
    """Losses at the best rates, and what they say of the paper's claims."""
    lines = [
        setting(
            data=open_corpus(args.data).name,
            steps=args.steps,
            width=args.width,
            depth=args.depth,
            batch=f"{args.batch_size} x {args.sequence_length} bytes",
            runs=len(losses),
        ),
        "",
        "Validation loss in nats a byte at the best rate (its binary logarithm in brackets, * at "
        "the edge of the sweep), 95 % interval of the mean over n seeds.",
        "",
        f"| model | {' | '.join(f'`{arm}`' for arm in ARMS)} |",
        "|---" * (len(ARMS) + 1) + "|",
    ]
    cells = [cell for cell in CELLS if any(key[0] == cell for key in losses)]
    for cell in cells:
        lines.append(f"| {cell} | {' | '.join(text(losses, cell, arm) for arm in ARMS)} |")
    if missing := [str(cell) for cell in CELLS if cell not in cells]:
        lines += ["", f"Not run yet: {'; '.join(missing)}."]
    lines += [
        "",
        f"Differences paired by seed; the margin is {MARGIN} nats.",
        "",
        "| claim | model | difference | |",
        "|---|---|---|---|",
    ]
    for claim, a, b, kind in CLAIMS:
        for cell in cells:
            found = Difference.of(at_best(losses, cell, a), at_best(losses, cell, b))
            lines.append(f"| {claim} | {cell} | {found} | {verdict(found, kind)} |")
            claim = ""
    return "\n".join(lines) + "\n"


def text(losses: Losses, cell: Cell, recipe: str) -> str:
    """One arm of one model."""
    found = at_best(losses, cell, recipe)
    if not found:
        return "–"
    rate = best_rate(losses, cell, recipe)
    rates = {key[2] for key in losses if key[:2] == (cell, recipe) and key[3] == 0}
    edge = "*" if rate in (min(rates), max(rates)) else ""
    diverged = sum(not math.isfinite(x) for x in found.values())
    if diverged:
        return f"{diverged} of {len(found)} diverged [{rate}{edge}]"
    interval = Interval.of(list(found.values()))
    half = "" if interval.half is None else f" ± {interval.half:.3f}"
    return f"{interval.mean:.3f}{half} [{rate}{edge}] n={interval.n}"


if __name__ == "__main__":
    main()
