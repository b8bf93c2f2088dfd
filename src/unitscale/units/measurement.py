"""The numbers of one measuring step: which tensors are watched, and what is read of them."""

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor, fx

from unitscale.formats import FloatFormat
from unitscale.graph.capture import MUTATED, TensorNode
from unitscale.graph.engine import modes_set_aside
from unitscale.numerics import survey
from unitscale.units.assign import MAX_EXPONENT
from unitscale.units.reading import Reading, first_nan, is_nan, larger

__all__ = ["Limits", "Measurement", "Watch"]

UNINITIALIZED = ("empty", "empty_like", "empty_strided")
"""Ops whose result holds whatever was in the memory before, a NaN perhaps."""


class Limits(NamedTuple):
    """What bounds the unit of a tensor, see `assign.assign`.

    Args:
        ceiling, grad_ceiling: the largest magnitude that its value and gradient may be held at.
        limit: the largest exponent of a unit.
    """

    ceiling: float | None = None
    grad_ceiling: float | None = None
    limit: int = MAX_EXPONENT


@dataclass(kw_only=True)
class Watch:
    """Which tensors are rounded by the recipe, and in which format.

    Args:
        operands: the operands of rounded products, and the format that each is cast to as it is
            held; None of one with scales of its own.
        outputs: the results of rounded products, and likewise the format of their gradients.
        results: a NaN in one of them, or in the gradient of an input, makes a step worthless.
        boundary: operands that come from outside of the graph.
        limits: by name, what bounds the unit of a tensor.
    """

    operands: Mapping[fx.Node, FloatFormat | None] = field(default_factory=dict)
    outputs: Mapping[fx.Node, FloatFormat | None] = field(default_factory=dict)
    results: frozenset[fx.Node] = frozenset()
    boundary: frozenset[fx.Node] = frozenset()
    limits: Mapping[str, Limits] = field(default_factory=dict)

    def limits_of(self, name: str) -> "Limits":
        """What bounds the unit of a tensor."""
        return self.limits.get(name, Limits())


class Measurement:
    """The readings of one measuring step, on the true values; gradients arrive in backward.

    Of a graph that runs several times within the step the larger numbers are kept.

    Args:
        watch: what is rounded.
        prefix: what the names of the graph's tensors lack, see `graph.place`.
        call: the number of the model's call that it belongs to.
        blank: halves of units, ("s" or "phi", name as the graph has it), that steps since the last
            measuring step ran without: what those lost at a unit of 1 is what is told of them.
        arrive: called once, when the first gradient comes. Until then only the autograd graph of
            the step keeps this object: a step whose backward pass never comes leaves nothing.
    """

    def __init__(
        self,
        watch: Watch,
        *,
        prefix: str = "",
        call: int = 0,
        blank: Collection[tuple[str, str]] = (),
        arrive: Callable[["Measurement"], None] | None = None,
    ) -> None:
        self.watch, self.call, self.arrive = watch, call, arrive
        self.prefix, self.blank = prefix, blank
        self.readings: dict[str, Reading] = {}
        self.telling: list[tuple[str, str]] = []  # name, and which of its numbers tells of a NaN

    def read(self, tensor: TensorNode, held: Tensor, log2: int, operand_log2: int | None) -> None:
        """Record a value, which is `held * 2**log2`; an operand is rounded at `2**operand_log2`."""
        reading = self.readings.setdefault(tensor.name, Reading())
        limits = self.watch.limits_of(tensor.name)
        reading.ceiling, reading.grad_ceiling, reading.limit = limits
        if tensor.op.removeprefix("new_") in UNINITIALIZED:
            return
        is_operand = tensor.node in self.watch.operands and operand_log2 is not None
        fmt = self.watch.operands[tensor.node] if is_operand else None
        with torch.no_grad(), modes_set_aside():
            unit = 0 if ("s", tensor.name) in self.blank else operand_log2 or 0
            shift = log2 - unit if is_operand else 0
            found = survey(held.detach(), format=fmt, log2_scale=shift)
        true = 2.0**log2
        rms, amax = found.rms * true, found.amax * true
        if tensor.node in self.watch.results:
            self.telling.append((tensor.name, "amax"))
        if tensor.op in ("parameter", "input"):
            self.telling.append((tensor.name, "grad_amax"))
        if tensor.pinned == MUTATED and math.isnan(amax):
            return  # a view of memory that is still to be written to
        reading.rms, reading.amax = larger(reading.rms, rms), larger(reading.amax, amax)
        reading.saturated = larger(reading.saturated, found.saturated)
        reading.flushed = larger(reading.flushed, found.flushed)

    def read_gradient(self, tensor: TensorNode, carried: Tensor, log2: int) -> None:
        """Record a gradient, which is carried as `2**log2` times the true one."""
        if self.arrive is not None:
            self.arrive(self)
            self.arrive = None
        reading = self.readings.setdefault(tensor.name, Reading())
        fmt = self.watch.outputs.get(tensor.node)
        plain = carried.detach().to_dense()  # an embedding's may be sparse
        with torch.no_grad(), modes_set_aside():
            shift = -log2 if ("phi", tensor.name) in self.blank and fmt is not None else 0
            found = survey(plain, format=fmt, log2_scale=shift)
        reading.grad_rms = larger(reading.grad_rms, found.rms * 2.0**-log2)
        reading.grad_amax = larger(reading.grad_amax, found.amax * 2.0**-log2)
        reading.grad_saturated = larger(reading.grad_saturated, found.saturated)
        reading.grad_flushed = larger(reading.grad_flushed, found.flushed)

    @property
    def full_readings(self) -> dict[str, Reading]:
        """The readings by their names in the whole model."""
        return {self.prefix + name: reading for name, reading in self.readings.items()}

    @property
    def broken_by(self) -> str | None:
        """Where a NaN came up that spoils the step, in words; None if there is none.

        A NaN that reaches neither a result nor a parameter's gradient was masked: it is harmless.
        """
        if not any(is_nan(getattr(self.readings[name], half)) for name, half in self.telling):
            return None
        return first_nan(self.full_readings)
