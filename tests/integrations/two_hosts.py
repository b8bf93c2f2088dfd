"""Runs of two processes, whole and resumed: torchrun two_hosts.py trainer|accelerate FOLDER."""

import json
import sys
import warnings
from pathlib import Path

import torch
import torch.distributed as dist

from integrations import test_accelerate, test_trainer
from unitscale.integrations.kept import keep


def with_trainer(folder: Path) -> None:
    whole = test_trainer.trainer(folder / "whole")
    whole.train()
    resumed = test_trainer.trainer(folder / "resumed")
    resumed.train(resume_from_checkpoint=str(folder / "whole" / "checkpoint-3"))
    write(
        folder,
        losses=[test_trainer.losses(whole), test_trainer.losses(resumed)],
        units=[test_trainer.units(whole), test_trainer.units(resumed)],
        saved=json.loads((folder / "whole" / "checkpoint-3" / "trainer_state.json").read_text())[
            "stateful_callbacks"
        ]["KeepUnits"]["units"],
    )


def with_accelerate(folder: Path) -> None:
    whole = test_accelerate.Run()
    whole.train(0, 3)
    whole.accelerator.save_state(str(folder / "state"))
    rest = whole.train(3, 6)
    resumed = test_accelerate.Run()
    resumed.accelerator.load_state(str(folder / "state"))
    again = resumed.train(3, 6)
    saved = torch.load(folder / "state" / "custom_checkpoint_0.pkl", weights_only=False)
    units = [keep(whole.model), keep(resumed.model)]
    write(folder, losses=[rest, again], units=units, saved=saved)


def write(folder: Path, losses: list, units: list, saved: dict) -> None:
    """What this rank found, of the whole run and of the resumed one, and in the checkpoint."""
    state = [next(iter(kept.values()))["state"] for kept in units]
    found = {"losses": losses, "units": [s["units"] for s in state]}
    found["unshared"] = next(iter(saved.values()))["state"]["unshared"]
    (folder / f"rank-{dist.get_rank()}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    {"trainer": with_trainer, "accelerate": with_accelerate}[sys.argv[1]](Path(sys.argv[2]))
    dist.destroy_process_group()
