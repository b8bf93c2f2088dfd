"""A small LightningModule, and the trainer that its tests use."""

from pathlib import Path
from typing import Any

import lightning
import torch
from torch import Tensor, nn


class Net(nn.Module):
    """Two linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(16, 32), nn.Linear(32, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(torch.tanh(self.up(x)))


class Regression(lightning.LightningModule):
    """A net as its one child."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = Net()
        self.losses: list[float] = []
        self.valid: list[float] = []

    def loss(self, batch: list[Tensor]) -> Tensor:
        x, y = batch
        return nn.functional.mse_loss(self.net(x), y)

    def training_step(self, batch: list[Tensor], index: int) -> Tensor:
        loss = self.loss(batch)
        self.losses.append(loss.item())
        return loss

    def validation_step(self, batch: list[Tensor], index: int) -> None:
        self.valid.append(self.loss(batch).item())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=1e-2)


def batches(steps: int, size: int = 8) -> torch.utils.data.DataLoader:
    """Batches in a fixed order; each epoch has the same."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(steps * size, 16, generator=generator)
    data = torch.utils.data.TensorDataset(x, x.sum(dim=1, keepdim=True))
    return torch.utils.data.DataLoader(data, size)


def trainer(folder: Path, steps: int, **options: Any) -> lightning.Trainer:
    return lightning.Trainer(
        max_steps=steps,
        default_root_dir=folder,
        **{
            "accelerator": "cpu",
            "logger": False,
            "enable_checkpointing": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "num_sanity_val_steps": 0,
            **options,
        },
    )
