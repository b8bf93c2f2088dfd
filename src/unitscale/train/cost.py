"""What a recipe costs beside its losses: passes over memory, choices, and the hardware it needs."""

from typing import Any

import torch

from unitscale.gemm import ProductFormats, linear
from unitscale.gemm.executor import obstacle
from unitscale.gemm.passes import KINDS, counting
from unitscale.recipes import Gemm, Recipe

__all__ = ["cost_of", "passes_of"]

ROWS, FEATURES = 32, 64
"""Of the layer that is run to be counted: passes do not depend on its size."""


def passes_of(gemm: Gemm) -> dict[str, int]:
    """The passes that a recipe adds to one linear layer, forward and backward, by kind.

    Counted while the layer runs: by the kernels of FP8 hardware where the CPU has them too, which
    need transposed copies, and by the emulated products else.
    """
    formats = ProductFormats.from_gemm(gemm, "scaled_mm")
    if obstacle("scaled_mm", formats, torch.float32, torch.device("cpu")):
        formats = formats._replace(executor="emulated")
    x = torch.ones(ROWS, FEATURES, requires_grad=True)
    weight = torch.ones(FEATURES, FEATURES, requires_grad=True)
    with torch.enable_grad(), counting() as counts:
        linear(x, weight, formats=formats).sum().backward()
    return {kind: counts[kind] for kind in KINDS}


def cost_of(recipe: Recipe) -> dict[str, Any]:
    """The costs of a recipe that no run measures, as results.json has them.

    `passes` are those of a linear layer of most paths; see `gemm.passes`.
    """
    return {"passes": passes_of(recipe.main), "chosen": list(recipe.chosen)}
