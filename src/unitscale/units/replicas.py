"""Data-parallel copies of a model agree on its units: each measures its share, and all get the RMS.

Units that differ would be correct, because a graph sends true gradients out; but then a run would
depend on how its batch is split, and a checkpoint would hold the units of one process.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import Any

import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from unitscale.units.calibrate import Reading

__all__ = ["exchange", "groups_of", "merged"]


def groups_of(model: nn.Module) -> list[Any]:
    """The process groups that share the batch of this call: of DDP, or of FSDP2's mesh.

    None outside of DDP's forward, so that a process may call the model that it wraps by itself.
    """
    if not dist.is_available() or not dist.is_initialized() or dist.get_world_size() == 1:
        return []
    wrapper = DistributedDataParallel._get_active_ddp_module()
    if wrapper is not None:
        return [wrapper.process_group]
    from torch.distributed.tensor import DTensor  # slow to import, and loaded if there is one

    sharded = (p for p in model.parameters() if isinstance(p, DTensor))
    first = next(sharded, None)
    return [] if first is None else list(first.device_mesh.get_all_groups())


def exchange(readings: dict[str, Reading], groups: Iterable[Any]) -> dict[str, Reading]:
    """The readings of all processes of some groups as one; each has to call it."""
    for group in groups:
        mine = {name: asdict(reading) for name, reading in readings.items()}
        found: list[Any] = [None] * dist.get_world_size(group)
        dist.all_gather_object(found, mine, group=group)
        readings = merged(found)
    return readings


def merged(found: Sequence[dict[str, dict[str, float | None]]]) -> dict[str, Reading]:
    """The readings of several processes, by name and field, as one.

    An RMS is that of all shares together, which are of one size; of other numbers the largest.
    Processes may have measured different tensors, in graphs of their own.
    """
    names = dict.fromkeys(name for readings in found for name in readings)
    return {name: merge([r[name] for r in found if name in r]) for name in names}


def merge(readings: Sequence[dict[str, float | None]]) -> Reading:
    """One reading of the shares of a tensor."""
    result: dict[str, float | None] = {}
    for field in asdict(Reading()):
        values = [value for r in readings if (value := r[field]) is not None]
        if field.endswith("rms"):
            result[field] = math.hypot(*values) / math.sqrt(len(values)) if values else None
        else:
            result[field] = max(values, default=None)
    return Reading(**result)
