"""Does a grown model gain over one trained from scratch, at equal compute, and in FP8 too?

    python experiments/grown_runs.py --out growth-runs            trains what is missing
    python experiments/grown_runs.py --out growth-runs --table    prints the table only

A small Llama over bytes is trained, grown to twice its width and depth, and trained on. From
scratch the large one gets as many multiply-adds in all: the grown one's steps, and the small run's
steps times the ratio of the parameters that multiply. The small one goes on, likewise, for as long
as all of it costs. Every run has the same schedule: warm-up over 5 % of its steps, then a cosine.
"""

import argparse
import json
from pathlib import Path
from statistics import mean, stdev
from typing import NamedTuple

import torch

from unitscale.data import open_corpus
from unitscale.growth.written import grow_folder
from unitscale.train import TrainConfig
from unitscale.train.loop import train
from unitscale.train.run_log import read_log

SMALL, LARGE = {"width": 32, "depth": 2, "heads": 2}, {"width": 64, "depth": 4, "heads": 4}
FIRST, THEN = 1000, 400
"""Steps of the small run, and of the grown one."""

RECIPES = ("fp32", "fp8")
SEEDS = (0, 1, 2)
NEW_TEXT = 100
"""What is added to the seed of a run after growth, and of those that it is compared with."""


class Way(NamedTuple):
    """A way to grow: its name in the table, and what `plan` is asked for."""

    name: str
    asked: dict[str, object]


WAYS = (
    Way("copies, ties broken (fpi, noise 0.02)", {"method": "fpi", "noise": 0.02}),
    Way("exact copies (fpi, noise 0)", {"method": "fpi", "noise": 0.0}),
    Way("next layer's rows, interpolated (aki-pro)", {"method": "aki-pro", "noise": 0.0}),
)


def multiplied(shape: dict[str, int]) -> int:
    """The parameters of a shape that multiply: four matrices and three, and the read-out."""
    width = shape["width"]
    return shape["depth"] * (4 + 9) * width**2 + 256 * width


RATIO = multiplied(SMALL) / multiplied(LARGE)
SCRATCH = THEN + round(FIRST * RATIO)
CONTINUED = FIRST + round(THEN / RATIO)


def config(recipe: str, seed: int, shape: dict[str, int], steps: int) -> TrainConfig:
    """A run of this experiment."""
    return TrainConfig(
        recipe=recipe,
        existing="llama",
        model=shape,
        steps=steps,
        seed=seed,
        sequence_length=64,
        eval_windows=128,
        checkpoint_every=200,
    )


def runs(out: Path, recipe: str, seed: int, *, last: bool) -> None:
    """Make the runs of one recipe and seed, or go on with them."""
    corpus, folder = open_corpus(None), out / f"{recipe}-{seed}"

    def make(made: TrainConfig, name: str) -> None:
        print(recipe, seed, name, flush=True)
        train(made, corpus, folder / name, resume=True)

    if last:
        make(config(recipe, seed, SMALL, CONTINUED), "continued")
        return
    make(config(recipe, seed, SMALL, FIRST), "small")
    for number, way in enumerate(WAYS):
        grown = folder / f"grown-{number}"
        if not grown.exists():
            sizes = {name: LARGE[name] for name in ("width", "depth")}
            done = grow_folder(
                folder / "small", grown, steps=THEN, run_seed=seed + NEW_TEXT, **sizes, **way.asked
            )
            print(done.proof, flush=True)
        make(config(recipe, seed + NEW_TEXT, LARGE, THEN), f"grown-{number}")
    make(config(recipe, seed + NEW_TEXT, LARGE, SCRATCH), "scratch")


def table(out: Path) -> str:
    """Validation losses in nats a byte, as Markdown: means over seeds, with their deviation."""
    names = [
        ("small", f"the small model, {FIRST} steps"),
        *((f"grown-{n}", f"{way.name}, {THEN} more") for n, way in enumerate(WAYS)),
        ("scratch", f"the large one from scratch, {SCRATCH} steps"),
        ("continued", f"the small one, {CONTINUED} steps"),
    ]
    lines = ["| | " + " | ".join(f"{r}: first | {r}: valid" for r in RECIPES) + " | seeds |"]
    lines.append("|---" * (2 + 2 * len(RECIPES)) + "|")
    for name, title in names:
        cells, counts = [], []
        for recipe in RECIPES:
            found = [out / f"{recipe}-{seed}" / name for seed in SEEDS]
            done = [folder for folder in found if (folder / "result.json").exists()]
            logs = [read_log(folder / "log.jsonl") for folder in done]
            first = [next(r["loss"] for r in log if "loss" in r) for log in logs]
            valid = [json.loads((f / "result.json").read_text())["valid_loss"] for f in done]
            cells += [shown(first), shown(valid)]
            counts.append(len(done))
        lines.append(f"| {title} | " + " | ".join(cells) + f" | {' and '.join(map(str, counts))} |")
    return "\n".join(lines)


def shown(values: list[float]) -> str:
    """A mean, and the standard deviation of single runs."""
    if not values:
        return "–"
    spread = f" ± {stdev(values):.3f}" if len(values) > 1 else ""
    return f"{mean(values):.3f}{spread}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("growth-runs"))
    parser.add_argument("--table", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if not options.table:
        for last in (False, True):
            for seed in SEEDS:
                for recipe in RECIPES:
                    runs(options.out, recipe, seed, last=last)
    print(table(options.out))


if __name__ == "__main__":
    main()
