"""What units cost: time of a step, of compiling, and bytes kept for backward.

    python benchmarks/unit_cost.py [--quick] [--rounds 15] [--threads 1] [--json FILE]
    python benchmarks/unit_cost.py --compile llama --rounds 3      what compiling alone costs

The subject is one block of a GPT (attention and MLP, with their norms) of width 512 and 1024 on
512 tokens, forward and backward, compiled by inductor. "Units" is `unit_scale(block, "fp32-units")`
after it was measured: products have their factors and none is rounded. A second plain block
shows what the clock alone does.

Compiling is CPU time of all processes, caches off, up to the second step of a fresh model: the
block, or a Llama of two layers. The compiler of C++ is a process of its own, so that its time is
known apart; it gets a kernel that occurs twice once. Both sides take turns. Bytes
are those of the tensors that autograd keeps between forward and backward, parameters and input
apart.
"""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from statistics import median, quantiles
from typing import TypeVar

import paired
import torch
import torch._inductor.config
import torch._inductor.metrics
from gpt_block import Block
from paired import Row
from torch import Tensor, nn

from unitscale.units import unit_scale

BATCH, LENGTH = 2, 256
SAVED = ("fp32-units", "fp16", "fp8")

INNER = "inductor"

COMPILED = ("fp32-units", "fp8-e4m3")

Step = Callable[[], object]
M = TypeVar("M", bound=nn.Module)


def block(width: int, recipe: str | None) -> nn.Module:
    """A block with the same parameters each time, compiled as it is or at units."""
    torch.manual_seed(0)
    return with_recipe(Block(width), recipe)


def with_recipe(model: M, recipe: str | None) -> M:
    """A model compiled by inductor, as it is or at units."""
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


@dataclass(frozen=True)
class Compiled:
    """What compiling one model took.

    Args:
        python: seconds of CPU time in this process: capturing, rewriting, tracing, writing C++.
        children: seconds of the compiler of C++.
        kernels: how many loops were written.
    """

    python: float
    children: float
    kernels: int

    @property
    def seconds(self) -> float:
        """All of it."""
        return self.python + self.children


def compile_rows(make: Callable[[str | None], Step], rounds: int) -> list[Row]:
    """What compiling takes up to the second step of a fresh model, plain over each recipe."""
    torch.set_num_threads(1)
    found: dict[str | None, list[Compiled]] = {recipe: [] for recipe in (None, *COMPILED)}
    with torch._inductor.config.patch(force_disable_caches=True, compile_threads=1):
        compiling(make, None)  # imports, and what torch keeps for the life of a process
        for _ in range(rounds):
            for recipe, results in found.items():
                results.append(compiling(make, recipe))
    return [compile_row(found[None], found[recipe], recipe) for recipe in COMPILED]


def compile_row(base: Sequence[Compiled], mine: Sequence[Compiled], recipe: str) -> Row:
    """The ratios of a recipe, round by round, and the parts of both sides."""
    ratios = [x.seconds / y.seconds for x, y in zip(base, mine, strict=True)]
    low, _, high = quantiles(ratios, n=4) if len(ratios) > 1 else ratios * 3
    parts = [
        f"{name} {median(getattr(x, part) for x in mine):.1f} s "
        f"({median(getattr(x, part) for x in base):.1f})"
        for name, part in (("Python", "python"), ("C++", "children"))
    ]
    kernels = f"{mine[0].kernels} kernels ({base[0].kernels})"
    return Row(
        case=f"compile, {recipe}",
        measure="of plain",
        median=median(ratios),
        low=low,
        high=high,
        rounds=len(ratios),
        milliseconds=1e3 * median(x.seconds for x in mine),
        note=f"cost {1 / median(ratios):.3f}; {', '.join([*parts, kernels])}, plain's in brackets",
    )


def compiling(make: Callable[[str | None], Step], recipe: str | None) -> Compiled:
    """CPU time of a fresh model's first two steps."""
    torch.compiler.reset()
    torch._inductor.metrics.reset()
    before = os.times()
    run = make(recipe)
    run(), run()
    after = os.times()
    own, own_system, children, children_system = (
        y - x for x, y in zip(before[:4], after[:4], strict=True)
    )
    kernels = torch._inductor.metrics.generated_kernel_count
    return Compiled(own + own_system, children + children_system, kernels)


def llama(recipe: str | None) -> Step:
    """Forward and backward of a Llama of two layers and width 128 on 2 x 64 tokens."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    sizes = {"hidden_size": 128, "intermediate_size": 256, "vocab_size": 256}
    heads = {"num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
    model = with_recipe(LlamaForCausalLM(LlamaConfig(**sizes, **heads)), recipe)
    tokens = torch.randint(0, 256, (2, 64))

    def run() -> None:
        model.zero_grad()
        model(input_ids=tokens, labels=tokens, use_cache=False).loss.backward()

    return run


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
    parser = paired.arguments(__doc__)
    parser.add_argument("--compile", choices=("block", "llama"), help="what compiling costs, alone")
    options = parser.parse_args()
    paired.steady_memory()
    torch.set_num_threads(options.threads)
    widths = (128,) if options.quick else (512, 1024)
    makes = {"llama": llama, "block": lambda recipe: step(block(widths[0], recipe), widths[0])}
    if options.compile:
        rows = compile_rows(makes[options.compile], options.rounds)
        paired.report(f"Compiling, {options.compile}; cost is 1 / figure", rows, options.json)
        return
    rows = [row for width in widths for row in step_rows(width, options.rounds)]
    rows += compile_rows(makes["block"], 1 if options.quick else 3)
    rows += saved_rows(widths[0])
    title = f"Units on a GPT block, {BATCH} x {LENGTH} tokens, inductor; cost is 1 / figure"
    paired.report(title, rows, options.json)


if __name__ == "__main__":
    main()
