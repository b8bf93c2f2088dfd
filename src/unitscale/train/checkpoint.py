"""Checkpoints: one safetensors file with all that a run needs to go on as if never stopped.

The tensors are those of the model, the optimizer and the random number generators. Everything else
is one JSON text in the file's metadata, under `state`. The checksum covers both.
"""

import json
import zlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import safetensors
import torch
from safetensors.torch import save_file
from torch import Tensor

from unitscale.optim.parts import is_dtensor
from unitscale.train.loss_scale import LossScale
from unitscale.train.run_folder import CheckpointError, write_atomically
from unitscale.train.run_log import START, Mark
from unitscale.train.units import Kept, units_to_keep

RNG, DEVICE_RNG = "rng", "rng.device"


@dataclass
class TrainState:
    """What changes from step to step. Batches and learning rates follow from `step` alone.

    `units` are those of the checkpoint that was loaded, for a model that is about to get units.
    `log` is the place in the log where the checkpoint was written, and `run` says of which run it
    is (`run_folder.identity`).
    """

    model: torch.nn.Module
    optimizer: torch.optim.Optimizer
    loss_scale: LossScale
    step: int = 0
    units: Kept | None = None
    log: Mark = START
    run: str = ""


def save_checkpoint(state: TrainState, path: Path) -> None:
    """Write the state and torch's random number generators; the old file stands until then.

    Raises:
        OSError: the file cannot be written.
    """
    tensors = {f"model.{name}": value for name, value in state.model.state_dict().items()}
    for index, values in state.optimizer.state_dict()["state"].items():
        for name, value in values.items():
            tensors[f"optimizer.{index}.{name}"] = value
    tensors |= generator_states(state.model)
    # Each on its own memory: safetensors refuses tensors that share it, as tied weights do.
    tensors = {name: value.detach().cpu().clone() for name, value in tensors.items()}
    rest = json.dumps(rest_of(state))
    metadata = {"state": rest, "crc32": str(checksum(tensors, rest))}

    def write(temporary: Path) -> None:
        try:
            save_file(tensors, temporary, metadata)
        except safetensors.SafetensorError as error:  # a full disk, say; it is no OSError
            raise OSError(f"cannot write {path}: {error}") from error

    write_atomically(path, write)


def load_checkpoint(state: TrainState, path: Path) -> None:
    """Continue from a checkpoint; `state` is untouched unless all of it is sound.

    Raises:
        CheckpointError: the file is damaged, or is of another run, model or optimizer.
    """
    try:
        tensors, found = read_checkpoint(path)
        rest = Rest.of(found, state.run)
        rng, device_rng = tensors.pop(RNG), tensors.pop(DEVICE_RNG, None)
        model = {k.removeprefix("model."): v for k, v in tensors.items() if k.startswith("model.")}
        own = state.model.state_dict()
        check_fits({name: value.shape for name, value in model.items()}, own)
    except (safetensors.SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise CheckpointError(
            f"{path} is not a checkpoint of this run ({reason}); nothing was changed: "
            "restore the file, or delete it to train from the start"
        ) from error
    parameters = [p for group in state.optimizer.param_groups for p in group["params"]]
    moments: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        if name.startswith("optimizer."):
            _, index, key = name.split(".", 2)
            moments.setdefault(int(index), {})[key] = cut(value, parameters[int(index)])
    state.model.load_state_dict({name: cut(value, own[name]) for name, value in model.items()})
    load_optimizer(state, moments)
    rest.give(state)
    torch.set_rng_state(rng)
    device = device_of(state.model)
    if device.type == "cuda" and device_rng is not None:
        torch.cuda.set_rng_state(device_rng, device)


def rest_of(state: TrainState) -> dict[str, Any]:
    """All of a state but its tensors, as JSON has it."""
    return {
        "step": state.step,
        "loss_scale": asdict(state.loss_scale),
        "units": units_to_keep(state.model),
        "log": list(state.log),
        "run": state.run,
    }


class Rest(NamedTuple):
    """What `rest_of` has, as the fields of a state; checked."""

    loss_scale: LossScale
    step: int
    units: Kept | None
    log: Mark

    @classmethod
    def of(cls, rest: dict[str, Any], run: str) -> "Rest":
        """From what was read, if it is whole and of this run.

        Raises:
            KeyError, TypeError, ValueError: it is not.
        """
        if rest["run"] != run:
            raise ValueError("it is of another configuration or another text")
        return cls(LossScale(**rest["loss_scale"]), rest["step"], rest["units"], Mark(*rest["log"]))

    def give(self, state: TrainState) -> None:
        """Put the fields in place."""
        state.loss_scale, state.step, state.units, state.log = self


def load_optimizer(state: TrainState, moments: dict[int, dict[str, Tensor]]) -> None:
    """Give the optimizer its states; groups stay as they are, for they follow from the run."""
    own = state.optimizer.state_dict()
    state.optimizer.load_state_dict({**own, "state": moments})


def like(parameter: Tensor, shape: torch.Size, dtype: torch.dtype) -> Tensor:
    """Where a state of a parameter is loaded to: cut as that is, but for single numbers."""
    if not (shape and is_dtensor(parameter)):
        where = parameter.device if shape else torch.device("cpu")
        return torch.empty(shape, dtype=dtype, device=where)
    from torch.distributed.tensor import empty

    made: Tensor = empty(
        shape,
        dtype=dtype,
        device_mesh=parameter.device_mesh,  # type: ignore[attr-defined]
        placements=parameter.placements,  # type: ignore[attr-defined]
    )
    return made


def cut(value: Tensor, parameter: Tensor) -> Tensor:
    """A whole tensor, cut as a parameter is, but for single numbers."""
    if not (value.ndim and is_dtensor(parameter)):
        return value
    from torch.distributed.tensor import distribute_tensor

    mesh, places = parameter.device_mesh, parameter.placements  # type: ignore[attr-defined]
    return distribute_tensor(value.to(parameter.device), mesh, places)


def read_checkpoint(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors of a checkpoint, and the rest of the state, if its checksum is right.

    Raises:
        SafetensorError, OSError, KeyError, TypeError, ValueError: the file is damaged.
    """
    with safetensors.safe_open(path, framework="pt") as file:
        metadata = file.metadata() or {}
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no iterator
    if "state" not in metadata:
        raise ValueError("it lacks the state of a run, or is of an earlier version of unitscale")
    if metadata["crc32"] != str(checksum(tensors, metadata["state"])):
        raise ValueError("its checksum does not match")
    return tensors, json.loads(metadata["state"])


def step_of(path: Path) -> int:
    """After which step a checkpoint was written, as it says; -1 if it says nothing."""
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            return int(json.loads(file.metadata()["state"])["step"])
    except (safetensors.SafetensorError, OSError, KeyError, TypeError, ValueError):
        return -1


def generator_states(model: torch.nn.Module) -> dict[str, Tensor]:
    """Where torch's random number generators are: the CPU's, and that of the model's GPU."""
    device = device_of(model)
    states = {RNG: torch.get_rng_state()}
    if device.type == "cuda":
        states[DEVICE_RNG] = torch.cuda.get_rng_state(device)
    return states


def device_of(model: torch.nn.Module) -> torch.device:
    """Where the parameters of a model are."""
    return next((p.device for p in model.parameters()), torch.device("cpu"))


def check_fits(loaded: Mapping[str, torch.Size], own: Mapping[str, Tensor]) -> None:
    """Raise ValueError unless the shapes of what was loaded are those of the model, by name."""
    if loaded.keys() != own.keys():
        raise ValueError(f"it lacks or adds {min(loaded.keys() ^ own.keys())}")
    for name, value in own.items():
        if loaded[name] != value.shape:
            got, expected = list(loaded[name]), list(value.shape)
            raise ValueError(f"{name} has the shape {got}, and not {expected}")


def checksum(tensors: dict[str, Tensor], rest: str) -> int:
    """CRC-32 of the rest of the state, then of every tensor in order of name.

    Of a tensor the name, dtype and shape count as well as the bytes.
    """
    crc = zlib.crc32(rest.encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        crc = zlib.crc32(f"{name} {tensor.dtype} {list(tensor.shape)}".encode(), crc)
        crc = zlib.crc32(tensor.reshape(-1).view(torch.uint8).numpy().data, crc)
    return crc
