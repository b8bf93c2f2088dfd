"""Does a measured skip list beat "keep the first and the last layer" at equal multiply-adds?

    python experiments/skip_list.py --recipe mxfp4 --out runs/skip_list

For each seed a short FP32 run is recorded with what-if, `suggest_skip` gets the budget that the
first and the last layer take, and the same model is trained from the same start under the recipe
with either list, with none, and with the list of the least gain for each multiply-add. The
read-out is a product like any other. Printed are validation losses over FP32's, mean and standard
deviation over seeds. Runs that are done are kept in a file: start it again and it goes on.
"""

import argparse
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

import torch

import unitscale as us
from pool import Result, mean_and_spread, run_all, setting
from small_run import give, small_model, train, valid_loss
from unitscale.record.skip import candidates

ARMS = ("fp32", "none", "first and last", "suggested", "least gain")


@dataclass(frozen=True, kw_only=True)
class Point:
    """One run."""

    recipe: str
    arm: str
    seed: int
    steps: int
    width: int
    depth: int


def main() -> None:
    """Run what is missing, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--recipe", nargs="+", default=["mxfp4"])
    parser.add_argument("--out", type=Path, default=Path("runs/skip_list"))
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--depth", type=int, default=6)
    parser.add_argument("--arms", nargs="+", default=list(ARMS), choices=ARMS)
    parser.add_argument("--workers", type=int, default=1, help="processes of one thread each")
    args = parser.parse_args()
    points = [
        Point(
            recipe="fp32" if arm == "fp32" else recipe,
            arm=arm,
            seed=seed,
            steps=args.steps,
            width=args.width,
            depth=args.depth,
        )
        for seed in range(args.seeds)
        for recipe in args.recipe
        for arm in args.arms
    ]
    found = run_all(dict.fromkeys(points), run, args.out / "runs.jsonl", workers=args.workers)
    text = report(args.recipe, found)
    (args.out / "README.md").write_text(text)
    print(text)


def run(point: Point) -> Result:
    """The loss of one run, and what it kept in full precision."""
    shape = {"width": point.width, "depth": point.depth}
    skip: list[str] = []
    share = 0.0
    if point.arm not in ("fp32", "none"):
        rows = looked_at(point)
        ranked = candidates(rows, point.recipe)
        ends = [f"model.model.layers.{i}" for i in (0, point.depth - 1)]
        budget = sum(
            c.share for c in ranked if any(c.pattern.startswith(end + ".") for end in ends)
        )
        if point.arm == "first and last":
            skip, share = ends, budget
        elif point.arm == "suggested":
            skip = us.record.suggest_skip(rows, point.recipe, budget=budget)
        else:
            left = budget * (1 + 1e-9)
            for candidate in reversed(ranked):
                if candidate.share <= left:
                    left -= candidate.share
                    skip.append(candidate.pattern)
        shares = {c.pattern: c.share for c in ranked}
        share = share or sum(shares[pattern] for pattern in skip)
    model = small_model("llama", point.seed, **shape)
    give(model, point.recipe, skip)
    losses, _ = train(model, steps=point.steps, seed=point.seed)
    return {
        "valid_loss": valid_loss(model),
        "train_loss": mean(losses[-20:]),
        "skip": skip,
        "share": share,
    }


def looked_at(point: Point) -> list[dict[str, Any]]:
    """What-if rows of a short FP32 run, at steps 0, 25, 50 and 75."""
    torch.manual_seed(point.seed)
    model = small_model("llama", point.seed, width=point.width, depth=point.depth)
    return train(model, steps=76, seed=point.seed, what_if=[point.recipe], every=25)[1]


def report(recipes: list[str], found: dict[Point, Result]) -> str:
    """Gaps to FP32, a row for each recipe and list."""
    one = next(iter(found))
    plain = {p.seed: r["valid_loss"] for p, r in found.items() if p.arm == "fp32"}
    lines = [
        setting(model=f"llama of width {one.width}, depth {one.depth}", steps=one.steps),
        "",
        f"FP32 validation loss {mean_and_spread(list(plain.values()))}, {len(plain)} seeds.",
        "",
        "| recipe | kept in full precision | of its multiply-adds | loss over FP32's | by seed |",
        "|---|---|---|---|---|",
    ]
    for recipe in recipes:
        for arm in ARMS[1:]:
            runs = {p.seed: r for p, r in found.items() if (p.recipe, p.arm) == (recipe, arm)}
            if not runs:
                continue
            gaps = [r["valid_loss"] - plain[seed] for seed, r in runs.items()]
            share = mean(r["share"] for r in runs.values())
            each = ", ".join(f"{gap:+.4f}" for gap in gaps)
            lines.append(f"| {recipe} | {arm} | {share:.1%} | {mean_and_spread(gaps)} | {each} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
