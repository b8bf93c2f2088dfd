"""Optimizer states and recipes together, on a Llama of 10 million parameters.

Each arm trains the same model on the same text. Its loss is compared with that of torch's own AdamW
in FP32; its bytes are counted; its step is timed against torch's fused AdamW on the same gradients,
by turns, in the same process. torchao's low-bit optimizers stand beside ours where it is installed.

    python experiments/optimizer_table.py --out runs/optimizer_table
"""

import argparse
import importlib.util
import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from pool import Result, mean_and_spread, run_all, setting
from small_run import batch, give, small_model, valid_loss
from unitscale import optim
from unitscale.data import open_corpus

WIDTH, DEPTH, RATE, WARM_UP, TIMED = 288, 10, 2e-3, 20, 5
TORCH = "torch AdamW"
TORCHAO = {"torchao 8bit": "AdamW8bit", "torchao fp8": "AdamWFp8", "torchao 4bit": "AdamW4bit"}
OURS = ("fp32", "fp8-lm", "coat", "bf16-stochastic", "master24")
BF16_WEIGHTS = ("bf16-stochastic", "master24")
RECIPES = ("fp32", "fp8", "fp8-e4m3")
UNDER_RECIPES = (TORCH, "fp8-lm", "coat")


@dataclass(frozen=True, kw_only=True)
class Point:
    """One run."""

    arm: str
    recipe: str
    seed: int
    steps: int


def optimizer_of(arm: str, model: nn.Module) -> torch.optim.Optimizer:
    """AdamW with the states of an arm; the same rate, betas and decay in each."""
    kwargs: dict[str, Any] = {"lr": RATE, "betas": (0.9, 0.95), "weight_decay": 0.1}
    if arm == TORCH:
        return torch.optim.AdamW(model.parameters(), fused=True, **kwargs)
    if arm in TORCHAO:
        import torchao.optim

        return getattr(torchao.optim, TORCHAO[arm])(model.parameters(), **kwargs)
    return optim.AdamW(model.named_parameters(), rules=None, states=arm, **kwargs)


def stored_bytes(optimizer: torch.optim.Optimizer) -> int:
    """Bytes of everything that an optimizer keeps for its parameters."""
    if isinstance(optimizer, optim.AdamW):
        return optimizer.state_bytes()
    kept = (value for state in optimizer.state.values() for value in state.values())
    return sum(leaf.nbytes for value in kept for leaf in leaves(value) if leaf.dim() > 0)


def leaves(value: object) -> Iterator[Tensor]:
    """The plain tensors within a tensor subclass, or the tensor."""
    if not isinstance(value, Tensor):
        return
    flatten = getattr(value, "__tensor_flatten__", None)
    if flatten is None:
        yield value
    else:
        for name in flatten()[0]:
            yield from leaves(getattr(value, name))


def run(point: Point) -> Result:
    """Losses at the end, bytes of a parameter, and the time of a step over torch's fused one."""
    model = small_model("llama", point.seed, width=WIDTH, depth=DEPTH)
    if point.arm in BF16_WEIGHTS:
        model.to(torch.bfloat16)
    give(model, point.recipe)
    optimizer = optimizer_of(point.arm, model)
    corpus, losses = open_corpus(), []
    for step in range(point.steps):
        loss = model(*batch(corpus, point.seed, step))
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        set_rate(optimizer, step, point.steps)
        optimizer.step()
        losses.append(loss.item())
    count = sum(parameter.numel() for parameter in model.parameters())
    return {
        "parameters": count,
        "train_loss": sum(losses[-10:]) / len(losses[-10:]),
        "valid_loss": valid_loss(model, count=128),
        "state_bytes": stored_bytes(optimizer) / count,
        "weight_bytes": sum(parameter.nbytes for parameter in model.parameters()) / count,
        "step_ratio": step_ratio(model, optimizer),
    }


def set_rate(optimizer: torch.optim.Optimizer, step: int, steps: int) -> None:
    """A linear warm-up, then half a cosine to zero."""
    rate = RATE * min(1.0, (step + 1) / WARM_UP) * 0.5 * (1 + math.cos(math.pi * step / steps))
    for group in optimizer.param_groups:
        if isinstance(group["lr"], Tensor):  # torchao keeps the rate in a tensor
            group["lr"].fill_(rate)
        else:
            group["lr"] = rate


def step_ratio(model: nn.Module, optimizer: torch.optim.Optimizer) -> float:
    """Median time of a step over that of torch's fused AdamW in FP32, by turns."""
    shadow = [nn.Parameter(p.detach().float()) for p in model.parameters()]
    for ours, own in zip(model.parameters(), shadow, strict=True):
        own.grad = None if ours.grad is None else ours.grad.float()
    fused = torch.optim.AdamW(shadow, lr=0.0, fused=True)
    pairs = [(seconds(optimizer.step), seconds(fused.step)) for _ in range(TIMED + 1)][1:]
    return median(one / other for one, other in pairs)


def seconds(call: Callable[[], object]) -> float:
    """CPU time of one call, so that other work on the machine counts little."""
    start = time.process_time()
    call()
    return time.process_time() - start


def report(results: Mapping[Point, Result]) -> str:
    """A table: a row for each arm and recipe, compared seed by seed with torch's AdamW in FP32."""
    steps = next(iter(results)).steps
    million = next(iter(results.values()))["parameters"] / 1e6
    lines = [
        f"Llama of {million:.1f} M parameters, {steps} steps of 512 bytes. " + setting(),
        "",
        "| states | recipe | seeds | validation loss | minus torch in FP32 | bytes of states "
        "| of the weight | step / fused |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for arm, recipe in dict.fromkeys((p.arm, p.recipe) for p in results):
        own = {p.seed: r for p, r in results.items() if (p.arm, p.recipe) == (arm, recipe)}
        plain = {p.seed: r for p, r in results.items() if (p.arm, p.recipe) == (TORCH, "fp32")}
        apart = [own[s]["valid_loss"] - plain[s]["valid_loss"] for s in own if s in plain]
        first = next(iter(own.values()))
        cells = [
            arm,
            recipe,
            str(len(own)),
            mean_and_spread([one["valid_loss"] for one in own.values()]),
            mean_and_spread(apart),
            f"{first['state_bytes']:.3f}",
            f"{first['weight_bytes']:.0f}",
            f"{median(one['step_ratio'] for one in own.values()):.1f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def arms() -> list[tuple[str, str]]:
    """Arm and recipe of every row; what torchao lacks is said, not dropped."""
    found = [(arm, "fp32") for arm in (TORCH, *OURS)]
    if importlib.util.find_spec("torchao"):
        found += [(arm, "fp32") for arm in TORCHAO]
    else:
        print(
            "torchao is not installed: its three rows are left out (pip install --no-deps torchao)"
        )
    return found + [(arm, one) for one in RECIPES[1:] for arm in UNDER_RECIPES]


def main() -> None:
    """All arms and seeds; what is done is kept, and the table is written after each seed."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("runs/optimizer_table"))
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=1, help="processes of one thread each")
    parser.add_argument("--recipes", nargs="+", choices=RECIPES, default=RECIPES)
    args = parser.parse_args()
    for seeds in range(1, args.seeds + 1):
        points = [
            Point(arm=arm, recipe=recipe, seed=seed, steps=args.steps)
            for seed in range(seeds)
            for arm, recipe in arms()
            if recipe in args.recipes
        ]
        results = run_all(points, run, args.out / "runs.jsonl", workers=args.workers)
        (args.out / "optimizer_table.md").write_text(report(results))
    print(report(results))


if __name__ == "__main__":
    main()
