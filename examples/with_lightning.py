"""Lightning: a precision plugin scales the model, and keeps its units in every checkpoint."""

import lightning
import torch
from tiny import llama, loader
from torch import Tensor

from unitscale.integrations import LightningPrecision


class LanguageModel(lightning.LightningModule):
    """A training step around a plain model."""

    def __init__(self) -> None:
        super().__init__()
        self.model = llama()
        self.losses: list[float] = []

    def training_step(self, batch: dict[str, Tensor], index: int) -> Tensor:
        """The loss of a batch."""
        loss = self.model(**batch).loss
        self.losses.append(loss.item())
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """AdamW, as for the plain model."""
        return torch.optim.AdamW(self.parameters(), lr=3e-3)


module = LanguageModel()
trainer = lightning.Trainer(
    plugins=LightningPrecision("fp8", inner="eager"),
    max_epochs=1,
    accelerator="cpu",
    logger=False,
    enable_checkpointing=False,
    enable_progress_bar=False,
    enable_model_summary=False,
)
trainer.fit(module, loader(steps=20))
print(f"loss {module.losses[0]:.3f} -> {module.losses[-1]:.3f}")
