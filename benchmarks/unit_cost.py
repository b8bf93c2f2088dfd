"""What units cost: time of a step, of compiling, and bytes kept for backward.

    python benchmarks/unit_cost.py [--quick] [--rounds 15] [--threads 1] [--json FILE]

The subject is one block of a GPT (attention and MLP, with their norms) of width 512 and 1024 on
512 tokens, forward and backward, compiled by inductor. "Units" is `unit_scale(block, "fp32-units")`
after it was measured: every factor is in the graph and no product is rounded. A second plain block
shows what the clock alone does.

Compiling is CPU time of all processes, caches off, up to the second step of a fresh block. Bytes
are those of the tensors that autograd keeps between forward and backward, parameters and input
apart.
"""

import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from statistics import median, quantiles

import paired
import torch
import torch._inductor.config
from gpt_block import Block
from paired import Row
from torch import Tensor, nn

from unitscale.units import unit_scale

BATCH, LENGTH = 2, 256
SAVED = ("fp32-units", "fp16", "fp8")

INNER = "inductor"

Step = Callable[[], object]


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


def loss_of(model: nn.Module, x: Tensor, weights: Tensor) -> Tensor:
    """A scalar: the output against `weights`."""
    return (model(x) * weights).mean()


def step(model: nn.Module, width: int) -> Step:
    """Forward and backward."""
    x, weights = tensors(width)

    def run() -> None:
        x.grad = None
        model.zero_grad()
        loss_of(model, x, weights).backward()

    return run


def step_rows(width: int, rounds: int) -> list[Row]:
    """Time of a plain step over that of another plain block, and over that of one at units."""
    torch.compiler.reset()
    recipes = {"plain": None, "plain again": None, "units": "fp32-units"}
    runs = {name: step(block(width, recipe), width) for name, recipe in recipes.items()}
    for run in runs.values():  # the first step of one at units measures, the second compiles
        run(), run(), run()
    reference = runs.pop("plain")
    cases = {f"step of width {width}, {name}": run for name, run in runs.items()}
    rows = paired.compare(reference, cases, "of plain", rounds)
    return [replace(row, note=f"cost {1 / row.median:.3f}") for row in rows]


def figure(case: str, base: Sequence[float], mine: Sequence[float]) -> Row:
    """The row of a case from the times of both sides, round by round."""
    ratios = [x / y for x, y in zip(base, mine, strict=True)]
    low, _, high = quantiles(ratios, n=4) if len(ratios) > 1 else ratios * 3
    return Row(
        case=case,
        measure="of plain",
        median=median(ratios),
        low=low,
        high=high,
        rounds=len(ratios),
        milliseconds=1e3 * median(mine),
        note=f"cost {1 / median(ratios):.3f}",
    )


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
        Row(
            case=f"kept for backward, {name}",
            measure="MB",
            median=size / 1e6,
            low=size / 1e6,
            high=size / 1e6,
            rounds=1,
            note=f"{size / sizes['plain']:.2f} of plain",
        )
        for name, size in sizes.items()
    ]


def saved_bytes(width: int, recipe: str | None) -> int:
    """Bytes of the distinct tensors that one forward pass keeps, parameters and inputs apart."""
    torch.compiler.reset()
    model, inputs = block(width, recipe), tensors(width)
    for _ in range(2):
        loss_of(model, *inputs).backward()
    known = {x.untyped_storage().data_ptr() for x in (*model.parameters(), *inputs)}
    found: dict[int, int] = {}

    def keep(x: Tensor) -> Tensor:
        storage = x.untyped_storage()
        if storage.data_ptr() not in known:
            found[storage.data_ptr()] = storage.nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        loss = loss_of(model, *inputs)
    loss.backward()
    return sum(found.values())


def main() -> None:
    """Measure and print."""
    options = paired.arguments(__doc__).parse_args()
    paired.steady_memory()
    torch.set_num_threads(options.threads)
    widths = (128,) if options.quick else (512, 1024)
    rows = [row for width in widths for row in step_rows(width, options.rounds)]
    rows += compile_rows(widths[0], 1 if options.quick else 3)
    rows += saved_rows(widths[0])
    title = f"Units on a GPT block, {BATCH} x {LENGTH} tokens, inductor; cost is 1 / figure"
    paired.report(title, rows, options.json)


if __name__ == "__main__":
    main()
