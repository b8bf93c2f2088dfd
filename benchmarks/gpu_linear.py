"""A linear layer on a GPU, forward and backward: BF16, FP8 by torchao, FP8 at units; and on paper.

    python benchmarks/gpu_linear.py [--sizes 8192 4096] [--rounds 15] [--json FILE] [--paper]

The layer is square and takes as many rows, M=N=K, all in BF16, without a bias. Every case is
compiled by inductor. The FP8 ones multiply with `torch._scaled_mm`: torchao's dynamic scaling,
tensorwise and rowwise, where it is installed, and `unit_scale(model, "fp8")`. A call is `STEPS`
steps in a row and ends with a wait for the device, so that the queue does not run dry between them.
The note says how long Python took to launch a step: as long as the step, and that was measured.

The arithmetic is printed first, and alone with `--paper` or without a GPU that has FP8 products:
what an H100 would take if it did `REACHED` of its peak in products and all of its bandwidth in
casts and amax passes. Nothing of it is measured.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from time import perf_counter

import paired
import torch
from paired import Row
from torch import nn

from unitscale import unit_scale
from unitscale.gemm.executor import fp8_products
from unitscale.gemm.kernel import MULTIPLE
from unitscale.recipes import RECIPES

SIZES = (8192, 4096)
INNER = "inductor"
STEPS = 10
"""Steps of one timed call."""

# NVIDIA's H100 SXM datasheet: dense products, half of the figures that it gives with sparsity.
BF16_PEAK = 989e12
FP8_PEAK = 1979e12
BANDWIDTH = 3.35e12

# Assumed, and not measured by anyone here.
REACHED = 0.70
"""Share of the peak that products reach, in BF16 and in FP8."""
LAUNCH = 3e-6
"""Seconds that one more kernel costs."""

PRODUCTS = 3
OPERANDS = 3
"""x, weight and output gradient; each arrives in BF16 and is cast once."""
AMAX_BYTES = 2
"""An amax pass reads an element in BF16."""
CAST_BYTES = 2 + 1 + 1
"""A cast pass reads an element in BF16 and writes it in FP8 twice, in rows and in columns."""


@dataclass(frozen=True, kw_only=True)
class Way:
    """A way to run the three products: their peak, and what each operand needs before them.

    Args:
        name: as printed.
        peak: operations a second.
        amax_bytes, cast_bytes: memory traffic for one element of an operand.
        launches: kernels for one operand.
    """

    name: str
    peak: float
    amax_bytes: int = 0
    cast_bytes: int = 0
    launches: int = 0


BF16 = Way(name="bf16", peak=BF16_PEAK)
DYNAMIC = Way(
    name="fp8, dynamic tensorwise",
    peak=FP8_PEAK,
    amax_bytes=AMAX_BYTES,
    cast_bytes=CAST_BYTES,
    launches=2,
)
UNITS = Way(name="fp8, units", peak=FP8_PEAK, cast_bytes=CAST_BYTES, launches=1)
FUSED = Way(name="fp8, units, cast in the producer", peak=FP8_PEAK)
WAYS = (BF16, DYNAMIC, UNITS, FUSED)


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Seconds of a linear layer forward and backward, by what they go to."""

    products: float
    amax: float
    casts: float
    launches: float

    @property
    def total(self) -> float:
        """Nothing overlaps: each kernel waits for the one before."""
        return self.products + self.amax + self.casts + self.launches


def operations(size: int) -> int:
    """Multiplications and additions of the three products."""
    return PRODUCTS * 2 * size**3


def traffic_seconds(size: int, bytes_per_element: int) -> float:
    """Time to move so many bytes for every element of the three operands."""
    return OPERANDS * size**2 * bytes_per_element / BANDWIDTH


def cost(way: Way, size: int) -> Cost:
    """What M=N=K=size takes on paper.

    The launches of the three products are in `REACHED`; those of amax and cast passes are counted.
    """
    return Cost(
        products=operations(size) / (REACHED * way.peak),
        amax=traffic_seconds(size, way.amax_bytes),
        casts=traffic_seconds(size, way.cast_bytes),
        launches=OPERANDS * way.launches * LAUNCH,
    )


def saving(size: int, way: Way) -> float:
    """Share of the time of dynamic tensorwise scaling that `way` does without."""
    return 1 - cost(way, size).total / cost(DYNAMIC, size).total


def assumptions() -> str:
    """The constants, in a sentence."""
    return (
        f"Assumed: {BF16_PEAK / 1e12:.0f} TFLOP/s in BF16 and {FP8_PEAK / 1e12:.0f} in FP8, of "
        f"which products reach {100 * REACHED:.0f} %; {BANDWIDTH / 1e12:.2f} TB/s; "
        f"{1e6 * LAUNCH:.0f} us a kernel launch. An amax pass moves {AMAX_BYTES} bytes an element, "
        f"a cast pass {CAST_BYTES}.\n"
    )


def paper_table(size: int) -> str:
    """The costs at one size, as markdown, and what is saved."""
    header = ["us", "products", "amax", "casts", "launches", "total", "of bf16", "of units"]
    lines = [header, ["---"] * len(header)]
    for way in WAYS:
        found = cost(way, size)
        parts = (found.products, found.amax, found.casts, found.launches, found.total)
        ratios = (found.total / cost(reference, size).total for reference in (BF16, UNITS))
        micros = [f"{1e6 * part:.0f}" for part in parts]
        lines.append([way.name, *micros, *(f"{ratio:.2f}" for ratio in ratios)])
    table = "".join(f"| {' | '.join(cells)} |\n" for cells in lines)
    dynamic = cost(DYNAMIC, size)
    amax, cast = (1e6 * part / OPERANDS for part in (dynamic.amax, dynamic.casts))
    return (
        f"M=N=K={size}\n\n{table}\n"
        f"One operand: amax pass {amax:.0f} us, cast pass {cast:.0f} us. Without amax passes "
        f"{100 * saving(size, UNITS):.1f} % less time than dynamic tensorwise; with the casts in "
        f"the producers as well {100 * saving(size, FUSED):.1f} %.\n"
    )


def paper(sizes: Sequence[int]) -> str:
    """The whole arithmetic."""
    return "\n".join([assumptions(), *map(paper_table, sizes)])


def linear(size: int, device: torch.device) -> nn.Sequential:
    """The layer in BF16, with the same weights each time."""
    torch.manual_seed(0)
    layer = nn.Linear(size, size, bias=False, device=device, dtype=torch.bfloat16)
    return nn.Sequential(layer)


def plain(model: nn.Module) -> nn.Module:
    """The model compiled as it is."""
    model.compile(backend=INNER)
    return model


def by_torchao(recipe: str) -> Callable[[nn.Module], nn.Module]:
    """Dynamic scaling by torchao's recipe of that name, compiled."""

    def make(model: nn.Module) -> nn.Module:
        from torchao.float8 import Float8LinearConfig, convert_to_float8_training

        config = Float8LinearConfig.from_recipe_name(recipe)
        return plain(convert_to_float8_training(model, config=config))

    return make


def at_units(model: nn.Module) -> nn.Module:
    """FP8 at units. The executor is named, so that no other can take its place unseen."""
    recipe = replace(RECIPES["fp8"], executor="scaled_mm")
    return unit_scale(model, recipe, inner=INNER, remeasure="once")


Case = tuple[Callable[[nn.Module], nn.Module], Way | None]
"""What makes a case of a layer, and what it is on paper, if it has arithmetic."""

PEERS: dict[str, Case] = {
    "torchao tensorwise": (by_torchao("tensorwise"), DYNAMIC),
    "torchao rowwise": (by_torchao("rowwise"), None),
}
OURS: dict[str, Case] = {"bf16 again": (plain, BF16), "units": (at_units, UNITS)}
"""A second plain one shows what the clock does. A lone layer has no producer to cast in."""


def wait(device: torch.device) -> None:
    """Until the device has done all it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def step(model: nn.Module, size: int, device: torch.device) -> Callable[[], None]:
    """Forward and backward, to the input and the weight."""
    generator = torch.Generator(device).manual_seed(1)
    x, grad = (
        torch.randn(size, size, generator=generator, device=device, dtype=torch.bfloat16)
        for _ in range(2)
    )
    x.requires_grad_()

    def run() -> None:
        x.grad = None
        model.zero_grad()
        model(x).backward(grad)

    return run


def steps(run: Callable[[], None], device: torch.device) -> Callable[[], None]:
    """`STEPS` of them, to the end."""

    def call() -> None:
        for _ in range(STEPS):
            run()
        wait(device)

    return call


def launch_seconds(run: Callable[[], None], device: torch.device) -> float:
    """What Python takes for a step if it does not wait for the device."""
    wait(device)
    begin = perf_counter()
    for _ in range(STEPS):
        run()
    launched = perf_counter() - begin
    wait(device)
    return launched / STEPS


def measured(size: int, device: torch.device, rounds: int) -> list[Row]:
    """BF16's time over that of each case; a row each.

    On a CPU it runs too, where `torch._scaled_mm` is software: the figures then say nothing.
    """
    torch.compiler.reset()
    made, absent = dict(OURS), list[Row]()
    for name, peer in PEERS.items():
        if find_spec("torchao"):
            made[name] = peer
        else:
            absent.append(Row(case=f"{name}, {size}", measure="", note="torchao not installed"))
    runs = {"bf16": step(plain(linear(size, device)), size, device)}
    runs |= {
        name: step(make(linear(size, device)), size, device) for name, (make, _) in made.items()
    }
    for run in runs.values():
        run(), run(), run()  # the first at units measures, the second compiles
    calls = {name: steps(run, device) for name, run in runs.items()}
    rows = paired.compare(calls.pop("bf16"), calls, "of bf16's speed", rounds)
    return [
        described(row, size, made[row.case][1], launch_seconds(runs[row.case], device))
        for row in rows
    ] + absent


def described(row: Row, size: int, way: Way | None, launched: float) -> Row:
    """The row of a call as that of one step, with its speed, and the paper's figures beside it."""
    assert row.milliseconds is not None
    seconds = row.milliseconds / 1e3 / STEPS
    note = f"{operations(size) / seconds / 1e12:.0f} TFLOP/s; launched in {1e3 * launched:.2f} ms"
    if way is not None:
        total, base = cost(way, size).total, cost(BF16, size).total
        note += (
            f"; on paper {operations(size) / total / 1e12:.0f} TFLOP/s, "
            f"{base / total:.2f} of bf16's speed"
        )
    return replace(row, case=f"{row.case}, {size}", milliseconds=1e3 * seconds, note=note)


def obstacle() -> str | None:
    """Why nothing can be measured here; None if it can."""
    if not torch.cuda.is_available():
        return "no CUDA device"
    ability = fp8_products(torch.device("cuda", torch.cuda.current_device()))
    return None if ability.has else ability.why


def multiple(text: str) -> int:
    """A size from the command line."""
    size = int(text)
    if size <= 0 or size % MULTIPLE:
        raise argparse.ArgumentTypeError(f"got {size}; expected a multiple of {MULTIPLE}")
    return size


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the arithmetic, then measure if that is possible and wanted."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sizes", type=multiple, nargs="+", default=SIZES, metavar="SIZE")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--json", type=Path, help="write the measured rows there as well")
    parser.add_argument("--paper", action="store_true", help="the arithmetic only")
    options = parser.parse_args(arguments)
    if options.paper and options.json:
        parser.error("--json is for what is measured, and --paper measures nothing; drop one")
    print(paper(options.sizes))
    if options.paper:
        return 0
    if reason := obstacle():
        unwritten = f", {options.json} is not written" if options.json else ""
        print(f"Nothing measured: {reason}; the tables above are arithmetic{unwritten}.")
        return 0
    torch.set_num_threads(2)  # with one, `paired` would count the time of the CPU
    device = torch.device("cuda", torch.cuda.current_device())
    rows = [row for size in options.sizes for row in measured(size, device, options.rounds)]
    peer = f", torchao {version('torchao')}" if find_spec("torchao") else ""
    title = f"A linear layer, forward and backward, on {torch.cuda.get_device_name(device)}{peer}"
    paired.report(title, rows, options.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
