"""What units cost: time of a step, of compiling, and bytes kept for backward.

    python benchmarks/unit_cost.py [--quick] [--rounds 15] [--threads 1] [--json FILE]

The subject is one block of a GPT (attention and MLP, with their norms) of width 512 and 1024 on
1,024 tokens, forward and backward, compiled by inductor. "Units" is `unit_scale(block,
"fp32-units")` after it was measured: every factor is in the graph and no product is rounded. The
plain block and the one at units take turns; a second plain block shows what the clock alone does.

Compiling is CPU time of all processes, caches off, up to the second step of a fresh block. Bytes
are those of the tensors that autograd keeps between forward and backward, parameters and input
apart.
"""

import argparse
import json
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import torch
import torch._inductor.config
import torch.nn.functional as F
from torch import Tensor, nn
from zoo_page import line, machine

from unitscale.units import unit_scale

BATCH, LENGTH, HEAD = 4, 256, 64
SAVED = ("fp32-units", "fp16", "fp8")

INNER = "inductor"

Step = Callable[[], object]
Row = dict[str, Any]


class Block(nn.Module):
    """A pre-norm block of GPT-2's shape; returns a scalar, its output against `weights`."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.heads = width // HEAD
        self.first_norm, self.second_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor, weights: Tensor) -> Tensor:
        """`x` and `weights` [batch, length, width]."""
        qkv = self.qkv(self.first_norm(x)).unflatten(-1, (3, self.heads, HEAD))
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind()
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(mixed.transpose(1, 2).flatten(2))
        x = x + self.down(F.gelu(self.up(self.second_norm(x)), approximate="tanh"))
        return (x * weights).mean()


def block(width: int, recipe: str | None) -> Block:
    """A block with the same parameters each time, compiled as it is or at units."""
    torch.manual_seed(0)
    model = Block(width)
    if recipe is None:
        model.compile(backend=INNER)
        return model
    return unit_scale(model, recipe, inner=INNER, remeasure="once")


def tensors(width: int) -> tuple[Tensor, Tensor]:
    """The two inputs; the first has a gradient, as one between two blocks has."""
    x, weights = torch.randn(2, BATCH, LENGTH, width, generator=torch.Generator().manual_seed(1))
    return x.requires_grad_(), weights


def step(model: nn.Module, width: int) -> Step:
    """Forward and backward."""
    x, weights = tensors(width)

    def run() -> None:
        x.grad = None
        model.zero_grad()
        model(x, weights).backward()

    return run


def step_rows(width: int, rounds: int) -> list[Row]:
    """Time of a plain step over that of another plain block, and over that of one at units.

    In a round each takes one step, and the next round begins with another of them.
    """
    torch.compiler.reset()
    recipes = {"plain": None, "plain again": None, "units": "fp32-units"}
    runs = {name: step(block(width, recipe), width) for name, recipe in recipes.items()}
    for run in runs.values():  # the first step of one at units measures, the second compiles
        run(), run(), run()
    times: dict[str, list[float]] = {name: [] for name in runs}
    order = list(runs)
    for number in range(rounds):
        for name in order[number % 3 :] + order[: number % 3]:
            begin = time.thread_time() if torch.get_num_threads() == 1 else time.perf_counter()
            runs[name]()
            end = time.thread_time() if torch.get_num_threads() == 1 else time.perf_counter()
            times[name].append(end - begin)
    return [
        figure(f"step of width {width}, {name}", times["plain"], times[name])
        for name in order
        if name != "plain"
    ]


def figure(case: str, base: Sequence[float], mine: Sequence[float]) -> Row:
    """The row of a case from the times of both sides, round by round."""
    ratios = [x / y for x, y in zip(base, mine, strict=True)]
    low, _, high = quantiles(ratios, n=4) if len(ratios) > 1 else ratios * 3
    return {
        "case": case,
        "measure": "of plain",
        "median": median(ratios),
        "low": low,
        "high": high,
        "rounds": len(ratios),
        "milliseconds": 1e3 * median(mine),
        "note": f"cost {1 / median(ratios):.3f}",
    }


def compile_rows(width: int, rounds: int) -> list[Row]:
    """CPU time from a fresh block to the end of its second step, plain over units."""
    base, mine = [], []
    with torch._inductor.config.patch(force_disable_caches=True, compile_threads=1):
        for _ in range(rounds):
            base.append(compiling(width, None))
            mine.append(compiling(width, "fp32-units"))
    return [figure("compile, units", base, mine)]


def compiling(width: int, recipe: str | None) -> float:
    """Seconds of CPU time of a fresh block's first two steps, in this process and its children."""
    torch.compiler.reset()
    begin = sum(os.times()[:4])
    run = step(block(width, recipe), width)
    run(), run()
    return sum(os.times()[:4]) - begin


def saved_rows(width: int) -> list[Row]:
    """Bytes that autograd keeps for backward, plain and under each recipe."""
    sizes = {"plain": saved_bytes(width, None)}
    sizes |= {recipe: saved_bytes(width, recipe) for recipe in SAVED}
    return [
        {
            "case": f"kept for backward, {name}",
            "measure": "MB",
            **dict.fromkeys(("median", "low", "high"), size / 1e6),
            "rounds": 1,
            "milliseconds": None,
            "note": f"{size / sizes['plain']:.2f} of plain",
        }
        for name, size in sizes.items()
    ]


def saved_bytes(width: int, recipe: str | None) -> int:
    """Bytes of the distinct tensors that one forward pass keeps, parameters and inputs apart."""
    torch.compiler.reset()
    model, inputs = block(width, recipe), tensors(width)
    for _ in range(2):
        model(*inputs).backward()
    known = {x.untyped_storage().data_ptr() for x in (*model.parameters(), *inputs)}
    found: dict[int, int] = {}

    def keep(x: Tensor) -> Tensor:
        storage = x.untyped_storage()
        if storage.data_ptr() not in known:
            found[storage.data_ptr()] = storage.nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        loss = model(*inputs)
    loss.backward()
    return sum(found.values())


def report(rows: Sequence[Row], path: Path | None) -> None:
    """Print a table, and write the rows as JSON if asked to."""
    title = f"Units on a GPT block, {BATCH} x {LENGTH} tokens, inductor; cost is 1 / figure"
    print(f"{title}\n{machine()}\n")
    for row in rows:
        spread = f"{row['low']:.3f} to {row['high']:.3f}, n={row['rounds']}"
        print(line(row["case"], f"{row['median']:.3f} {row['measure']}", spread, row["note"]))
    if path is not None:
        data = {"title": title, "machine": machine(), "rows": list(rows)}
        path.write_text(json.dumps(data, indent=1) + "\n")


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="a small size")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path, help="write the rows there as well")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    widths = (128,) if options.quick else (512, 1024)
    rows = [row for width in widths for row in step_rows(width, options.rounds)]
    rows += compile_rows(widths[0], 1 if options.quick else 3)
    rows += saved_rows(widths[0])
    report(rows, options.json)


if __name__ == "__main__":
    main()
