"""A small model whose call returns its loss, as the Trainer and Accelerate's users have it."""

import torch
from torch import Tensor, nn


class Small(nn.Module):
    """Two linear layers and the loss."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.up, self.down = nn.Linear(16, 32), nn.Linear(32, 1)

    def forward(self, x: Tensor, labels: Tensor) -> dict[str, Tensor]:
        out = self.down(torch.tanh(self.up(x)))
        return {"loss": nn.functional.mse_loss(out.float(), labels), "logits": out}


def rows(count: int) -> list[dict[str, Tensor]]:
    """Examples in a fixed order."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(count, 16, generator=generator)
    return [{"x": row, "labels": row.sum()[None]} for row in x]
