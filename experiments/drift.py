"""Does a model that starts at unit scale stay in range? A long run, its operands watched.

Trains the written unit-scaled transformer in FP32 and FP8 and measures, at a few steps, every
operand of every product and every gradient that enters one: RMS and largest value over the first
RMS, shares saturated and flushed to zero. Operands are cast as they are, with no scale anywhere.

    python experiments/drift.py --data FILE --out runs/drift
"""

import argparse
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import torch

import unitscale as us
from pool import Result, run_all, setting
from unitscale.data import fixed_windows, open_corpus, sample_windows
from unitscale.train import TrainConfig
from unitscale.train.loop import initial_state, to_inputs
from unitscale.units import UnitRow, rows

WATCHED = (0, 100, 1000)  # and the last step
RECIPES = ("fp32-units", "fp8", "fp8-e4m3")


@dataclass(frozen=True, kw_only=True)
class Point:
    """One run."""

    recipe: str
    seed: int
    steps: int
    batch_size: int
    sequence_length: int
    norm: str
    inner: str
    data: str | None


def main() -> None:
    args = arguments()
    points = [
        Point(
            recipe=recipe,
            seed=seed,
            steps=args.steps,
            batch_size=args.batch_size,
            sequence_length=args.sequence_length,
            norm=args.norm,
            inner=args.inner,
            data=args.data,
        )
        for seed in range(args.seeds)
        for recipe in RECIPES
    ]
    results = run_all(points, run, args.out / "runs.jsonl", workers=args.workers)
    text = report(args, results)
    (args.out / "drift.md").write_text(text)
    print(text)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("runs/drift"))
    parser.add_argument("--data", help="a text file; without it, the embedded corpus")
    parser.add_argument("--steps", type=int, default=5000)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--sequence-length", type=int, default=64)
    parser.add_argument("--norm", default="pre")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--inner", default="inductor")
    parser.add_argument("--workers", type=int, default=2, help="processes of one thread each")
    return parser.parse_args()


def run(point: Point) -> Result:
    """Losses, and what the measuring steps saw of the products."""
    config = TrainConfig(
        recipe=point.recipe,
        model={"norm": point.norm},
        steps=point.steps,
        batch_size=point.batch_size,
        sequence_length=point.sequence_length,
        seed=point.seed,
    )
    state, corpus = initial_state(config), open_corpus(point.data)
    model = state.model
    watched = (*WATCHED, point.steps - 1)
    us.apply_recipe(model, config.numerics, inner=point.inner, remeasure=watched)
    losses, seen = [], {}
    for step in range(point.steps):
        windows = sample_windows(
            corpus.train,
            seed=point.seed,
            step=step,
            batch_size=point.batch_size,
            length=point.sequence_length + 1,
        )
        for group in state.optimizer.param_groups:
            group["lr"] = config.lr_at(step) * group.get("lr_factor", 1.0)
        state.optimizer.zero_grad()
        loss = model(*to_inputs(windows))
        loss.backward()
        state.optimizer.step()
        losses.append(loss.item())
        if step in watched:
            seen[step] = rows(model)
    windows = fixed_windows(corpus.valid, count=256, length=point.sequence_length + 1)
    ids, targets = to_inputs(windows)
    with torch.no_grad():
        batches = zip(ids.split(32), targets.split(32), strict=True)
        valid_loss = sum(model(i, t).item() for i, t in batches) / (len(ids) // 32)
    return {
        "train_loss": sum(losses[-50:]) / 50,
        "valid_loss": valid_loss,
        "drift": [drift(step, found, seen[0]) for step, found in seen.items()],
    }


def drift(step: int, now: list[UnitRow], first: list[UnitRow]) -> Result:
    """The products' operands and gradients at one step, against the first."""
    start = {row.name: row for row in first}
    operands = [row for row in now if row.saturated is not None]
    gradients = [row for row in now if row.grad_saturated is not None]
    return {
        "step": step,
        "operands": side(operands, start, "") if operands else None,
        "gradients": side(gradients, start, "grad_") if gradients else None,
    }


def side(now: list[UnitRow], start: dict[str, UnitRow], prefix: str) -> Result:
    """Range of RMS and largest value, and the worst shares lost, of values or of gradients."""

    def read(row: UnitRow, what: str) -> float:
        return float(getattr(row, prefix + what))

    rms = [read(row, "rms") for row in now]
    growth = [read(row, "rms") / read(start[row.name], "rms") for row in now]
    worst = max(now, key=lambda row: read(row, "saturated"))
    return {
        "count": len(now),
        "rms": [min(rms), median(rms), max(rms)],
        "growth": [min(growth), median(growth), max(growth)],
        "amax": max(read(row, "amax") for row in now),
        "amax_over_first_rms": max(read(row, "amax") / read(start[row.name], "rms") for row in now),
        "most_saturated": [worst.name, read(worst, "saturated")],
        "most_flushed": max(read(row, "flushed") for row in now),
    }


def report(args: argparse.Namespace, results: dict[Point, Result]) -> str:
    """Losses of each run, then a row per watched step."""
    lines = [
        setting(
            data=open_corpus(args.data).name,
            steps=args.steps,
            batch=f"{args.batch_size} x {args.sequence_length} bytes",
            norm=args.norm,
            seeds=args.seeds,
        ),
        "",
        "| recipe | seed | training loss, last 50 steps | validation loss |",
        "|---|---|---|---|",
    ]
    for point, result in results.items():
        losses = f"{result['train_loss']:.4f} | {result['valid_loss']:.4f}"
        lines.append(f"| {point.recipe} | {point.seed} | {losses} |")
    head = "| tensors | step | RMS min / median / max | growth min / median / max | largest value "
    head += "| over first RMS | most saturated | most flushed |"
    for point, result in results.items():
        if point.recipe == "fp32-units":  # rounds nothing, so no tensor is an operand to watch
            continue
        lines += ["", f"{point.recipe}, seed {point.seed}", "", head, "|---" * 8 + "|"]
        for kind in ("operands", "gradients"):
            lines += [table_row(kind, seen["step"], seen[kind]) for seen in result["drift"]]
    return "\n".join(lines) + "\n"


def table_row(kind: str, step: int, seen: Result) -> str:
    """One watched step as a table row."""
    rms, growth = (" / ".join(f"{x:.3g}" for x in seen[k]) for k in ("rms", "growth"))
    name, share = seen["most_saturated"]
    saturated = f"{share:.2%} ({name})" if share else "none"
    ends = f"{seen['amax']:.3g} | {seen['amax_over_first_rms']:.3g}"
    flushed = f"{seen['most_flushed']:.2%}"
    return f"| {kind} | {step} | {rms} | {growth} | {ends} | {saturated} | {flushed} |"


if __name__ == "__main__":
    main()
