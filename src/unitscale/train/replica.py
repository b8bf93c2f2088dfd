"""The model of a run as its ranks share it: copies that average, or shards."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.nn.parallel import DistributedDataParallel

from unitscale.train.spread import Spread

__all__ = ["copied", "shard_", "synchronizing"]


def shard_(model: nn.Module, spread: Spread, device: torch.device) -> None:
    """Shard a model's parameters over all ranks, by FSDP2: each layer of a stack, and the rest.

    The parameters are other objects afterwards; an optimizer has to be made after it.
    """
    mesh = init_device_mesh(device.type, (spread.ranks,))
    for layer in layers_of(model):
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)


def layers_of(model: nn.Module) -> list[nn.Module]:
    """The layers that are gathered one at a time: those of the outermost stacks.

    A layer that shares a parameter with what is outside of it stays in the group of the model.
    """
    found = []
    for child in model.children():
        if isinstance(child, nn.ModuleList | nn.Sequential) and len(child) > 1:
            found += [layer for layer in child if any(True for _ in layer.parameters())]
        else:
            found += layers_of(child)
    uses: dict[nn.Parameter, int] = {}
    for _, parameter in model.named_parameters(remove_duplicate=False):
        uses[parameter] = uses.get(parameter, 0) + 1
    return [
        layer
        for layer in found
        if all(
            uses[p]
            == sum(p is other for _, other in layer.named_parameters(remove_duplicate=False))
            for p in layer.parameters()
        )
    ]


def copied(model: nn.Module) -> DistributedDataParallel:
    """A model as a copy whose gradients are the mean over ranks.

    Parameters without a gradient are looked for: an existing model may have some. It also keeps
    DDP from forming its buckets anew after the first step. A resumed run would form them one step
    later than the run that it goes on, and sums over more than two ranks would have other bits.
    """
    return DistributedDataParallel(model, find_unused_parameters=True)


@contextmanager
def synchronizing(model: nn.Module, *, is_last: bool) -> Iterator[None]:
    """Exchange gradients in the backward pass inside, or keep their sum where more are to come."""
    if isinstance(model, FSDPModule):
        model.set_requires_gradient_sync(is_last)
        yield
    elif isinstance(model, DistributedDataParallel) and not is_last:
        with model.no_sync():
            yield
    else:
        yield
