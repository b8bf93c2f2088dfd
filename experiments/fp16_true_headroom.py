"""How far a model is from the end of FP16: its loss by loss scale, and by tokens a step.

A loss scale of 2^-k makes gradients as small as 2^k times as many tokens a step do: a mean over
tokens divides by their number. So the first figure says where the second one fails.

    python experiments/fp16_true_headroom.py --data FILE --out runs/headroom --part scale
    python experiments/fp16_true_headroom.py --data FILE --out runs/headroom --part tokens
    python experiments/fp16_true_headroom.py --data FILE --out runs/headroom --part direct
    python experiments/fp16_true_headroom.py --data FILE --out runs/headroom --report

`direct` trains with 2^17 and 2^19 tokens a step, by accumulation: gradients of micro-batches are
summed in FP16 as well.
"""

import argparse
import math
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from charlm_verdict import Difference, verdict
from pool import Result, run_all, setting
from unitscale.data import open_corpus
from unitscale.train import TrainConfig, train
from unitscale.train.spread import Spread

STANDARD = {"IEEE": "fp16-true", "FTZ": "fp16-true-ftz", "FP8": "fp8-none"}
UNITS = {"unit-scaled, IEEE": "fp16-true-units", "unit-scaled, FTZ": "fp16-true-ftz-units"}
ARMS = STANDARD | UNITS
SCALES = range(-10, 17, 2)
TOKENS = range(8, 14)
DIRECT = (17, 19)
RATES = {False: -8, True: -1}
MICRO = 64
"""Windows of a micro-batch, where a step has more."""
FAILED = 0.1
"""Nats a byte above FP32 from which an arm counts as failed in the figure's summary."""


@dataclass(frozen=True, kw_only=True)
class Point:
    """One run; `scale` is the binary logarithm of the loss scale, None for a recipe without one."""

    recipe: str
    scale: int | None
    batch_size: int
    steps: int
    seed: int
    width: int
    depth: int
    sequence_length: int
    data: str | None


def main() -> None:
    args = arguments()
    cache = args.out / "runs.jsonl"
    for seed in range(args.seeds):
        points = [p for part in args.part for p in PARTS[part](args, seed)]
        if points and not args.report:
            run_all(points, run, cache, workers=1)
    found = read(args, cache)
    (args.out / "headroom.md").write_text(text := report(args, found))
    print(text)
    draw(args, found, args.out / "headroom.png")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("runs/headroom"))
    parser.add_argument("--data", help="a text file; without it, the embedded corpus")
    parser.add_argument("--part", nargs="*", choices=PARTS, default=list(PARTS))
    parser.add_argument("--scales", type=int, nargs="+", default=list(SCALES), help="log2 of them")
    parser.add_argument("--steps", type=int, default=250, help="of runs by loss scale")
    parser.add_argument("--token-steps", type=int, default=100, help="of runs by tokens a step")
    parser.add_argument("--direct-steps", type=int, default=16, help="of the largest batches")
    parser.add_argument("--width", type=int, default=32)
    parser.add_argument("--depth", type=int, default=1)
    parser.add_argument("--batch-size", type=int, default=4, help="windows a step, by loss scale")
    parser.add_argument("--sequence-length", type=int, default=64)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--report", action="store_true", help="tables and figure of what is there")
    return parser.parse_args()


def point(
    args: argparse.Namespace, seed: int, recipe: str, steps: int, windows: int, scale: int | None
) -> Point:
    """A run of the size that was asked for."""
    return Point(
        recipe=recipe,
        scale=scale,
        batch_size=windows,
        steps=steps,
        seed=seed,
        width=args.width,
        depth=args.depth,
        sequence_length=args.sequence_length,
        data=args.data,
    )


def by_scale(args: argparse.Namespace, seed: int) -> list[Point]:
    """Every arm at every loss scale, and what they are compared with."""
    size = seed, args.steps, args.batch_size
    pairs = [("fp32", None), ("fp32-units", None), ("fp8", None)]
    pairs += [(recipe, scale) for scale in args.scales for recipe in ARMS.values()]
    return [point(args, size[0], recipe, *size[1:], scale) for recipe, scale in pairs]


def by_tokens(args: argparse.Namespace, seed: int) -> list[Point]:
    """Every arm without a loss scale, for batches that double."""
    recipes = ("fp32", "fp32-units", "fp8", *ARMS.values())
    windows = [2**log2 // args.sequence_length for log2 in TOKENS]
    return [
        point(args, seed, recipe, args.token_steps, count, None)
        for count in windows
        for recipe in recipes
    ]


def direct(args: argparse.Namespace, seed: int) -> list[Point]:
    """The largest batches, by accumulation; the largest of all for seed 0 and a few arms."""
    found = []
    for log2 in DIRECT if seed == 0 else DIRECT[:1]:
        recipes = ["fp32", "fp16-true", "fp16-true-units"]
        if log2 == min(DIRECT):
            recipes += ["fp32-units", "fp16-true-ftz", "fp16-true-ftz-units"]
        windows = 2**log2 // args.sequence_length
        found += [point(args, seed, r, args.direct_steps, windows, None) for r in recipes]
        found.append(point(args, seed, "fp16-true", args.direct_steps, windows, 11))
    return found


PARTS = {"scale": by_scale, "tokens": by_tokens, "direct": direct}


def run(p: Point) -> Result:
    """Validation loss in nats a byte."""
    name = p.recipe if p.scale is None else f"{p.recipe}({p.scale})"
    is_unit = "units" in p.recipe or p.recipe == "fp8"
    config = TrainConfig(
        recipe=name,
        model={"width": p.width, "depth": p.depth},
        lr=2.0 ** RATES[is_unit],
        steps=p.steps,
        batch_size=p.batch_size,
        sequence_length=p.sequence_length,
        seed=p.seed,
        checkpoint_every=p.steps,
    )
    spread = Spread(micro_batches=max(1, p.batch_size // MICRO))
    with tempfile.TemporaryDirectory() as folder:
        result = train(config, open_corpus(p.data), Path(folder) / "run", spread=spread)
    return {"loss": None if result.diverged else result.valid_loss}


def read(args: argparse.Namespace, cache: Path) -> dict[Point, float]:
    """All points that are done, by `run_all`, which then has nothing to do; Inf if diverged."""
    points = [p for seed in range(args.seeds) for part in PARTS.values() for p in part(args, seed)]
    done = run_all(points, run, cache, workers=1, only_done=True)
    return {p: math.inf if r["loss"] is None else r["loss"] for p, r in done.items()}


def losses(
    found: dict[Point, float], recipe: str, scale: int | None, windows: int, steps: int
) -> dict[int, float]:
    """By seed."""
    key = recipe, scale, windows, steps
    return {
        p.seed: loss
        for p, loss in found.items()
        if (p.recipe, p.scale, p.batch_size, p.steps) == key
    }


def control(recipe: str) -> str:
    """The same parametrization without rounding."""
    return "fp32-units" if "units" in recipe or recipe == "fp8" else "fp32"


def over(
    found: dict[Point, float], recipe: str, scale: int | None, windows: int, steps: int
) -> Difference:
    """What the numerics cost: the loss over that of the same model in FP32, paired by seed."""
    here = losses(found, recipe, scale, windows, steps)
    return Difference.of(here, losses(found, control(recipe), None, windows, steps))


def report(args: argparse.Namespace, found: dict[Point, float]) -> str:
    """The three tables."""
    names = "| | " + " | ".join(ARMS) + " |"
    rule = "|---" * (len(ARMS) + 1) + "|"
    base = losses(found, "fp32", None, args.batch_size, args.steps)
    lines = [
        setting(
            data=open_corpus(args.data).name,
            width=args.width,
            depth=args.depth,
            window=f"{args.sequence_length} bytes",
            runs=len(found),
        ),
        "",
        f"Loss over the same model in FP32 by loss scale, {args.batch_size * args.sequence_length} "
        f"tokens a step, {args.steps} steps; FP32 "
        f"ends at {', '.join(f'{x:.3f}' for x in base.values())}.",
        "",
        names.replace("| |", "| loss scale |", 1),
        rule,
    ]
    for scale in sorted({p.scale for p in found if p.scale is not None and is_by_scale(args, p)}):
        cells = (str(over(found, r, scale, args.batch_size, args.steps)) for r in ARMS.values())
        lines.append(f"| 2^{scale} | {' | '.join(cells)} |")
    fp8 = over(found, "fp8", None, args.batch_size, args.steps)
    lines += ["", f"Unit-scaled in FP8 (`fp8`), which takes no loss scale: {fp8}.", ""]
    lines += [
        "Loss over the same model in FP32 by tokens a step, no loss scale, "
        f"{args.token_steps} steps.",
        "",
        names.replace("| |", "| tokens |", 1),
        rule,
    ]
    for log2 in TOKENS:
        size = 2**log2 // args.sequence_length, args.token_steps
        if not losses(found, "fp32", None, *size):
            continue
        cells = (str(over(found, r, None, *size)) for r in ARMS.values())
        lines.append(f"| 2^{log2} | {' | '.join(cells)} |")
    lines += ["", f"Large batches by accumulation, {args.direct_steps} steps.", ""]
    lines += ["| tokens | recipe | loss | over FP32 | worse? |", "|---" * 5 + "|"]
    for p in direct(args, 0):
        own = losses(found, p.recipe, p.scale, p.batch_size, p.steps)
        if not own:
            continue
        name = p.recipe if p.scale is None else f"{p.recipe}({p.scale})"
        cost = over(found, p.recipe, p.scale, p.batch_size, p.steps)
        shown = ", ".join(f"{x:.3f}" for x in own.values())
        tokens = int(math.log2(p.batch_size * p.sequence_length))
        is_own = p.recipe == control(p.recipe)
        told = ["", ""] if is_own else [str(cost), verdict(cost, "worse")]
        lines.append(f"| 2^{tokens} | `{name}` | {shown} | {' | '.join(told)} |")
    return "\n".join(lines) + "\n"


def is_by_scale(args: argparse.Namespace, p: Point) -> bool:
    """Whether a run is of the first table."""
    return (p.batch_size, p.steps) == (args.batch_size, args.steps)


def draw(args: argparse.Namespace, found: dict[Point, float], path: Path) -> None:
    """Cost by loss scale, and by tokens a step."""
    from matplotlib.figure import Figure

    figure = Figure((11, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    for name, recipe in ARMS.items():
        style = {"marker": "o", "label": name, "linestyle": "--" if "unit" in name else "-"}
        size = args.batch_size, args.steps
        plot(left, {s: over(found, recipe, s, *size) for s in sorted(args.scales)}, style)
        for log2s, steps, more in (
            (TOKENS, args.token_steps, {}),
            (DIRECT, args.direct_steps, {"linestyle": ":", "marker": "s", "mfc": "none"}),
        ):
            windows = {log2: 2**log2 // args.sequence_length for log2 in log2s}
            costs = {x: over(found, recipe, None, count, steps) for x, count in windows.items()}
            plot(right, costs, style | more)
    left.set(xlabel="log2 of the loss scale", ylabel="loss over FP32, nats a byte")
    if not any(len(line.get_xdata()) for line in right.lines):
        right.text(0.5, 0.5, "not run yet", transform=right.transAxes, ha="center")
        right.set(xticks=[])
    right.set(xlabel="log2 of the tokens a step (squares: by accumulation)")
    left.set_yscale("symlog", linthresh=FAILED)
    left.legend()
    figure.savefig(path, dpi=120)


def plot(axes: Any, costs: dict[int, Difference], style: dict[str, Any]) -> None:
    """One line: a diverged arm at the top, and nothing where there are no runs."""
    done = {x: min(cost.mean, 10.0) for x, cost in costs.items() if not math.isnan(cost.mean)}
    axes.plot(list(done), list(done.values()), **style)


if __name__ == "__main__":
    main()
