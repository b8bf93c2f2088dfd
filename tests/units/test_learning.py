"""A tiny language model with the usual small initialization, trained for a few steps per recipe."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unitscale.units import apply_recipe, unit_scale

VOCABULARY, WIDTH, LENGTH, BATCH, STEPS = 32, 32, 64, 32, 60


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(WIDTH) for _ in range(2))
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.up, self.down = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (
            t.unflatten(-1, (2, -1)).transpose(1, 2)
            for t in self.qkv(self.norms[0](x)).chunk(3, -1)
        )
        attended = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(attended.transpose(1, 2).flatten(2))
        return x + self.down(F.gelu(self.up(self.norms[1](x))))


class LanguageModel(nn.Module):
    """Standard deviations of 0.02 and a tied read-out, as in GPT-2."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, WIDTH)
        self.layers, self.norm = nn.ModuleList([Layer(), Layer()]), nn.LayerNorm(WIDTH)
        for p in self.parameters():
            if p.dim() > 1:
                nn.init.normal_(p, std=0.02)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embedding(tokens[:, :-1])
        for layer in self.layers:
            x = layer(x)
        logits = self.norm(x) @ self.embedding.weight.T
        return F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())


def text(generator: torch.Generator) -> Tensor:
    """Each token follows from the two before it, but for one in ten that is random."""
    tokens = torch.randint(VOCABULARY, (BATCH, LENGTH + 1), generator=generator)
    noise = torch.rand(BATCH, LENGTH + 1, generator=generator) < 0.1
    for i in range(2, LENGTH + 1):
        follows = (3 * tokens[:, i - 1] + tokens[:, i - 2] // 8 + 1) % VOCABULARY
        tokens[:, i] = torch.where(noise[:, i], tokens[:, i], follows)
    return tokens


def final_loss(recipe: str) -> float:
    """Mean loss of the last ten steps of AdamW."""
    torch.manual_seed(0)
    model = LanguageModel()
    if recipe.endswith("none"):
        apply_recipe(model, recipe, inner="eager")
    elif recipe != "fp32":
        unit_scale(model, recipe, inner="eager")
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    generator, losses = torch.Generator().manual_seed(0), []
    for _ in range(STEPS):
        optimizer.zero_grad()
        loss = model(text(generator))
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return sum(losses[-10:]) / 10


@pytest.fixture(scope="module")
def plain_loss() -> float:
    return final_loss("fp32")


def test_model_learns_at_all(plain_loss):
    assert plain_loss < 0.6 * math.log(VOCABULARY)


def test_loss_at_units_is_that_of_fp32(plain_loss):
    """Seen: 1.797 against 1.787."""
    assert final_loss("fp8") == pytest.approx(plain_loss, abs=0.05)


def test_loss_without_units_is_visibly_worse(plain_loss):
    """Seen: 1.999. A gradient of a mean over 2048 tokens is mostly below E5M2's smallest value."""
    assert final_loss("fp8-none") > plain_loss + 0.1
