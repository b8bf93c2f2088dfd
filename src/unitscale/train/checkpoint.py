"""Checkpoints: one safetensors file with all that a run needs to go on as if never stopped."""

import json
import zlib
from dataclasses import asdict, dataclass
from pathlib import Path

import safetensors
import torch
from safetensors.torch import save_file
from torch import Tensor

from unitscale.train.loss_scale import LossScale
from unitscale.train.run_folder import CheckpointError, write_atomically
from unitscale.train.units import Kept, units_to_keep


@dataclass
class TrainState:
    """What changes from step to step. Batches and learning rates follow from `step` alone.

    `units` are those of the checkpoint that was loaded, for a model that is about to get units.
    """

    model: torch.nn.Module
    optimizer: torch.optim.Optimizer
    loss_scale: LossScale
    step: int = 0
    units: Kept | None = None


def save_checkpoint(state: TrainState, path: Path) -> None:
    """Write the state and torch's random number generator; the old file stands until then."""
    tensors = {f"model.{name}": value for name, value in state.model.state_dict().items()}
    for index, values in state.optimizer.state_dict()["state"].items():
        for name, value in values.items():
            tensors[f"optimizer.{index}.{name}"] = value
    tensors["rng"] = torch.get_rng_state()
    # Each on its own memory: safetensors refuses tensors that share it, as tied weights do.
    tensors = {name: value.detach().cpu().clone() for name, value in tensors.items()}
    metadata = {
        "step": str(state.step),
        "loss_scale": json.dumps(asdict(state.loss_scale)),
        "units": json.dumps(units_to_keep(state.model)),
        "crc32": str(checksum(tensors)),
    }
    write_atomically(path, lambda temporary: save_file(tensors, temporary, metadata))


def load_checkpoint(state: TrainState, path: Path) -> None:
    """Continue from a checkpoint; `state` is untouched unless all of it is sound.

    Raises:
        CheckpointError: the file is damaged, or is of another model or optimizer.
    """
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no iterator
        if int(metadata["crc32"]) != checksum(tensors):
            raise ValueError("its checksum does not match")
        step = int(metadata["step"])
        loss_scale = LossScale(**json.loads(metadata["loss_scale"]))
        units = json.loads(metadata.get("units", "null"))
        rng = tensors.pop("rng")
        model = {k.removeprefix("model."): v for k, v in tensors.items() if k.startswith("model.")}
        check_fits(model, state.model.state_dict())
    except (safetensors.SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise CheckpointError(
            f"{path} is not a checkpoint of this run ({reason}); nothing was changed: "
            "restore the file, or delete it to train from the start"
        ) from error
    optimizer = state.optimizer.state_dict()
    optimizer["state"] = {}
    for name, value in tensors.items():
        if name.startswith("optimizer."):
            _, index, key = name.split(".")
            optimizer["state"].setdefault(int(index), {})[key] = value
    state.model.load_state_dict(model)
    state.optimizer.load_state_dict(optimizer)
    state.loss_scale, state.step, state.units = loss_scale, step, units
    torch.set_rng_state(rng)


def check_fits(loaded: dict[str, Tensor], own: dict[str, Tensor]) -> None:
    """Raise ValueError unless both hold the same names with the same shapes."""
    if loaded.keys() != own.keys():
        raise ValueError(f"it lacks or adds {min(loaded.keys() ^ own.keys())}")
    for name, value in own.items():
        if loaded[name].shape != value.shape:
            got, expected = list(loaded[name].shape), list(value.shape)
            raise ValueError(f"{name} has the shape {got}, and not {expected}")


def checksum(tensors: dict[str, Tensor]) -> int:
    """CRC-32 of the names and bytes, in order of name."""
    crc = 0
    for name in sorted(tensors):
        crc = zlib.crc32(name.encode(), crc)
        crc = zlib.crc32(tensors[name].reshape(-1).view(torch.uint8).numpy().data, crc)
    return crc
