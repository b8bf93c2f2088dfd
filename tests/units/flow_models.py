"""Models whose tensors between products are held in eight bits."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

__all__ = ["WIDTH", "Block", "HandGELU", "HandLayerNorm", "Model", "RMSNorm", "batch"]

WIDTH = 32


class RMSNorm(nn.Module):
    """As transformers writes it for Llama, Qwen and T5."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.rand(WIDTH) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        h = x.to(torch.float32)
        h = h * torch.rsqrt(h.pow(2).mean(-1, keepdim=True) + 1e-6)
        return self.weight * h.to(x.dtype)


class HandLayerNorm(RMSNorm):
    def forward(self, x: Tensor) -> Tensor:
        centred = x - x.mean(-1, keepdim=True)
        variance = centred.pow(2).mean(-1, keepdim=True)
        return centred / (variance + 1e-5).sqrt() * self.weight


class HandGELU(nn.Module):
    """As `gelu_new` of transformers."""

    def forward(self, x: Tensor) -> Tensor:
        return 0.5 * x * (1.0 + torch.tanh(0.8 * (x + 0.044715 * torch.pow(x, 3.0))))


class Block(nn.Module):
    """A norm read by two products, a gate, a residual sum; bias so that nothing is symmetric."""

    def __init__(self, norm: nn.Module, act: Any = F.silu, rate: float = 0.0) -> None:
        super().__init__()
        self.norm, self.act = norm, act
        self.inward = nn.Linear(WIDTH, WIDTH)
        self.gate, self.up = nn.Linear(WIDTH, 2 * WIDTH), nn.Linear(WIDTH, 2 * WIDTH)
        self.down, self.drop = nn.Linear(2 * WIDTH, WIDTH), nn.Dropout(rate)

    def forward(self, x: Tensor) -> Tensor:
        x = self.inward(x)
        y = self.norm(x)
        return x + self.drop(self.down(self.act(self.gate(y)) * self.up(y)))


class Model(nn.Module):
    def __init__(self, *blocks: nn.Module, checkpoints: bool = False) -> None:
        super().__init__()
        self.blocks, self.checkpoints = nn.ModuleList(blocks), checkpoints

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = checkpoint(block, x, use_reentrant=False) if self.checkpoints else block(x)
        return x.square().mean()


def batch(dtype: torch.dtype = torch.float32) -> Tensor:
    x = torch.randn(4, 6, WIDTH, generator=torch.Generator().manual_seed(3))
    x[..., 5] *= 30  # a feature with outliers, as residual streams have them
    return x.to(dtype)
