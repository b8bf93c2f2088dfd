"""A tiny model learns a tiny language, whose entropy is known."""

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from unitscale import optim
from unitscale.models import CharLM, CharLMConfig

WORDS = [b"alpha ", b"beta ", b"gamma ", b"delta ", b"kappa ", b"lambda ", b"sigma ", b"omega "]
# One of eight words drawn at random: nats per byte that no model can get below in the long run.
ENTROPY = math.log(8) / (sum(map(len, WORDS)) / 8)


def text(num_words: int) -> Tensor:
    picks = torch.randint(8, (num_words,)).tolist()
    return torch.tensor(list(b"".join(WORDS[i] for i in picks)))


def final_loss(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int = 90) -> float:
    losses = []
    for _ in range(steps):
        batch = text(16 * 10)[: 16 * 33].view(16, 33)
        loss = model(batch[:, :-1], batch[:, 1:])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[0] > 4.5  # ln 128 = 4.85
    return sum(losses[-10:]) / 10


CONFIG = CharLMConfig(vocab_size=128, width=32, depth=1, heads=2, context=32)
# Measured over 3 seeds: 0.37 to 0.49 (the first bytes of a row cannot be foretold), and 1.05 or
# more without the trunk.
BAND = (ENTROPY, 0.6)


@pytest.mark.parametrize("layer", ["attention", "conv", "rnn"])
def test_standard_model_learns(layer: str) -> None:
    model = CharLM(replace(CONFIG, layer=layer))
    loss = final_loss(model, torch.optim.Adam(model.parameters(), 1e-2))
    assert BAND[0] < loss < BAND[1]


@pytest.mark.parametrize("layer", ["attention", "conv", "rnn"])
def test_unit_scaled_model_learns(layer: str) -> None:
    model = CharLM(replace(CONFIG, layer=layer, unit_scaled=True))
    loss = final_loss(model, optim.Adam(model, 0.5))
    assert BAND[0] < loss < BAND[1]


@pytest.mark.parametrize("unit_scaled", [False, True])
def test_model_without_its_trunk_stays_outside_the_band(unit_scaled: bool) -> None:
    """One byte of context is not enough: the band tells a model that mixes positions."""
    model = CharLM(replace(CONFIG, unit_scaled=unit_scaled))
    model.trunk = nn.Identity()
    loss = final_loss(model, torch.optim.Adam(model.parameters(), 5e-2))
    assert loss > BAND[1] + 0.1
