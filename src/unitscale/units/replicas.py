"""Data-parallel copies of a model agree on its units: each measures its share, and all get the RMS.

Units that differ would be correct, because a graph sends true gradients out; but then a run would
depend on how its batch is split, and a checkpoint would hold the units of one process.
"""

from collections.abc import Iterable
from functools import partial
from math import inf, isnan
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from unitscale.graph.engine import active_ddp, fsdp_mesh
from unitscale.units.reading import Reading, as_numbers, merged
from unitscale.units.store import UnitStore

__all__ = ["agree", "exchange", "groups_of"]


def groups_of(model: nn.Module) -> list[Any]:
    """The process groups that share the batch of this call: of DDP, or of FSDP2's mesh.

    None outside of DDP's forward, so that a process may call the model that it wraps by itself.
    """
    if not dist.is_available() or not dist.is_initialized() or dist.get_world_size() == 1:
        return []
    wrapper = active_ddp()
    if wrapper is not None:
        return [wrapper.process_group]
    mesh = fsdp_mesh(model)
    if mesh is not None:
        return list(mesh.get_all_groups())
    from torch.distributed.tensor import DTensor  # slow to import, and loaded if there is one

    sharded = (p for p in model.parameters() if isinstance(p, DTensor))
    first = next(sharded, None)
    return [] if first is None else list(first.device_mesh.get_all_groups())


def agree(store: UnitStore, groups: Iterable[Any]) -> None:
    """Give all processes of some groups the units that they measured together, and their requests.

    Each process has to call it before each training call. If one of them has measured since the
    last time, by the schedule, a request or a graph of its own, then all exchange what they read.
    """
    groups = list(groups)
    measured, requested = bool(store.unshared), store.requested
    try:
        for group in groups:
            measured, requested = any_of((measured, requested), group)
        store.requested = requested
        if measured:
            store.share(partial(exchange, groups=groups))
        if store.amaxes.needed:
            store.amaxes.settle(partial(largest, groups=groups))
    except RuntimeError as error:  # of torch.distributed: a timeout, sizes that do not fit
        raise RuntimeError(
            f"the processes of a scaled model could not agree on its units before training call "
            f"{store.step} of this one: another may have ended, or have made fewer calls, or more, "
            "because of an exception that it caught. Each process has to make the same training "
            f"calls. torch.distributed says: {error}"
        ) from error


def any_of(flags: tuple[bool, bool], group: Any) -> tuple[bool, bool]:
    """Whether each flag is set in any process of a group."""
    device = "cuda" if dist.get_backend(group) == "nccl" else "cpu"
    found = torch.tensor(flags, dtype=torch.int32, device=device)
    dist.all_reduce(found, op=dist.ReduceOp.MAX, group=group)
    first, second = found.tolist()
    return bool(first), bool(second)


def exchange(readings: dict[str, Reading], groups: Iterable[Any]) -> dict[str, Reading]:
    """The readings of all processes of some groups as one; each has to call it."""
    for group in groups:
        found: list[Any] = [None] * dist.get_world_size(group)
        dist.all_gather_object(found, as_numbers(readings), group=group)
        readings = merged(found)
    return readings


def largest(amaxes: list[dict[str, float]], groups: Iterable[Any]) -> list[dict[str, float]]:
    """The amaxes of some steps, each the largest of all processes of some groups.

    Steps are matched from the first on: processes train in step, or the collective would wait. NaN
    counts as infinite, so that no process keeps what another one refuses.
    """
    for group in groups:
        found: list[Any] = [None] * dist.get_world_size(group)
        dist.all_gather_object(found, amaxes, group=group)
        amaxes = [
            {
                name: max(inf if isnan(x := step.get(name, 0.0)) else x for step in steps)
                for name in steps[0]
            }
            for steps in zip(amaxes, *found, strict=False)
        ]
    return amaxes
