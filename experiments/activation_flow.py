"""By how much are gradients off, if what is held between products is in eight bits?

A small Llama (2 layers of width 128) is trained in FP32 for 200 steps on source text, with 2 seeds.
Then its gradient on 3 batches is compared with the exact one, all parameters of the layers
together, with products in full precision and what lies between them held in several ways. At the
end both recipes whole.

    python experiments/activation_flow.py
"""

from collections.abc import Iterator
from statistics import fmean, stdev

import torch
from torch import Tensor, nn

import unitscale as us
from small_run import batch, small_model, train
from unitscale.data import open_corpus
from unitscale.formats import E4M3FN, E5M2
from unitscale.formats.granularity import PerBlock, PerTensor
from unitscale.recipes import Current, Operand, Recipe, parse, uniform

STEPS, SEEDS, BATCHES = 200, 2, 3
WIDTH, DEPTH = 128, 2

HELD: dict[str, Operand] = {
    "1x16, as COAT": Operand(E4M3FN, Current(), PerBlock(16)),
    "1x16, powers of two": Operand(E4M3FN, Current("rceil"), PerBlock(16)),
    "1x128": Operand(E4M3FN, Current(), PerBlock(128)),
    "one scale a tensor": Operand(E4M3FN, Current(), PerTensor()),
    "1x16 in E5M2": Operand(E5M2, Current(), PerBlock(16)),
}


def arms() -> Iterator[tuple[str, Recipe]]:
    """Ways to hold what lies between products, and two recipes."""
    for name, operand in HELD.items():
        yield name, Recipe(name="flow", rules=uniform(E4M3FN, E4M3FN), saved=operand, skip=("*",))
    yield "coat, whole", parse("coat")
    yield "fp8-current, whole", parse("fp8-current")


def gradients(model: nn.Module, seed: int, step: int) -> dict[str, Tensor]:
    """Of one batch that was not trained on."""
    model.zero_grad()
    model(*batch(open_corpus(), seed, 10_000 + step)).backward()
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def error(got: dict[str, Tensor], want: dict[str, Tensor]) -> float:
    """The relative error of the parameters of layers together; embeddings are left out."""
    names = [name for name in want if ".layers." in name]
    off = sum((got[n] - want[n]).double().square().sum().item() for n in names)
    return float((off / sum(want[n].double().square().sum().item() for n in names)) ** 0.5)


def main() -> None:
    """Train, compare and print."""
    torch.set_num_threads(1)
    found: dict[str, list[float]] = {}
    for seed in range(SEEDS):
        model = small_model("llama", seed, width=WIDTH, depth=DEPTH)
        train(model, steps=STEPS, seed=seed)
        exact = [gradients(model, seed, step) for step in range(BATCHES)]
        for name, recipe in arms():
            torch.compiler.reset()
            us.apply_recipe(model, recipe, inner="eager")
            for step, want in enumerate(exact):
                off = error(gradients(model, seed, step), want)
                found.setdefault(name, []).append(off)
            us.unscale(model)
    print(f"unitscale {us.__version__}, torch {torch.__version__}, n={SEEDS * BATCHES}\n")
    print("| held between products | relative error of the gradient |\n|---|---|")
    for name, values in found.items():
        print(f"| {name} | {fmean(values):.4f} ± {stdev(values):.4f} |")


if __name__ == "__main__":
    main()
