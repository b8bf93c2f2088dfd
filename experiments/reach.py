"""Does the warning of outgrown operands come before a divergence, and never without one?

    python experiments/reach.py --out runs/reach

For each seed a Llama is trained in FP8 with units that are measured once, at a constant rate at
which it diverges, and with units that are measured again, at that rate and at a usual one. Printed
are, for each run, the first step from which the report warns (`report/reach.py`), and how far the
loss ends above the best it had (means of 20 steps). Runs that are done are kept in a file.
"""

import argparse
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from tempfile import TemporaryDirectory

from pool import Result, run_all, setting
from unitscale.data import open_corpus
from unitscale.report import read_recording
from unitscale.report.reach import outgrown
from unitscale.train import TrainConfig, train

ARMS = {
    "measured once": {"remeasure": "once", "lr": 2.0**-7, "final_lr_fraction": 1.0},
    "measured again": {"remeasure": "geometric", "lr": 2.0**-7, "final_lr_fraction": 1.0},
    "measured again, usual rate": {"remeasure": "geometric"},
}


@dataclass(frozen=True, kw_only=True)
class Point:
    """One run."""

    arm: str
    seed: int
    steps: int
    width: int
    depth: int


def main() -> None:
    """Run what is missing, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("runs/reach"))
    parser.add_argument("--steps", type=int, default=1200)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--depth", type=int, default=2)
    parser.add_argument("--workers", type=int, default=1, help="processes of one thread each")
    args = parser.parse_args()
    points = [
        Point(arm=arm, seed=seed, steps=args.steps, width=args.width, depth=args.depth)
        for seed in range(args.seeds)
        for arm in ARMS
    ]
    found = run_all(points, run, args.out / "runs.jsonl", workers=args.workers)
    text = report(found)
    (args.out / "README.md").write_text(text)
    print(text)


def run(point: Point) -> Result:
    """When the report warns, and what became of the loss."""
    config = TrainConfig(
        recipe="fp8",
        existing="llama",
        model={"width": point.width, "depth": point.depth},
        steps=point.steps,
        batch_size=8,
        sequence_length=64,
        seed=point.seed,
        record_every=25,
        **ARMS[point.arm],  # type: ignore[arg-type] - of fields of different types
    )
    losses: list[float] = []
    with TemporaryDirectory() as folder:
        train(
            config,
            open_corpus(),
            Path(folder) / "run",
            on_record=lambda record: losses.extend([record["loss"]] if "loss" in record else []),
        )
        warned = outgrown(read_recording(Path(folder) / "run" / "numerics.jsonl", recipe="fp8"))
    windows = [mean(losses[i : i + 20]) for i in range(0, len(losses) - 19, 20)]
    return {
        "warned": [[one.series.name, one.began] for one in warned],
        "above": windows[-1] - min(windows),
        "best": 20 * windows.index(min(windows)),
    }


def report(found: dict[Point, Result]) -> str:
    """A row for each run."""
    one = next(iter(found))
    lines = [
        setting(model=f"llama of width {one.width}, depth {one.depth}", steps=one.steps),
        "",
        "| units | seed | first warned of, at step | operands | best loss before step | "
        "last loss above the best |",
        "|---" * 6 + "|",
    ]
    for arm in ARMS:
        for point, result in found.items():
            if point.arm == arm:
                warned = result["warned"]
                first = f"{warned[0][0]}, {warned[0][1]}" if warned else "none"
                lines.append(
                    f"| {arm} | {point.seed} | {first} | {len(warned)} | {result['best'] + 20} | "
                    f"{result['above']:+.3f} |"
                )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
