"""Checkpoints of several ranks: torch.distributed.checkpoint, and what makes a folder of it whole.

    checkpoints/step-000000500/     in place only when every file in it is on the disk
        .metadata, __0_0.distcp ... torch's, each rank its own; loaded on any number of ranks
        state.json                  the rest of the state, and size and checksum of every file

The two newest are kept. One whose checksums do not match is passed over for the one before.
"""

import json
import os
import shutil
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save

from unitscale.train.checkpoint import (
    Rest,
    TrainState,
    check_fits,
    like,
    load_optimizer,
    rest_of,
)
from unitscale.train.ranks import from_lead
from unitscale.train.run_folder import CHECKPOINT, CHECKPOINTS, CheckpointError, naming
from unitscale.train.spread import Spread

__all__ = ["Sound", "load_sharded", "newest_sound", "save_sharded"]

REST = "state.json"
KEPT = 2
"""Checkpoints that stay: the newest, and the one for when it turns out to be damaged."""


class Sound(NamedTuple):
    """A checkpoint whose checksums are right: its folder, and the rest of its state.

    `passed_over` says why newer ones were not used; empty if there are none.
    """

    path: Path
    rest: Rest
    passed_over: str


def save_sharded(state: TrainState, folder: Path, spread: Spread) -> None:
    """Write the state, each rank its part; the checkpoints before stand until it is whole.

    Every rank has to call it, with the same log mark and units.

    Raises:
        OSError: a rank could not write; on every rank, and nothing was changed.
    """
    place = folder / CHECKPOINTS / f"step-{state.step:09d}"
    temporary = place.with_name(place.name + ".tmp")

    def make_room() -> None:
        for left in place.parent.glob("*.tmp"):  # of a run that was killed in the middle
            shutil.rmtree(left)
        temporary.mkdir(parents=True)

    from_lead(spread, make_room)
    try:
        tensors = {f"model.{name}": value for name, value in state.model.state_dict().items()}
        for index, values in state.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{index}.{name}": value for name, value in values.items()}
        with one_error(f"cannot write {place}"):
            save(tensors, storage_writer=FileSystemWriter(temporary))
        sums: list[Any] = [None] * spread.ranks
        dist.all_gather_object(sums, sums_of(temporary, f"__{spread.rank}_*"))

        def finish() -> None:
            files = sums_of(temporary, ".metadata")
            for one in sums:
                files |= one
            body = json.dumps({"rest": rest_of(state), "files": files}, sort_keys=True)
            text = json.dumps({"body": body, "crc32": zlib.crc32(body.encode())})
            with (temporary / REST).open("w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            sync_folder(temporary)
            if place.exists():  # damaged, or the run would not have made this step again
                shutil.rmtree(place)
            temporary.replace(place)
            sync_folder(place.parent)
            for old in sorted(place.parent.glob("step-*"))[:-KEPT]:
                shutil.rmtree(old)
            (folder / CHECKPOINT).unlink(missing_ok=True)  # of fewer steps, by one process

        from_lead(spread, finish)
    except OSError as error:
        if spread.leads:
            shutil.rmtree(temporary, ignore_errors=True)  # half a checkpoint keeps a disk full
        raise naming(error, place) from error


@contextmanager
def one_error(what: str) -> Iterator[None]:
    """Turn the failures of torch.distributed.checkpoint on some ranks into one OSError."""
    try:
        yield
    except CheckpointException as error:
        rank, (first, _) = min(error.failures.items())
        reason = (str(first).strip().splitlines() or [type(first).__name__])[0]
        raise OSError(f"{what} on rank {rank}: {reason}") from error


def sums_of(folder: Path, pattern: str) -> dict[str, list[int]]:
    """Size and CRC-32 of the files of a folder that match."""
    found = {}
    for path in sorted(folder.glob(pattern)):
        crc = 0
        with path.open("rb") as file:
            while piece := file.read(2**22):
                crc = zlib.crc32(piece, crc)
        found[path.name] = [path.stat().st_size, crc]
    return found


def sync_folder(folder: Path) -> None:
    """Wait until the names in a folder are on the disk."""
    if os.name == "nt":  # which cannot open folders
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def newest_sound(folder: Path, run: str) -> Sound | None:
    """The newest checkpoint of several ranks whose checksums are right; None if there is none.

    Args:
        run: what `TrainState.run` is.
    Raises:
        CheckpointError: there are some, and none is sound.
    """
    reasons = []
    for path in sorted((folder / CHECKPOINTS).glob("step-*"), reverse=True):
        if path.suffix == ".tmp":
            continue
        try:
            rest = Rest.of(checked_rest(path), run)
        except (OSError, KeyError, TypeError, ValueError) as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            reasons.append(f"{path.name} ({reason})")
            continue
        return Sound(path, rest, ", ".join(reasons))
    if reasons:
        raise CheckpointError(
            f"{folder / CHECKPOINTS} holds no sound checkpoint of this run: {', '.join(reasons)}; "
            "nothing was changed: restore one, or delete the folder to train from the start"
        )
    return None


def checked_rest(path: Path) -> dict[str, Any]:
    """The rest of the state of a checkpoint all of whose files are as they were written.

    Raises:
        OSError, KeyError, TypeError, ValueError: it is damaged.
    """
    outer = json.loads((path / REST).read_text(encoding="utf-8"))
    if zlib.crc32(outer["body"].encode()) != outer["crc32"]:
        raise ValueError(f"the checksum of {REST} does not match")
    body = json.loads(outer["body"])
    found = sums_of(path, "*")
    for name, expected in body["files"].items():
        if name not in found:
            raise ValueError(f"it lacks {name}")
        if found[name] != expected:
            raise ValueError(f"the checksum of {name} does not match")
    rest: dict[str, Any] = body["rest"]
    return rest


def load_sharded(state: TrainState, found: Sound, spread: Spread) -> None:
    """Continue from a sound checkpoint, on any number of ranks, sharded or not.

    Raises:
        CheckpointError: it is of another model; `state` is untouched.
    """
    reader = FileSystemReader(found.path)
    entries = reader.read_metadata().state_dict_metadata
    saved = {k: v for k, v in entries.items() if isinstance(v, TensorStorageMetadata)}
    model = state.model.state_dict()
    try:
        shapes = {k.removeprefix("model."): v for k, v in saved.items() if k.startswith("model.")}
        check_fits({name: v.size for name, v in shapes.items()}, model)
    except ValueError as error:
        raise CheckpointError(
            f"{found.path} is not a checkpoint of this run ({error}); nothing was changed"
        ) from error
    parameters = [p for group in state.optimizer.param_groups for p in group["params"]]
    moments: dict[int, dict[str, Tensor]] = {}
    targets = {f"model.{name}": value for name, value in model.items()}
    for key, entry in saved.items():
        if not key.startswith("optimizer."):
            continue
        _, index, name = key.split(".", 2)
        parameter = parameters[int(index)]
        target = like(parameter, torch.Size(entry.size), entry.properties.dtype)
        moments.setdefault(int(index), {})[name] = targets[key] = target
    with warnings.catch_warnings(), one_error(f"cannot read {found.path}"):
        warnings.filterwarnings("ignore", "torch.distributed is disabled")  # as it is meant to be
        load(targets, storage_reader=reader, no_dist=spread.is_alone)
    state.model.load_state_dict(model)
    load_optimizer(state, moments)
    found.rest.give(state)
