"""What a unit-scaled model remembers: its recipe, its units, and the graphs that it runs.

A `Session` is a torch.compile backend. Every graph that Dynamo captures becomes an `Executable`,
which measures at the steps of the schedule and otherwise runs the rewritten graph.
"""

import warnings
import zlib
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import asdict, replace
from typing import Any, Literal, get_args

import torch
from torch import Tensor, fx
from torch._dynamo import lookup_backend

from unitscale.numerics.capture import BOUNDARY, TensorNode, drop_idle_calls, tensor_nodes
from unitscale.numerics.interpret import ObservingInterpreter
from unitscale.recipes import Recipe
from unitscale.units.assign import ONE, Unit, assign, is_rounding_error, reason
from unitscale.units.calibrate import Measurement, Reading, Watch, first_nan
from unitscale.units.expand import expand
from unitscale.units.inplace import return_new
from unitscale.units.recompute import recomputing
from unitscale.units.report import UnitRow
from unitscale.units.rewrite import is_rounded_product, rewrite
from unitscale.units.rules import INSIDE, is_inside_scaled_op, operands, rule_of

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
    """

    def __init__(
        self,
        recipe: Recipe,
        *,
        scale: bool,
        remeasure: Remeasure = "geometric",
        inner: str | Callable[..., Any] = "inductor",
        factor_dtype: torch.dtype = torch.float32,
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

    def __call__(self, module: fx.GraphModule, example_inputs: Sequence[Any]) -> "Executable":
        """The torch.compile backend: one captured graph in, a callable out."""
        executable = Executable(self, module, example_inputs)
        self.executables.append(executable)
        return executable

    def __deepcopy__(self, memo: dict[int, Any]) -> None:
        """A copy of a compiled model is a plain model, as torch has it."""

    def __reduce__(self) -> tuple[Callable[[], None], tuple[()]]:
        return type(None), ()

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
            executable.requested = True
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

    def lacks(self, name: str) -> bool:
        """Whether evaluation is to measure this tensor: it never was, or training has been since.

        What training measures is its own to measure.
        """
        return name not in self.readings or name in self.stale

    def adopt(self, readings: dict[str, Reading], *, training: bool) -> None:
        """Keep readings, and set units by them; those of a step with a NaN are not kept.

        Raises:
            ValueError: a NaN in the first step that is measured.
        """
        broken = first_nan(readings)
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
        parameters = {
            t.name for e in self.executables for t in e.tensors.values() if t.is_parameter
        }
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
        for executable in self.executables:
            for tensor in executable.tensors.values():
                rows.setdefault(tensor.name, self.row(tensor))
        return list(rows.values())

    def row(self, tensor: TensorNode) -> UnitRow:
        """The row of one tensor."""
        reading = self.readings.get(tensor.name, Reading())
        held = tensor.pinned in (None, BOUNDARY)
        unit = self.units.get(tensor.name, ONE) if held else ONE
        inside = INSIDE if is_inside_scaled_op(tensor.node) and not self.scale else None
        why = tensor.pinned or inside or reason(reading.rms, reading.grad_rms, reading.amax)
        if reading.rms is None:
            why = why or "not measured yet"
        return UnitRow.of(tensor.name, tensor.op, unit, reading, why)


def refuse_nested(tensors: Iterable[TensorNode]) -> None:
    """Say which tensor can neither be measured nor rounded."""
    for tensor in tensors:
        if tensor.node.meta["example_value"].is_nested:
            raise TypeError(
                f"unit_scale: {tensor.name!r} is a nested tensor, which has neither an RMS nor a "
                "rounding; pad it to a rectangle, or leave the model that takes it unscaled."
            )


class Executable:
    """One captured graph: measured at some steps, run as rewritten at the others."""

    def __init__(
        self, session: Session, module: fx.GraphModule, example_inputs: Sequence[Any]
    ) -> None:
        self.session, self.module = session, module
        expand(module.graph)
        drop_idle_calls(module.graph)
        return_new(module.graph)
        self.tensors = session.distinguish(tensor_nodes(module.graph))
        if session.scale or session.recipe.rounds:
            refuse_nested(self.tensors.values())
        self.training = torch.is_grad_enabled() and any(
            isinstance(x, Tensor) and x.requires_grad for x in example_inputs
        )
        names = "\n".join(tensor.name for tensor in self.tensors.values())
        self.key = f"{zlib.crc32(names.encode()):08x}"
        self.requested = session.measure_next
        self.pending: Measurement | None = None
        rewritten = rewrite(module, self.tensors, session.recipe, scale=session.scale)
        self.factors = rewritten.factors
        self.device = next((x.device for x in example_inputs if isinstance(x, Tensor)), None)
        self.update()
        self.run = self.compile(rewritten.module, example_inputs)

    def compile(self, module: fx.GraphModule, inputs: Sequence[Any]) -> Callable[..., Any]:
        """Hand the rewritten graph to the inner compiler."""
        inner = self.session.inner
        if inner == "eager":
            return recomputing(module).forward
        compiler = lookup_backend(inner) if isinstance(inner, str) else inner
        return compiler(module, [self.vector, *inputs])

    def __call__(self, *args: Any) -> Any:
        """One step: measure if it is due, else run the rewritten graph."""
        if self.training:
            self.collect()  # of this graph alone: others may be in the middle of a backward pass
        else:
            self.session.collect()
        if self.is_due():
            if self.pending is not None:
                self.pending.close()  # its backward pass never came
            self.pending = Measurement(self.watch())
            self.requested = False
            return ObservingInterpreter(self.module, self.tensors, self.pending.read).run(*args)
        self.count_step()
        return self.run(self.vector, *args)

    def count_step(self) -> None:
        """Count a training step; a recompile of the same graph goes on with its count."""
        if self.training:
            self.session.steps[self.key] = self.session.steps.get(self.key, 0) + 1

    def is_due(self) -> bool:
        """Whether the next step measures: the schedule or a request says so.

        A graph that runs without gradients (evaluation) uses the units of the training graphs. If
        it has a tensor that none of them has, it measures its values once after each time that
        training did.
        """
        if self.requested or self.pending is not None:
            return True
        if self.training:
            return is_due(self.session.steps.get(self.key, 0), self.session.remeasure)
        wants = self.session.scale and self.session.remeasure != "never"
        visible = (tensor.name for tensor in self.tensors.values() if tensor.is_visible)
        return wants and any(map(self.session.lacks, visible))

    def collect(self) -> None:
        """Take over a finished measurement; one whose backward pass never came is taken again."""
        if self.pending is None or (self.training and not self.pending.has_gradients):
            return
        readings = self.pending.close()
        self.pending = None
        self.count_step()
        try:
            self.session.adopt(readings, training=self.training)
        except ValueError:
            self.requested = True  # these were no units: measure again
            raise

    def update(self) -> None:
        """Write the numbers of the factors under the session's units into a new vector.

        A new one, because a backward pass still to come holds on to the old.
        """
        values = [2.0 ** factor.log2(self.session.units) for factor in self.factors]
        self.vector = torch.tensor(values, dtype=self.session.factor_dtype, device=self.device)

    def watch(self) -> Watch:
        """What the recipe rounds in this graph."""
        recipe = self.session.recipe
        products = [n for n in self.tensors if is_rounded_product(n, recipe)]
        taken: Iterable[fx.Node] = (x for n in products for x in operands(n, rule_of(n)))
        return Watch(
            forward=recipe.forward,
            backward=recipe.backward,
            operands=frozenset(taken),
            outputs=frozenset(products),
            units=self.session.units,
        )
