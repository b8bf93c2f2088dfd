"""A small model with products of every kind, for the tests of recipes."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

WIDTH, VOCABULARY = 32, 40


class Feed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(WIDTH, 2 * WIDTH), nn.Linear(2 * WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.gelu(self.up(x)))


class Small(nn.Module):
    """Linear layers, attention, a convolution, a weight on the left, a head tied to an embedding.

    Args:
        checkpointed: compute the feed-forward again in backward.
    """

    def __init__(self, *, checkpointed: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.checkpointed = checkpointed
        self.emb = nn.Embedding(VOCABULARY, WIDTH)
        self.conv = nn.Conv1d(WIDTH, WIDTH, 3, padding=1)
        self.norm = nn.LayerNorm(WIDTH)
        self.attn = nn.MultiheadAttention(WIDTH, 4, batch_first=True)
        self.feed = Feed()
        self.left = nn.Parameter(torch.randn(WIDTH, WIDTH) / WIDTH**0.5)
        self.head = nn.Linear(WIDTH, VOCABULARY, bias=False)
        self.head.weight = self.emb.weight

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.emb(tokens)
        x = x + self.conv(x.mT).mT
        y = self.norm(x)
        x = x + self.attn(y, y, y, need_weights=False)[0]
        x = x + (
            checkpoint(self.feed, x, use_reentrant=False) if self.checkpointed else self.feed(x)
        )
        x = x + (self.left @ x.mT).mT
        return F.cross_entropy(self.head(x).flatten(0, 1), tokens.flatten())


class Thin(nn.Module):
    """A layer, and a weight on the left of it: few products, because compilers take long."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.emb = nn.Embedding(VOCABULARY, WIDTH)
        self.layer = nn.Linear(WIDTH, WIDTH)
        self.left = nn.Parameter(torch.randn(WIDTH, WIDTH) / WIDTH**0.5)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.layer(self.emb(tokens))
        return (self.left @ x.mT).square().mean()


def batch(seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, VOCABULARY, (3, 11), generator=generator)


def steps(model: nn.Module, count: int = 2) -> list[Tensor]:
    """Losses and gradients of some steps; what is drawn is the same in every run."""
    found = []
    for index in range(count):
        model.zero_grad()
        torch.manual_seed(index)
        loss = model(batch(index))
        loss.backward()
        found += [loss.detach(), *(p.grad.clone() for p in model.parameters())]
    return found
