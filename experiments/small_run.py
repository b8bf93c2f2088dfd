"""Short trainings of the small language models of the command line, for experiments."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

import unitscale as us
from unitscale.data import Corpus, fixed_windows, open_corpus, sample_windows
from unitscale.models.next_byte import build
from unitscale.recipes import parse
from unitscale.record import record
from unitscale.train.loop import to_inputs

Row = dict[str, Any]

BATCH, LENGTH, LR = 8, 64, 2.0**-8


def small_model(name: str, seed: int, *, width: int, depth: int) -> nn.Module:
    """`llama` or `gpt2` as a model of the loss, the same for the same seed."""
    torch.manual_seed(seed)
    return build(name, {"width": width, "depth": depth, "context": LENGTH})


def give(model: nn.Module, recipe: str, skip: Sequence[str] = ()) -> None:
    """Put a model under a recipe, with units where that has them."""
    found = parse(recipe)
    if found.rounds and found.unit_scaled:
        us.unit_scale(model, found, skip=skip, inner="eager")
    elif found.rounds:
        us.apply_recipe(model, found, skip=skip, inner="eager")


def train(
    model: nn.Module,
    *,
    steps: int,
    seed: int,
    lr: float = LR,
    what_if: Sequence[str] = (),
    every: int = 50,
) -> tuple[list[float], list[Row]]:
    """Losses of a run with Adam and a linear warm-up of 20 steps, and its what-if rows."""
    corpus = open_corpus()
    optimizer = torch.optim.Adam(model.parameters(), lr, betas=(0.9, 0.99))
    losses: list[float] = []

    def make_steps() -> None:
        for step in range(steps):
            for group in optimizer.param_groups:
                group["lr"] = lr * min(1.0, (step + 1) / 20)
            loss = model(*batch(corpus, seed, step))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())

    if not what_if:
        make_steps()
        return losses, []
    with record(model, every=every, what_if=what_if) as recorder:
        make_steps()
    return losses, [row for row in recorder.rows if "what_if" in row]


def batch(corpus: Corpus, seed: int, step: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The text of one step."""
    windows = sample_windows(
        corpus.train, seed=seed, step=step, batch_size=BATCH, length=LENGTH + 1
    )
    return to_inputs(windows)


@torch.no_grad()
def valid_loss(model: nn.Module, count: int = 256) -> float:
    """The mean loss over fixed windows."""
    windows = fixed_windows(open_corpus().valid, count=count, length=LENGTH + 1)
    ids, targets = to_inputs(windows)
    parts = zip(ids.split(32), targets.split(32), strict=True)
    model.eval()
    return sum(model(i, t).item() * len(i) for i, t in parts) / count
