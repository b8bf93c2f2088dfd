"""What a recipe costs beside its losses: passes over memory, choices, and the hardware it needs."""

from typing import Any

import torch

from unitscale.formats import BF16, FP16, FloatFormat
from unitscale.gemm import ProductFormats, linear
from unitscale.gemm.capability import kernel_of
from unitscale.gemm.executor import obstacle
from unitscale.gemm.passes import KINDS, counting
from unitscale.recipes import Gemm, Recipe

__all__ = ["cost_of", "passes_of"]

ROWS, FEATURES = 32, 64
"""Of the layer that is run to be counted: passes do not depend on its size."""


def passes_of(gemm: Gemm) -> dict[str, int]:
    """The passes that a recipe adds to one linear layer, forward and backward, by kind.

    Counted while the layer runs. With one scale for each tensor it runs by the kernels of FP8
    hardware, which a CPU has too and which need transposed copies; else by the emulated products:
    what follows the contraction is cast twice and written as the kernel wants it.
    """
    formats = ProductFormats.from_gemm(gemm, "scaled_mm")
    device = torch.device("cpu")
    if not gemm.is_per_tensor or obstacle("scaled_mm", formats, torch.float32, device):
        formats = formats._replace(executor="emulated")
    x = torch.ones(ROWS, FEATURES, requires_grad=True)
    weight = torch.ones(FEATURES, FEATURES, requires_grad=True)
    with torch.enable_grad(), counting() as counts:
        linear(x, weight, formats=formats).sum().backward()
    return {kind: counts[kind] for kind in KINDS}


DEVICES: dict[str, str] = {
    "tensor": "CUDA 8.9+, gfx95, gfx12",
    "row": "CUDA 8.9+, gfx95, gfx12",
    "1x32": "CUDA 10.0+",
    "1x16": "CUDA 10.0+",
    "1x128 @ 1x128": "CUDA 9.x",
    "1x128 @ 128x128": "CUDA 9.x",
    "128x128 @ 1x128": "CUDA 9.x",
}
"""Where torch has a kernel; the sources are in `gemm.capability`, and none of it was tried."""

MI300 = "gfx94"


def hardware_of(gemm: Gemm) -> str:
    """The devices whose own kernels multiply the operands of a recipe, product by product.

    `emulated` is what has no kernel anywhere; FP16 and BF16 are products of every GPU.
    """
    found: dict[str, None] = {}
    for _, (left, right) in gemm.pairs():
        formats = [operand.format for operand in (left, right)]
        if any(fmt is None for fmt in formats):
            found["any"] = None
        elif all(isinstance(fmt, FloatFormat) and fmt in (BF16, FP16) for fmt in formats):
            found["any GPU"] = None
        else:
            kernel = kernel_of(str(left), str(right)).kernel
            is_fnuz = any(str(fmt).endswith("FNUZ") for fmt in formats)
            found[MI300 if kernel and is_fnuz else DEVICES.get(kernel or "", "emulated")] = None
    return " | ".join(found)


def cost_of(recipe: Recipe) -> dict[str, Any]:
    """The costs of a recipe that no run measures, as results.json has them.

    `passes` are those of a linear layer of most paths; see `gemm.passes`. `hardware` is where its
    products have kernels.
    """
    return {
        "passes": passes_of(recipe.main),
        "chosen": list(recipe.chosen),
        "hardware": hardware_of(recipe.main),
    }
