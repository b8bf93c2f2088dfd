"""A small language model of one's own, for runs of several ranks; and one that breaks on rank 1."""

import os

import torch
from torch import Tensor, nn


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)
        self.dropout = nn.Dropout(0.1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.dropout(self.down(self.up(x).relu()))


class Model(nn.Module):
    """Logits from a byte alone; the read-out is the embedding, as in GPT-2."""

    def __init__(self, width: int = 16, breaks_at: int | None = None) -> None:
        super().__init__()
        self.embedding = nn.Embedding(256, width)
        self.blocks = nn.ModuleList(Block(width) for _ in range(2))
        self.readout = nn.Linear(width, 256, bias=False)
        self.readout.weight = self.embedding.weight
        self.unused = nn.Linear(width, 3)
        self.breaks_at, self.calls = breaks_at, 0

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embedding(ids)
        for block in self.blocks:
            x = block(x)
        if self.breaks_at is not None and self.training and os.environ.get("RANK") == "1":
            self.calls += 1
            if self.calls > self.breaks_at:
                x = x * torch.nan
        return self.readout(x)
