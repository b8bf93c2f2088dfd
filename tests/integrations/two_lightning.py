"""A run of two epochs under DDP, and one that resumes after the first: two_lightning.py FOLDER.

Lightning starts the second process itself, with the same command line.
"""

import json
import sys
import warnings
from pathlib import Path

import torch

from integrations.tiny_lightning import Regression, batches, trainer
from unitscale.integrations import LightningPrecision
from unitscale.integrations.kept import keep


def run(folder: Path, name: str, epochs: int, ckpt_path: Path | None = None) -> None:
    module = Regression()
    plugin = LightningPrecision("fp8", inner="eager")
    # Batches are 10, of which each process has 5: the last of an epoch is the fifth call, which
    # measures.
    one = trainer(folder, -1, max_epochs=epochs, plugins=plugin, strategy="ddp", devices=2)
    one.fit(module, batches(10), ckpt_path=ckpt_path)
    one.save_checkpoint(folder / f"{name}.ckpt")
    units = keep(module)["net"]["state"]["units"]
    saved = torch.load(folder / f"{name}.ckpt", weights_only=False)["LightningPrecision"]["net"]
    unshared = saved["state"]["unshared"]
    found = {"losses": module.losses, "units": units, "unshared": unshared}
    (folder / f"{name}-{one.global_rank}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    folder = Path(sys.argv[1])
    run(folder, "whole", 2)
    run(folder, "half", 1)
    run(folder, "resumed", 2, folder / "half.ckpt")
