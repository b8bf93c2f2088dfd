"""Small modules that are none of transformers."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import unitscale as us


class Gated(nn.Module):
    """A gated MLP: two layers of one input, which servers join."""

    def __init__(self) -> None:
        super().__init__()
        self.gate_proj, self.up_proj = (nn.Linear(16, 32, bias=False) for _ in range(2))
        self.down_proj = nn.Linear(32, 16)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(16, 16)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(1000 * self.layer(x))


def inputs() -> Tensor:
    return torch.randn(4, 16, generator=torch.Generator().manual_seed(0))


def evaluated(model: nn.Module, recipe: Any = "fp8-serve", **options: Any) -> Any:
    us.unit_scale(model.eval(), recipe, **options)
    with torch.no_grad():
        model(inputs())
    return model
