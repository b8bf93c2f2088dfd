"""torchao's float8 recipes against ours: a linear layer's output and gradients, side by side.

    pip install torchao && python experiments/check_torchao.py

torchao emulates its products (`emulate=True`), so that the comparison runs on a CPU. Printed is the
relative difference of each result, and beside it what the recipe itself changes. Exit code 1 if a
difference is above its bound, which says why it is what it is.
"""

import argparse
import copy
import sys
from dataclasses import replace

import torch
from torch import Tensor, nn

import unitscale as us

PAIRS = {
    "tensorwise": "fp8-current",
    "rowwise": "fp8-rowwise",
    "rowwise_with_gw_hp": "fp8-rowwise-hp",
}
"""torchao's recipe, and ours."""

RESULTS = ("output", "grad_input", "grad_weight")
BOUNDS = {
    # Scales are a quotient of float32 numbers, rounded once, and theirs are applied the other way.
    "tensorwise": (2**-22, 2**-22, 2**-22),
    "rowwise": (0.0, 0.0, 0.0),  # scales are powers of two
    # Theirs keeps the model's dtype for grad_weight, here float32; ours rounds to BF16, by 2^-9.
    "rowwise_with_gw_hp": (0.0, 0.0, 2**-8),
}


def results(model: nn.Module, x: Tensor) -> list[Tensor]:
    """The output, the gradient of the input and that of the weight."""
    x = x.clone().requires_grad_()
    output = model(x)
    output.backward(torch.randn(output.shape, generator=torch.Generator().manual_seed(1)))
    weight = next(model.parameters())
    assert x.grad is not None
    assert weight.grad is not None
    return [output.detach(), x.grad, weight.grad]


def difference(a: Tensor, b: Tensor) -> float:
    """Of two tensors, relative to the second."""
    return float((a - b).norm() / b.norm())


def main() -> None:
    """Compare, print, and say whether all is as expected."""
    argparse.ArgumentParser(description=__doc__.partition("\n")[0]).parse_args()
    try:
        import torchao
        from torchao.float8 import Float8LinearConfig, convert_to_float8_training
    except ModuleNotFoundError as error:
        sys.exit(f"check_torchao: {error.name} is not installed; run: pip install torchao")
    torch.manual_seed(0)
    plain, x = nn.Sequential(nn.Linear(64, 48, bias=False)), torch.randn(32, 64)
    before = results(copy.deepcopy(plain), x)
    print(f"unitscale {us.__version__}, torchao {torchao.__version__}, torch {torch.__version__}\n")
    print("| torchao | unitscale | output | grad_input | grad_weight | the recipe changes |")
    print("|---|---|---|---|---|---|")
    wrong = []
    for theirs, ours in PAIRS.items():
        config = replace(Float8LinearConfig.from_recipe_name(theirs), emulate=True)
        a = results(convert_to_float8_training(copy.deepcopy(plain), config=config), x)
        b = results(us.apply_recipe(copy.deepcopy(plain), ours, inner="eager"), x)
        found = [difference(*pair) for pair in zip(b, a, strict=True)]
        changed = [difference(*pair) for pair in zip(b, before, strict=True)]
        cells = " | ".join(f"{value:.1g}" for value in found)
        print(f"| `{theirs}` | `{ours}` | {cells} | {', '.join(f'{x:.3f}' for x in changed)} |")
        wrong += [
            f"{theirs} {name}"
            for name, value, bound in zip(RESULTS, found, BOUNDS[theirs], strict=True)
            if value > bound
        ]
    if wrong:
        sys.exit(f"check_torchao: not as expected: {', '.join(wrong)}")


if __name__ == "__main__":
    main()
