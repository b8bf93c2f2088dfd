"""What serving in FP8 costs: trained in it, or trained in FP32 and quantized afterwards.

Trains a small Llama over bytes in `fp8-serve` and in FP32, from the same seeds on the same text,
and evaluates both in the numerics of servers: inputs and weights of all linear layers but the head
in E4M3FN, at scales that are

    units               those of training; of a model trained in FP32, those of one forward pass
    amax static         the largest value over calibration windows, over 448
    dynamic, tensor     the largest value of the batch at hand
    dynamic, token      that of each token

KL is that of the next byte's distribution from the one that the same weights give in FP32. A run
that was stopped goes on where it was, and one that is there is only read.

    python experiments/serving.py --steps 400 --out runs/serving
"""

import argparse
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import unitscale as us
from unitscale.data import Corpus, fixed_windows, open_corpus, sample_windows
from unitscale.report.atomic import write_text
from unitscale.train import TrainConfig, train
from unitscale.train.loop import to_inputs
from unitscale.train.trained import trained_model

RECIPES = ("fp8-serve", "fp32")
WAYS = ("units", "amax static", "dynamic, tensor", "dynamic, token")
CALIBRATION, VALIDATION, BATCH, LENGTH = 32, 128, 8, 128
MAX = us.formats.E4M3FN.max

Rows = list[dict[str, Any]]
Round = Callable[[str, Tensor], Tensor]


def main() -> None:
    args = arguments()
    corpus = open_corpus(args.data)
    rows = []
    for seed in range(args.seeds):
        for recipe in RECIPES:
            folder = args.out / f"{recipe}-seed{seed}-steps{args.steps}"
            config = TrainConfig(
                recipe=recipe,
                existing="llama",
                model={"width": args.width, "depth": args.depth},
                steps=args.steps,
                batch_size=BATCH,
                sequence_length=LENGTH,
                seed=seed,
                checkpoint_every=100,
                eval_windows=VALIDATION,
            )
            train(config, corpus, folder, resume=folder.exists())
            rows += evaluated(folder, corpus, recipe, seed)
    text = report(args, rows)
    write_text(args.out / f"serving-{args.steps}.md", text)
    write_text(args.out / f"serving-{args.steps}.json", json.dumps(rows, indent=1))
    print(text)


def evaluated(folder: Path, corpus: Corpus, recipe: str, seed: int) -> Rows:
    """Loss and KL of one run in every numerics."""
    wrapper, step = trained_model(folder)
    model: Any = wrapper.get_submodule("model")
    tokens, _ = to_inputs(
        sample_windows(corpus.train, seed=1, step=0, batch_size=CALIBRATION, length=LENGTH + 1)
    )
    if recipe == "fp32":
        us.unit_scale(model, "fp8-serve", inner="eager")
        with torch.no_grad():
            model(tokens[:BATCH])
    found = us.units.layer_units(wrapper if recipe != "fp32" else model)
    prefix = "" if recipe == "fp32" else "model."
    units = {row.path.removeprefix(prefix): (row.weight_log2, row.input_log2) for row in found}
    us.unscale(wrapper)
    us.unscale(model)
    amaxes = largest_inputs(model, tokens, units)
    windows = fixed_windows(corpus.valid, count=VALIDATION, length=LENGTH + 1)
    reference = [F.log_softmax(run(model, x), -1) for x, _ in batches(windows)]
    rows: Rows = [{"numerics": "FP32", "kl": 0.0, "loss": loss_of(reference, windows)}]
    for way in WAYS:
        with rounding(model, way, units, amaxes):
            given = [F.log_softmax(run(model, x), -1) for x, _ in batches(windows)]
        kl = [F.kl_div(q, p, reduction="none", log_target=True).sum(-1).mean().item()
              for p, q in zip(reference, given, strict=True)]  # fmt: skip
        rows.append({"numerics": way, "kl": mean(kl), "loss": loss_of(given, windows)})
    return [{"recipe": recipe, "seed": seed, "step": step} | row for row in rows]


@torch.no_grad()
def run(model: Any, tokens: Tensor) -> Tensor:
    """Logits."""
    logits: Tensor = model(tokens).logits
    return logits


def batches(windows: Any) -> Iterator[tuple[Tensor, Tensor]]:
    """Inputs and targets, eight windows at a time."""
    for start in range(0, len(windows), BATCH):
        yield to_inputs(windows[start : start + BATCH])


def loss_of(logs: list[Tensor], windows: Any) -> float:
    """Mean loss in nats a byte."""
    pairs = zip(logs, (y for _, y in batches(windows)), strict=True)
    return mean(F.nll_loss(log.flatten(0, 1), y.flatten()).item() for log, y in pairs)


def largest_inputs(model: nn.Module, tokens: Tensor, paths: Any) -> dict[str, float]:
    """The largest value that comes into each layer."""
    found: dict[str, float] = {}

    def note(path: str, x: Tensor) -> Tensor:
        found[path] = max(found.get(path, 0.0), x.abs().max().item())
        return x

    with changing_inputs(model, paths, note):
        run(model, tokens)
    return found


@contextmanager
def changing_inputs(model: nn.Module, paths: Any, change: Round) -> Iterator[None]:
    """A context in which some layers get other inputs."""
    handles = [
        model.get_submodule(path).register_forward_pre_hook(
            lambda module, args, path=path: (change(path, args[0]),)
        )
        for path in paths
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def rounding(model: nn.Module, way: str, units: Any, amaxes: dict[str, float]) -> Iterator[None]:
    """A context in which layers compute as a server does."""

    def change(path: str, x: Tensor) -> Tensor:
        if way == "units":
            scale = torch.tensor(2.0 ** units[path][1])
        elif way == "amax static":
            scale = torch.tensor(amaxes[path] / MAX)
        else:
            scale = (x.abs().amax() if way == "dynamic, tensor" else x.abs().amax(-1, True)) / MAX
        return rounded(x, scale)

    before = {path: model.get_submodule(path).weight.detach().clone() for path in units}
    with torch.no_grad():
        for path, (log2, _) in units.items():
            weight = before[path]
            scale = torch.tensor(2.0**log2) if way == "units" else weight.abs().max() / MAX
            model.get_submodule(path).weight.copy_(rounded(weight, scale))
    try:
        with changing_inputs(model, units, change):
            yield
    finally:
        with torch.no_grad():
            for path, weight in before.items():
                model.get_submodule(path).weight.copy_(weight)


def rounded(x: Tensor, scale: Tensor) -> Tensor:
    """To E4M3FN and back, saturating."""
    return (x / scale).clamp(-MAX, MAX).to(torch.float8_e4m3fn).float() * scale


def report(args: argparse.Namespace, rows: Rows) -> str:
    """The rows as a table: mean and standard deviation over seeds."""
    lines = [
        f"Llama over bytes, width {args.width}, depth {args.depth}; {args.steps} steps of {BATCH} "
        f"x {LENGTH} bytes; {args.seeds} seeds, {VALIDATION} validation windows; mean and standard "
        "deviation over seeds.",
        "",
        "| trained in | evaluated at | loss, nats a byte | KL to its own FP32, millinats |",
        "|---|---|---|---|",
    ]
    for recipe in RECIPES:
        for way in ("FP32", *WAYS):
            found = [r for r in rows if (r["recipe"], r["numerics"]) == (recipe, way)]
            loss = spread([r["loss"] for r in found], 4)
            kl = spread([1000 * r["kl"] for r in found], 2)
            lines.append(f"| {recipe} | {way} | {loss} | {kl} |")
    seeds = sorted({r["seed"] for r in rows})
    differences = [
        value(rows, "fp8-serve", "units", s) - value(rows, "fp32", "amax static", s) for s in seeds
    ]
    lines += [
        "",
        "Loss when served, trained in fp8-serve minus trained in FP32 and calibrated, seed by "
        f"seed: {', '.join(f'{d:+.4f}' for d in differences)}.",
    ]
    return "\n".join(lines) + "\n"


def value(rows: Rows, recipe: str, way: str, seed: int) -> float:
    """One loss."""
    wanted = (recipe, way, seed)
    return next(r["loss"] for r in rows if (r["recipe"], r["numerics"], r["seed"]) == wanted)


def spread(values: list[float], digits: int) -> str:
    """Mean and standard deviation."""
    if len(values) < 2:
        return f"{values[0]:.{digits}f}"
    return f"{mean(values):.{digits}f} +- {stdev(values):.{digits}f}"


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=None)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--depth", type=int, default=2)
    return parser.parse_args()


if __name__ == "__main__":
    main()
