"""What the first step says about a run: memory held for backward, tensors in a format's middle."""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from unitscale import units
from unitscale.models.placed import moved_inside
from unitscale.optim.parts import local
from unitscale.record.ranges import OUTSIDE, held, held_grad, share_in_range
from unitscale.train.config import TrainConfig
from unitscale.train.loss_scale import LossScale


@dataclass
class SavedStorages:
    """The distinct storages that autograd saved, apart from those of `excluded` tensors."""

    excluded: set[int]
    found: dict[int, torch.UntypedStorage] = field(default_factory=dict)

    @property
    def bytes(self) -> int:
        """Their total size, however many saved tensors share one."""
        return sum(storage.nbytes() for storage in self.found.values())

    def add(self, tensor: Tensor) -> Tensor:
        """Count the storage of a tensor, and keep it so that its address is not used again.

        A parameter is not counted, wherever it lies: FSDP2 gathers it for the forward pass.
        """
        if isinstance(tensor, torch.nn.Parameter) or isinstance(tensor._base, torch.nn.Parameter):
            return tensor
        storage = tensor.untyped_storage()
        try:
            place = storage.data_ptr()
        except RuntimeError:  # a fake tensor, of a graph that is being captured in the meantime
            return tensor
        if place not in self.excluded:
            self.found[place] = storage
        return tensor


@contextmanager
def saved_for_backward(model: torch.nn.Module) -> Iterator[SavedStorages]:
    """Watch what a forward pass inside the context saves for backward, parameters excluded.

    A forward pass whose result is used keeps all that it saved until backward, so the sum at its
    end is the peak. The watch itself holds the memory until the `SavedStorages` is dropped.
    """
    own = (*model.parameters(), *model.buffers())
    saved = SavedStorages({local(tensor).untyped_storage().data_ptr() for tensor in own})
    with torch.autograd.graph.saved_tensors_hooks(saved.add, lambda tensor: tensor):
        yield saved


def first_look(
    config: TrainConfig, model: torch.nn.Module, inputs: tuple[Tensor, ...]
) -> dict[str, Any]:
    """What the log says of a run before its first step; the model is left as it was.

    A model that is to get units is looked at under them, as a copy: its first step only measures
    them, so what it holds for backward is known from the second.
    """
    if not config.gives_units:
        scale = LossScale.of(config.numerics.loss_scale).scale
        return {"share_in_range": shares_in_range(model, inputs, loss_scale=scale)}
    copy = deepcopy(model)
    devices = {p.device.index or 0 for p in model.parameters() if p.device.type == "cuda"}
    with torch.random.fork_rng(devices=devices):
        recipe = moved_inside(config.numerics, copy)
        units.unit_scale(copy, recipe, inner=config.inner, remeasure="once")
        copy(*inputs).backward()
        with saved_for_backward(copy) as saved:
            copy(*inputs)
    rows = units.rows(copy)
    torch.compiler.reset()  # what was compiled for the copy counts against the model's limit
    return {
        "share_in_range": held_in_range(rows),
        "peak_bytes_saved_for_backward": saved.bytes,
    }


def held_in_range(rows: Sequence[units.UnitRow]) -> dict[str, float | None]:
    """`share_in_range` of what a model holds at its units, from its rows."""
    rows = [row for row in rows if row.rms is not None]
    inner = [row for row in rows if row.op not in OUTSIDE and row.grad_rms is not None]
    return {
        "activations": share_in_range(held(row) for row in inner),
        "gradients": share_in_range(held_grad(row) for row in inner),
        "weights": share_in_range(held(row) for row in rows if row.op == "parameter"),
    }


def shares_in_range(
    model: torch.nn.Module, inputs: tuple[Tensor, ...], *, loss_scale: float
) -> dict[str, float | None]:
    """`share_in_range` of the activations, their gradients, and the weights on one batch.

    Measured without rounding; a gradient counts as it is held, so multiplied by the loss scale.
    Activations are the tensors between ops that a gradient reaches: position tables and the steps
    within one unit-scaled op are not.
    """
    rows = [
        row
        for row in units.measure(model, *inputs)
        if row.op not in OUTSIDE and row.grad_rms is not None and row.reason != units.INSIDE
    ]
    return {
        "activations": share_in_range(row.rms for row in rows),
        "gradients": share_in_range(
            None if row.grad_rms is None else row.grad_rms * loss_scale for row in rows
        ),
        "weights": share_in_range(rms(parameter) for parameter in model.parameters()),
    }


def rms(tensor: Tensor) -> float:
    """Root of the mean square."""
    return math.sqrt(tensor.detach().double().square().mean().item())
