"""What a unit-scaled model remembers: its recipe, its units, and the graphs that it runs.

A `Session` is a torch.compile backend. Every graph that Dynamo captures becomes an `Executable`,
which measures at the steps of the schedule and otherwise runs the rewritten graph.
"""

import warnings
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import asdict, replace
from typing import Any, Literal, get_args

import torch
from torch import fx, nn

from unitscale.graph.capture import BOUNDARY, TensorNode, drop_idle_calls
from unitscale.graph.expand import expand
from unitscale.graph.inplace import return_new
from unitscale.graph.place import Places, argument_names
from unitscale.recipes import Recipe
from unitscale.units.assign import ONE, Unit, assign, is_rounding_error, reason
from unitscale.units.calibrate import Reading
from unitscale.units.executable import Executable
from unitscale.units.ops import INSIDE, is_inside_scaled_op
from unitscale.units.replicas import exchange, groups_of
from unitscale.units.row import UnitRow

Schedule = Literal["geometric", "drift", "once", "never"]
Remeasure = Schedule | Collection[int]

DRIFT_INTERVAL = 64
"""Steps between two looks of the `drift` schedule: a measuring step is about twice as slow."""

SATURATED_WORTH_A_WARNING = 0.01
FLUSHED_WORTH_A_WARNING = 0.25
"""Shares of a tensor's elements that a run must not lose in silence; small ones matter less."""


def is_due(step: int, remeasure: Remeasure) -> bool:
    """Whether the graph's training step number `step` (from 0) is a measuring step.

    geometric: 0, 1, 2, 4, 8, ...; drift: those and every 64th; once: 0; never: none; else the
    steps of the collection.

    Raises:
        ValueError: another word.
    """
    if not isinstance(remeasure, str):
        return step in remeasure
    if remeasure not in get_args(Schedule):
        raise ValueError(
            f"remeasure is {remeasure!r}; expected one of {get_args(Schedule)} or a list of steps."
        )
    geometric = step & (step - 1) == 0
    return {
        "geometric": geometric,
        "drift": geometric or step % DRIFT_INTERVAL == 0,
        "once": step == 0,
        "never": False,
    }[remeasure]


class Session:
    """A torch.compile backend that runs graphs under a recipe, at units if `scale`.

    Args:
        recipe: how the operands of products are rounded.
        scale: hold every tensor at its unit.
        remeasure: when to measure, see `is_due`.
        inner: the torch.compile backend that gets the rewritten graph.
        factor_dtype: dtype of the vector of factors.
        model: what is compiled, if that is known: its submodules tell graphs apart.
    """

    def __init__(
        self,
        recipe: Recipe,
        *,
        scale: bool,
        remeasure: Remeasure = "geometric",
        inner: str | Callable[..., Any] = "inductor",
        factor_dtype: torch.dtype = torch.float32,
        model: nn.Module | None = None,
    ) -> None:
        is_due(0, remeasure)  # refuses an unknown word now, not at the first step
        self.recipe, self.scale, self.remeasure, self.inner = recipe, scale, remeasure, inner
        self.factor_dtype = factor_dtype
        self.units: dict[str, Unit] = {}
        self.readings: dict[str, Reading] = {}
        self.steps: dict[str, int] = {}
        self.warned: set[str] = set()
        self.signatures: dict[tuple[str, ...], int] = {}
        self.evaluated: set[str] = set()  # tensors that only graphs of evaluation have
        self.stale: set[str] = set()  # those of them last measured before training was
        self.executables: list[Executable] = []
        self.measure_next = False
        self.places, self.arguments = Places(model), argument_names(model)
        self.calls = 0  # of the whole model
        self.shared_steps = 0  # training calls together with other processes

    def __call__(self, module: fx.GraphModule, example_inputs: Sequence[Any]) -> "Executable":
        """The torch.compile backend: one captured graph in, a callable out."""
        executable = Executable(self, module, example_inputs)
        self.executables.append(executable)
        return executable

    def begin_call(self) -> None:
        """Note a call of the whole model; exchange what the last one measured with its replicas.

        Data-parallel processes make the same training calls, whatever graphs they run in them.
        """
        self.calls += 1
        model = self.places.model()
        if model is None or not self.scale or not torch.is_grad_enabled():
            return
        groups = groups_of(model)
        if not groups:
            return
        if self.shared_steps and is_due(self.shared_steps - 1, self.remeasure):
            self.collect()
            self.readings = exchange(self.readings, groups)
            self.assign(self.readings)
        self.shared_steps += 1

    def __deepcopy__(self, memo: dict[int, Any]) -> None:
        """A copy of a compiled model is a plain model, as torch has it."""

    def __reduce__(self) -> tuple[Callable[[], None], tuple[()]]:
        return type(None), ()

    @staticmethod
    def prepare(module: fx.GraphModule) -> None:
        """Write a captured graph in the form whose tensors have units, equal to it to the bit."""
        expand(module.graph)
        drop_idle_calls(module.graph)
        return_new(module.graph)

    def tensors(self) -> Iterator[tuple[str, TensorNode]]:
        """Every tensor of every graph that ran, with its name in the whole model."""
        for executable in self.executables:
            for place in executable.places.values():
                for tensor in executable.tensors.values():
                    yield place.prefix + tensor.name, tensor

    def distinguish(self, tensors: dict[fx.Node, TensorNode]) -> dict[fx.Node, TensorNode]:
        """Give the tensors outside of every submodule names that no other graph uses.

        Graphs that compute the same ops there (recompiles, evaluation) keep the same names.
        """
        signature = tuple(tensor.name for tensor in tensors.values() if tensor.at_root)
        index = self.signatures.setdefault(signature, len(self.signatures))
        if index == 0:
            return tensors
        return {
            node: replace(tensor, name=f"graph{index}.{tensor.name}") if tensor.at_root else tensor
            for node, tensor in tensors.items()
        }

    def request_measurement(self) -> None:
        """Make the next step of every graph a measuring step."""
        for executable in self.executables:
            executable.request()
        self.measure_next = True

    def collect(self) -> None:
        """Take over the readings of measuring steps whose backward pass is done."""
        for executable in self.executables:
            executable.collect()

    def state_dict(self) -> dict[str, Any]:
        """The units, the graphs that name them and the place in the schedule, as JSON has them."""
        self.collect()
        return {
            "graphs": list(self.signatures),
            "steps": dict(self.steps),
            "units": {name: asdict(unit) for name, unit in self.units.items()},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take the units of a `state_dict` as if they had been measured here."""
        self.units |= {name: Unit(**unit) for name, unit in state["units"].items()}
        self.steps |= state["steps"]
        for signature in map(tuple, state["graphs"]):
            self.signatures.setdefault(signature, len(self.signatures))
        for name in state["units"]:
            self.readings.setdefault(name, Reading())
        for executable in self.executables:
            executable.update()

    def is_due(self, step: int) -> bool:
        """Whether the training step of this number measures."""
        return is_due(step, self.remeasure)

    def lacks(self, name: str) -> bool:
        """Whether evaluation is to measure this tensor: it never was, or training has been since.

        What training measures is its own to measure.
        """
        return name not in self.readings or name in self.stale

    def adopt(
        self, readings: dict[str, Reading], *, training: bool, broken: str | None = None
    ) -> None:
        """Keep readings, and set units by them; not those of a step that is `broken` by a NaN.

        Raises:
            ValueError: a NaN in the first step that is measured.
        """
        if broken is not None:
            message = f"units were not measured: {broken} holds NaN; look at the step's inputs."
            if not self.readings:
                raise ValueError(message)
            warnings.warn(message + " The earlier units stay.", stacklevel=2)
            return
        if training:
            self.evaluated -= readings.keys()
            self.stale = set(self.evaluated)
        else:
            readings = {name: r for name, r in readings.items() if self.lacks(name)}
            self.evaluated |= readings.keys()
            self.stale -= readings.keys()
        if self.readings or not self.scale:
            self.warn_of_losses(readings)
        self.readings |= readings
        self.assign(readings)

    def assign(self, readings: dict[str, Reading]) -> None:
        """Set the units of some tensors by what was read of them."""
        parameters = {name for name, tensor in self.tensors() if tensor.is_parameter}
        grads = {name: self.readings[name].grad_rms for name in parameters & self.readings.keys()}
        largest = max((rms for rms in grads.values() if rms is not None), default=0.0)
        for name, reading in readings.items() if self.scale else ():
            noise = is_rounding_error(grads.get(name), largest)
            self.units[name] = assign(
                reading.rms, None if noise else reading.grad_rms, reading.amax
            )
        for executable in self.executables:
            executable.update()

    def warn_of_losses(self, readings: dict[str, Reading]) -> None:
        """Say once which tensors the recipe's formats do not hold at the units in force."""
        for name, reading in readings.items():
            saturated, flushed = reading.losses
            worrying = saturated > SATURATED_WORTH_A_WARNING or flushed > FLUSHED_WORTH_A_WARNING
            if worrying and name not in self.warned:
                self.warned.add(name)
                warnings.warn(
                    f"{self.recipe.name}: of {name!r} or its gradient {saturated:.1%} saturated "
                    f"and {flushed:.1%} went to zero, at the scale in force until this step.",
                    stacklevel=2,
                )

    def rows(self) -> list[UnitRow]:
        """One row per tensor of every graph, in order of first appearance."""
        self.collect()
        rows: dict[str, UnitRow] = {}
        for name, tensor in self.tensors():
            rows.setdefault(name, self.row(name, tensor))
        return list(rows.values())

    def row(self, name: str, tensor: TensorNode) -> UnitRow:
        """The row of one tensor."""
        reading = self.readings.get(name, Reading())
        held = tensor.pinned in (None, BOUNDARY)
        unit = self.units.get(name, ONE) if held else ONE
        inside = INSIDE if is_inside_scaled_op(tensor.node) and not self.scale else None
        why = tensor.pinned or inside or reason(reading.rms, reading.grad_rms, reading.amax)
        if reading.rms is None:
            why = why or "not measured yet"
        return UnitRow.of(name, tensor.op, unit, reading, why)
