"""Runs of two processes, whole and resumed: torchrun two_hosts.py trainer|accelerate FOLDER."""

import json
import sys
import warnings
from pathlib import Path

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
    )


def with_accelerate(folder: Path) -> None:
    whole = test_accelerate.Run()
    whole.train(0, 3)
    whole.accelerator.save_state(str(folder / "state"))
    rest = whole.train(3, 6)
    resumed = test_accelerate.Run()
    resumed.accelerator.load_state(str(folder / "state"))
    again = resumed.train(3, 6)
    write(folder, losses=[rest, again], units=[keep(whole.model), keep(resumed.model)])


def write(folder: Path, losses: list, units: list) -> None:
    """What this rank found, of the whole run and of the resumed one."""
    state = [next(iter(kept.values()))["state"] for kept in units]
    found = {"losses": losses, "units": [s["units"] for s in state]}
    (folder / f"rank-{dist.get_rank()}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    {"trainer": with_trainer, "accelerate": with_accelerate}[sys.argv[1]](Path(sys.argv[2]))
    dist.destroy_process_group()
