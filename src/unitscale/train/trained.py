"""The model that a run left behind, under its recipe and at its units."""

from dataclasses import replace
from pathlib import Path

import torch

from unitscale.report.version import upgrade
from unitscale.train.checkpoint import load_checkpoint
from unitscale.train.config import TrainConfig
from unitscale.train.initial import initial_state
from unitscale.train.loop import newest
from unitscale.train.run_folder import (
    CONFIG,
    VERSION,
    CheckpointError,
    identity_of,
    read_object,
)
from unitscale.train.spread import WHOLE
from unitscale.train.units import apply_numerics, measured_tensors

__all__ = ["run_of", "trained_model"]


def run_of(folder: Path) -> tuple[TrainConfig, str]:
    """The configuration of the run in a folder, and what its checkpoints know it by.

    Raises:
        ValueError: the folder holds no run, or one of a configuration that is none.
        CheckpointError: its description is damaged, or of another version.
    """
    if not (folder / CONFIG).is_file():
        raise ValueError(f"{folder} holds no run of `unitscale train`: it has no {CONFIG}")
    description = read_object(folder / CONFIG)
    if description.get("version") != VERSION or not isinstance(description.get("config"), dict):
        raise CheckpointError(
            f"{folder / CONFIG} is of version {description.get('version')!r} of a run's files; "
            f"expected {VERSION}{upgrade(description.get('version'), VERSION)}"
        )
    return TrainConfig.from_json(description["config"]), identity_of(description)


def trained_model(folder: Path) -> tuple[torch.nn.Module, int]:
    """The model of a run on the CPU, in eval(), evaluated once; and the step that it is of.

    Its units are those of training: the evaluation may measure nothing.

    Raises:
        ValueError: the folder holds no run, or one whose evaluation has tensors without a unit.
        CheckpointError: a file of it is damaged, or of another version; it has no checkpoint yet.
        ModelError: the factory of its model failed.
    """
    config, run = run_of(folder)
    config = replace(config, device="cpu", inner="eager")
    state = initial_state(config)
    state.run = run
    found = newest(folder, run)
    if found is None:
        raise CheckpointError(f"{folder} has no checkpoint yet; train some steps first")
    if isinstance(found, Path):
        load_checkpoint(state, found)
    else:
        from unitscale.train.sharded import load_sharded  # slow to import, so only where ranks were

        load_sharded(state, found, WHOLE)
    model = state.model.eval()
    apply_numerics(config, model, state.units)
    known = measured_tensors(model)
    ids = torch.arange(config.sequence_length)[None] % 256
    with torch.no_grad():
        model(ids, ids)
    if new := sorted(measured_tensors(model) - known):
        raise ValueError(
            f"{folder}: evaluation has {len(new)} tensors that training had not, {new[0]!r} say, "
            "and no unit for them; give the model no dropout, or export it from Python after an "
            "evaluation on real text"
        )
    return model, state.step
