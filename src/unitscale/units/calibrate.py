"""Measure the RMS of every tensor and gradient of a captured graph while it computes a real step.

The graph is interpreted as it is, node by node: the step is an ordinary step of the plain model,
bit for bit. Only numbers are kept, so nothing stays alive longer than it would.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx

from unitscale.formats import FloatFormat
from unitscale.graph.capture import MUTATED, TensorNode
from unitscale.graph.interpret import on_gradient
from unitscale.numerics import amax, flushed_fraction, rms, saturated_fraction
from unitscale.units.assign import ONE, Unit

UNINITIALIZED = ("empty", "empty_like", "empty_strided")
"""Ops whose result holds whatever was in the memory before, a NaN perhaps."""


@dataclass
class Reading:
    """What one measuring step saw of a tensor, on the true values.

    RMS and largest finite magnitude of the value (without infinities and fill values, such as a
    mask's `finfo.min`) and of its gradient (None: no gradient came). The shares are of the
    elements that the recipe's format loses at the unit in force during the step: `saturated`
    above its maximum, `flushed` below its smallest value; None for a tensor that no product
    rounds.
    """

    rms: float | None = None
    amax: float | None = None
    grad_rms: float | None = None
    grad_amax: float | None = None
    saturated: float | None = None
    flushed: float | None = None
    grad_saturated: float | None = None
    grad_flushed: float | None = None

    @property
    def losses(self) -> tuple[float, float]:
        """The larger share saturated and the larger share flushed, of value and gradient."""
        return (
            max(self.saturated or 0.0, self.grad_saturated or 0.0),
            max(self.flushed or 0.0, self.grad_flushed or 0.0),
        )


@dataclass(kw_only=True)
class Watch:
    """Which tensors are rounded by the recipe, in which format, and the units in force.

    A NaN in one of `results` or in the gradient of an input makes a measurement worthless.
    """

    forward: FloatFormat | None = None
    backward: FloatFormat | None = None
    operands: frozenset[fx.Node] = frozenset()
    outputs: frozenset[fx.Node] = frozenset()
    results: frozenset[fx.Node] = frozenset()
    units: Mapping[str, Unit] = field(default_factory=dict)


class Measurement:
    """The readings of one measuring step; gradients arrive during its backward pass.

    Of a graph that runs several times within the step the larger numbers are kept.
    """

    def __init__(self, watch: Watch) -> None:
        self.watch = watch
        self.readings: dict[str, Reading] = {}
        self.handles: list[Any] = []
        self.telling: list[tuple[str, str]] = []  # name, and which of its numbers tells of a NaN

    def read(self, tensor: TensorNode, value: Tensor) -> None:
        """Record a value now, and its gradient when it comes."""
        reading = self.readings.setdefault(tensor.name, Reading())
        if tensor.op.removeprefix("new_") in UNINITIALIZED:
            return
        unit = self.watch.units.get(tensor.name, ONE)
        plain = value.detach()
        reading.rms = larger(reading.rms, rms(plain, skip_fill=True).item())
        reading.amax = larger(reading.amax, largest(plain))
        if tensor.node in self.watch.results:
            self.telling.append((tensor.name, "amax"))
        if tensor.op in ("parameter", "input"):
            self.telling.append((tensor.name, "grad_amax"))
        if tensor.pinned == MUTATED and math.isnan(reading.amax):
            reading.rms = reading.amax = None  # a view of memory that is still to be written to
        if tensor.node in self.watch.operands and self.watch.forward is not None:
            held = plain * 2.0**-unit.s
            saturated = saturated_fraction(held, self.watch.forward).item()
            reading.saturated = larger(reading.saturated, saturated)
            flushed = flushed_fraction(held, self.watch.forward).item()
            reading.flushed = larger(reading.flushed, flushed)
        if value.requires_grad:
            self.handles.append(on_gradient(value, self.gradient_hook(tensor, reading, unit)))

    def gradient_hook(
        self, tensor: TensorNode, reading: Reading, unit: Unit
    ) -> Callable[[Tensor], None]:
        """A hook that records the gradient of one tensor."""
        watch = self.watch

        def record(grad: Tensor) -> None:
            plain = grad.detach().to_dense()  # an embedding's may be sparse
            reading.grad_rms = larger(reading.grad_rms, rms(plain).item())
            reading.grad_amax = larger(reading.grad_amax, largest(plain))
            if tensor.node in watch.outputs and watch.backward is not None:
                held = plain * 2.0**unit.phi
                saturated = saturated_fraction(held, watch.backward).item()
                reading.grad_saturated = larger(reading.grad_saturated, saturated)
                flushed = flushed_fraction(held, watch.backward).item()
                reading.grad_flushed = larger(reading.grad_flushed, flushed)

        return record

    @property
    def has_gradients(self) -> bool:
        """Whether a backward pass has come."""
        return any(reading.grad_rms is not None for reading in self.readings.values())

    def broken_by(self, prefix: str = "") -> str | None:
        """Where a NaN came up that spoils the step, in words; None if there is none.

        A NaN that reaches neither a result nor a parameter's gradient was masked: it is harmless.
        """
        if not any(is_nan(getattr(self.readings[name], half)) for name, half in self.telling):
            return None
        return first_nan({prefix + name: reading for name, reading in self.readings.items()})

    def close(self) -> dict[str, Reading]:
        """Stop listening and hand over the readings."""
        for handle in self.handles:
            handle.remove()
        self.handles.clear()
        return self.readings


def larger(x: float | None, y: float) -> float:
    """The larger of two numbers; NaN if one is NaN, and `y` if there is no `x`."""
    return y if x is None or math.isnan(y) or y > x else x


def largest(x: Tensor) -> float:
    """Largest finite magnitude; NaN if there is a NaN."""
    return amax(torch.where(x.isinf(), 0.0, x)).item()


def first_nan(readings: dict[str, Reading]) -> str | None:
    """Where a NaN came up: the first value that holds one, or the last gradient, or None."""
    values = [f"{name!r}" for name, reading in readings.items() if is_nan(reading.amax)]
    gradients = [f"the gradient of {name!r}" for name, r in readings.items() if is_nan(r.grad_amax)]
    return next(iter(values + gradients[::-1]), None)


def is_nan(number: float | None) -> bool:
    """Whether a measured number is NaN."""
    return number is not None and math.isnan(number)
