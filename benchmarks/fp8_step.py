"""What an FP8 training step costs where FP8 is emulated, and what FP8 keeps for backward.

    python benchmarks/fp8_step.py [--quick] [--rounds 15] [--threads 1] [--json FILE]

A step of a GPT block (4 x 256 tokens, AdamW) under `unit_scale`, compiled by inductor, against the
same step in FP32, compiled. `fp8` has float32 results; the goal is 0.95 of FP32's speed or more.
`fp8-bf16` has BF16 results, as FP8 hardware gives them, and runs as BF16 products where the CPU is
quick at these; there the goal is to be faster than FP32. Beside it torchao's emulation and
`simulate_fp8` of unit-scaling, where installed; torchao looks for amax and rounds linear layers
only, simulate_fp8 is stochastic and is not compiled.

Bytes are those that autograd saves in the forward pass of one block, its parameters excluded, with
inductor's partitioner. The plain model is in FP32, BF16 or FP16, the FP8 recipe on the BF16 model;
the 8-bit copies of the weights count. `saved=E4M3FN` has GELU save its input in eight bits too. The
goal is 0.55 of BF16's or less.
"""

from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec

import paired
import torch
from gpt_block import Block, training_step
from paired import Row

from unitscale import unit_scale
from unitscale.formats import E4M3FN, FloatFormat
from unitscale.train.measure import saved_for_backward
from unitscale.units.doctor import recipe_rows

BATCH, LENGTH = 4, 256
WIDTHS = (512, 1024)
PARTITIONER = "aot_eager_decomp_partition"
"""Inductor's partitioner decides what is saved; this backend runs its result uncompiled."""


@dataclass(frozen=True)
class Peer:
    """How another package makes an FP8 step of a block, and its name on the package index."""

    package: str
    module: str
    make: Callable[[torch.nn.Module], torch.nn.Module]


def by_torchao(model: torch.nn.Module) -> torch.nn.Module:
    """Tensorwise dynamic scaling, emulated, compiled."""
    from torchao.float8 import Float8LinearConfig, convert_to_float8_training

    convert_to_float8_training(model, config=Float8LinearConfig(emulate=True))
    model.compile()
    return model


def by_unit_scaling(model: torch.nn.Module) -> torch.nn.Module:
    """Stochastic rounding of linear layers and attention, as the package has it."""
    from unit_scaling.transforms import simulate_fp8

    return simulate_fp8(model)


PEERS = (
    Peer("torchao", "torchao", by_torchao),
    Peer("unit-scaling", "unit_scaling", by_unit_scaling),
)


def ours(
    model: torch.nn.Module,
    recipe: str,
    backend: str = "inductor",
    saved: FloatFormat | None = None,
) -> torch.nn.Module:
    """The block at its units."""
    return unit_scale(model, recipe, inner=backend, remeasure="once", saved=saved)


def plain(model: torch.nn.Module, backend: str = "inductor") -> torch.nn.Module:
    """The block compiled."""
    model.compile(backend=backend)
    return model


def step_rows(width: int, rounds: int) -> list[Row]:
    """FP32's time over that of each FP8 step."""
    device = torch.device("cpu")
    executors = {row["recipe"]: row["float32 model"] for row in recipe_rows(device)}
    x = torch.randn(BATCH, LENGTH, width)

    def step(make: Callable[[torch.nn.Module], torch.nn.Module]) -> Callable[[], None]:
        torch.manual_seed(0)
        made = training_step(make(Block(width)), x)
        for _ in range(3):  # measures units, compiles, warms up
            made()
        return made

    reference, cases, notes, absent = step(plain), {}, {}, []
    for recipe in ("fp8", "fp8-bf16"):
        name = f"{recipe}, width {width}"
        cases[name] = step(lambda model, recipe=recipe: ours(model, recipe))
        notes[name] = f"executor {executors[recipe]}"
    for peer in PEERS:
        name = f"{peer.package}, width {width}"
        if find_spec(peer.module) is None:
            absent.append(Row(case=name, measure="of FP32", note=f"{peer.package} not installed"))
        else:
            cases[name] = step(peer.make)
    return [*paired.compare(reference, cases, "of FP32's speed", rounds, notes), *absent]


def saved_bytes(model: torch.nn.Module, x: torch.Tensor, *, measures: bool) -> int:
    """What the forward pass of a compiled model keeps; units are measured in a first step."""
    if measures:
        model(x).square().mean().backward()
    with saved_for_backward(model) as saved:
        output = model(x)
    del output
    return saved.bytes


def byte_rows(width: int, tokens: int) -> list[Row]:
    """Bytes kept for the backward pass of a block, as shares of those in BF16."""
    found: dict[str, int] = {}
    for name, dtype in (
        ("fp32", torch.float32),
        ("bf16", torch.bfloat16),
        ("fp16", torch.float16),
        ("fp8", torch.bfloat16),
        ("fp8, saved=E4M3FN", torch.bfloat16),
    ):
        torch.manual_seed(0)
        model = Block(width).to(dtype)
        x = torch.randn(tokens // LENGTH, LENGTH, width, dtype=dtype, requires_grad=True)
        is_ours = name.startswith("fp8")
        kept = E4M3FN if "saved" in name else None
        model = ours(model, "fp8", PARTITIONER, kept) if is_ours else plain(model, PARTITIONER)
        found[name] = saved_bytes(model, x, measures=is_ours)
    return [
        Row(
            case=f"{name}, width {width}, {tokens} tokens",
            measure="of BF16's bytes",
            median=found[name] / found["bf16"],
            low=found[name] / found["bf16"],
            high=found[name] / found["bf16"],
            rounds=1,
            note=f"{found[name] / 2**20:.1f} MiB saved for backward",
        )
        for name in found
    ]


def main() -> None:
    """Measure and print."""
    options = paired.arguments(__doc__).parse_args()
    paired.steady_memory()
    torch.set_num_threads(options.threads)
    widths, tokens = (WIDTHS[:1], 2048) if options.quick else (WIDTHS, 8192)
    rounds = min(options.rounds, 3) if options.quick else options.rounds
    rows = [row for width in widths for row in step_rows(width, rounds)]
    rows += byte_rows(256 if options.quick else 512, tokens)
    paired.report("FP8 training step, emulated", rows, options.json)


if __name__ == "__main__":
    main()
