"""A block of GPT-2 in plain PyTorch, and what a step of its training is."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

HEAD = 64


class Block(nn.Module):
    """Pre-norm attention and an MLP of four times the width, [batch, length, width] to the same."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first_norm, self.second_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.enter, self.leave = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.heads = width // HEAD

    def forward(self, x: Tensor) -> Tensor:
        """The block with its residual branches."""
        batch, length, width = x.shape
        packed = self.enter(self.first_norm(x)).view(batch, length, 3, self.heads, HEAD)
        query, key, value = packed.permute(2, 0, 3, 1, 4).unbind(0)
        mixed = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        x = x + self.leave(mixed.transpose(1, 2).reshape(batch, length, width))
        return x + self.down(F.gelu(self.up(self.second_norm(x))))


def training_step(model: nn.Module, x: Tensor) -> Callable[[], None]:
    """Forward, backward (to the input as well, as inside of a model) and AdamW."""
    optimizer = torch.optim.AdamW(model.parameters(), 1e-4)
    x = x.clone().requires_grad_()

    def step() -> None:
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()

    return step
