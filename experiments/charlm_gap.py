"""Does a model written unit-scaled end above the standard one? Longer runs, rates swept for both.

Of each size both models are trained in FP32 for a few steps at powers of two of the rate (seed 0),
and for as long as is asked at the best of these rates and at half of it, because longer runs want
lower ones. Each length takes the better of its rates by the mean over seeds. What is done is not
done again.

    python experiments/charlm_gap.py --data shakespeare.txt --out runs/charlm_gap --seeds 3
"""

import argparse
import math
from dataclasses import dataclass
from pathlib import Path

from charlm_verdict import Difference, verdict
from pool import setting
from unitscale.data import open_corpus
from unitscale.sweep.interval import Interval
from unitscale.sweep.job import point_of, run_point
from unitscale.sweep.row import FINISHED

ARMS = ("fp32", "fp32-units")
CENTERS = {"fp32": -8, "fp32-units": 0}
"""Binary logarithm of the rate at which a sweep begins."""
FARTHEST = 3


@dataclass(frozen=True)
class Size:
    """A model and its batch."""

    width: int
    depth: int
    batch_size: int
    sequence_length: int

    @classmethod
    def of(cls, text: str) -> "Size":
        """From "width x depth x windows x bytes", as 64x2x8x64."""
        return cls(*map(int, text.split("x")))

    def __str__(self) -> str:
        return f"width {self.width}, depth {self.depth}, {self.batch_size} x {self.sequence_length}"


Key = tuple[Size, str, int, int, int]
"""Size, recipe, steps, binary logarithm of the rate, seed."""


class Runs:
    """The runs of a folder: trained when they are asked for, unless only what is there counts."""

    def __init__(self, out: Path, data: Path | None, *, only_done: bool) -> None:
        self.out, self.data, self.only_done = out, data, only_done
        self.losses: dict[Key, float] = {}

    def loss(self, *key: int | str | Size) -> float | None:
        """Of one run, in nats a byte; Inf if it diverged, None if it is not done."""
        size, recipe, steps, rate, seed = key
        if key not in self.losses:
            point = point_of(
                {
                    "recipe": recipe,
                    "lr": 2.0**rate,
                    "seed": seed,
                    "steps": steps,
                    "batch_size": size.batch_size,
                    "sequence_length": size.sequence_length,
                    "model.width": size.width,
                    "model.depth": size.depth,
                }
            )
            if self.only_done and not (point.folder(self.out) / "result.json").exists():
                return None
            row = run_point(point, self.out, data=self.data)
            if row["status"] == "failed":
                raise RuntimeError(row["reason"])
            self.losses[key] = row["loss"] if row["status"] == FINISHED else math.inf
            print(f"{size}: {recipe}, {steps} steps, 2^{rate}, seed {seed}: {row['loss']}")
        return self.losses[key]


def main() -> None:
    args = arguments()
    runs = Runs(args.out, args.data, only_done=args.report)
    for seed in range(args.seeds):
        for size in map(Size.of, args.sizes):
            for recipe in ARMS:
                best = swept(runs, size, recipe, args.sweep_steps)
                for steps in args.steps if best is not None else ():
                    for rate in (best, best - 1):
                        runs.loss(size, recipe, steps, rate, seed)
    text = report(args, runs.losses)
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "charlm_gap.md").write_text(text)
    print(text)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("runs/charlm_gap"))
    parser.add_argument("--data", type=Path, help="a text file; without it, the embedded corpus")
    parser.add_argument("--sizes", nargs="+", default=["32x2x8x64", "64x2x8x64", "128x4x8x128"])
    parser.add_argument("--sweep-steps", type=int, default=1500)
    parser.add_argument("--steps", type=int, nargs="+", default=[1500, 10_000])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--report", action="store_true", help="write the table of what is there")
    return parser.parse_args()


def swept(runs: Runs, size: Size, recipe: str, steps: int) -> int | None:
    """The best rate of seed 0, further out while it is at the edge; None if runs are missing."""
    low, high = CENTERS[recipe] - 1, CENTERS[recipe] + 1
    while True:
        found = {rate: runs.loss(size, recipe, steps, rate, 0) for rate in range(low, high + 1)}
        if None in found.values():
            return None
        best = min(found, key=lambda rate: found[rate])
        if best == low and low > CENTERS[recipe] - FARTHEST:
            low -= 1
        elif best == high and high < CENTERS[recipe] + FARTHEST:
            high += 1
        else:
            return best


def at_best(
    losses: dict[Key, float], size: Size, recipe: str, steps: int
) -> tuple[int, dict[int, float]] | None:
    """The better rate, among those that most seeds have, and its losses by seed."""
    by_rate: dict[int, dict[int, float]] = {}
    for (s, name, count, rate, seed), loss in losses.items():
        if (s, name, count) == (size, recipe, steps):
            by_rate.setdefault(rate, {})[seed] = loss
    if not by_rate:
        return None
    most = max(map(len, by_rate.values()))
    whole = {rate: found for rate, found in by_rate.items() if len(found) == most}
    rate = min(whole, key=lambda rate: sum(whole[rate].values()))
    return rate, whole[rate]


def report(args: argparse.Namespace, losses: dict[Key, float]) -> str:
    """A line for each size and length."""
    lines = [
        setting(data=open_corpus(args.data).name, runs=len(losses)),
        "",
        "Validation loss in nats a byte, 95 % interval of the mean; in brackets the binary "
        "logarithm of the rate.",
        "",
        "| size | steps | standard | unit-scaled | unit-scaled over standard | no worse? |",
        "|---" * 6 + "|",
    ]
    for size in map(Size.of, args.sizes):
        for steps in args.steps:
            found = [at_best(losses, size, recipe, steps) for recipe in ARMS]
            if None in found:
                continue
            (rate, plain), (unit_rate, unit) = (arm for arm in found if arm is not None)
            cost = Difference.of(unit, plain)
            cells = [f"{shown(plain)} [{rate}]", f"{shown(unit)} [{unit_rate}]"]
            cells += [str(cost), verdict(cost, "no worse")]
            lines.append(f"| {size} | {steps} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def shown(losses: dict[int, float]) -> str:
    """Mean and interval."""
    interval = Interval.of(list(losses.values()))
    half = "" if interval.half is None else f" ± {interval.half:.3f}"
    return f"{interval.mean:.3f}{half}"


if __name__ == "__main__":
    main()
