"""A captured graph that runs: measured at some steps, as rewritten at the others."""

import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx
from torch._dynamo import lookup_backend

from unitscale.graph.capture import TensorNode, tensor_nodes
from unitscale.graph.interpret import Observer, ObservingInterpreter
from unitscale.graph.place import parameter_slots
from unitscale.graph.recompute import recomputing
from unitscale.units.assign import Unit
from unitscale.units.calibrate import Measurement, Watch
from unitscale.units.ops import operands, rule_of
from unitscale.units.products import is_rounded_product
from unitscale.units.rewrite import rewrite

if TYPE_CHECKING:
    from unitscale.units.session import Session

__all__ = ["Executable", "Place"]


@dataclass(kw_only=True)
class Place:
    """What a graph remembers for one submodule that it runs for.

    Args:
        prefix: what the names of its tensors lack, see `numerics.place`.
        key: under which its training steps are counted.
        requested: whether its next step measures, whatever the schedule.
        vector: the numbers of the factors under the units in force.
        pending: a measurement that waits for its backward pass.
        call: the call of the whole model that it began in.
    """

    prefix: str
    key: str
    requested: bool
    vector: Tensor
    pending: Measurement | None = None
    call: int = 0


def refuse_nested(tensors: Iterable[TensorNode]) -> None:
    """Say which tensor can neither be measured nor rounded."""
    for tensor in tensors:
        if tensor.node.meta["example_value"].is_nested:
            raise TypeError(
                f"unit_scale: {tensor.name!r} is a nested tensor, which has neither an RMS nor a "
                "rounding; pad it to a rectangle, or leave the model that takes it unscaled."
            )


class Executable:
    """One captured graph, and the places of the model that it runs for: one, but for breaks.

    With an `observer` every later step is the plain one, shown to it.
    """

    def __init__(
        self, session: "Session", module: fx.GraphModule, example_inputs: Sequence[Any]
    ) -> None:
        self.session, self.module = session, module
        session.prepare(module)
        self.tensors = session.distinguish(tensor_nodes(module.graph, session.arguments))
        if session.scale or session.recipe.rounds:
            refuse_nested(self.tensors.values())
        self.training = torch.is_grad_enabled() and any(
            isinstance(x, Tensor) and x.requires_grad for x in example_inputs
        )
        self.slots = parameter_slots(module.graph)
        self.places: dict[str, Place] = {}
        rewritten = rewrite(module, self.tensors, session.recipe, scale=session.scale)
        self.factors = rewritten.factors
        self.device = next((x.device for x in example_inputs if isinstance(x, Tensor)), None)
        self.run = self.compile(rewritten.module, example_inputs)
        self.observer: Observer | None = None

    def compile(self, module: fx.GraphModule, inputs: Sequence[Any]) -> Callable[..., Any]:
        """Hand the rewritten graph to the inner compiler."""
        inner = self.session.inner
        if inner == "eager":
            return recomputing(module).forward
        compiler = lookup_backend(inner) if isinstance(inner, str) else inner
        return compiler(module, [self.vector(""), *inputs])

    def __call__(self, *args: Any) -> Any:
        """One step: measure if it is due, else run the rewritten graph."""
        place = self.place(args)
        if self.observer is not None:
            return self.show(place, self.observer, args)
        if self.training:
            self.collect_at(place)  # that alone: others may be in the middle of a backward pass
        else:
            self.session.collect()
        if not self.is_due(place):
            self.count_step(place)
            return self.run(place.vector, *args)
        calls = self.session.calls
        if place.pending is not None and (calls == 0 or place.call != calls):
            place.pending.close()  # its backward pass never came
            place.pending = None
        if place.pending is None:  # else this is the second call within one of the model
            place.pending, place.call = Measurement(self.watch(place.prefix)), calls
        place.requested = False
        return ObservingInterpreter(self.module, self.tensors, place.pending.read).run(*args)

    def show(self, place: Place, observer: Observer, inputs: Sequence[Any]) -> Any:
        """A plain step, seen by an observer that knows the tensors by their names in the model."""

        def observe(tensor: TensorNode, value: Tensor) -> None:
            observer(replace(tensor, name=place.prefix + tensor.name), value)

        return ObservingInterpreter(self.module, self.tensors, observe).run(*inputs)

    def place(self, inputs: Sequence[Any]) -> Place:
        """The place that a call with these inputs is for."""
        prefix = self.session.places.prefix(self.slots, inputs) if self.slots else ""
        if prefix not in self.places:
            names = "\n".join(prefix + tensor.name for tensor in self.tensors.values())
            self.places[prefix] = Place(
                prefix=prefix,
                key=f"{zlib.crc32(names.encode()):08x}",
                requested=self.session.measure_next,
                vector=self.vector(prefix),
            )
        return self.places[prefix]

    def request(self) -> None:
        """Make the next step everywhere a measuring step."""
        for place in self.places.values():
            place.requested = True

    def count_step(self, place: Place) -> None:
        """Count a training step; a recompile of the same graph goes on with its count."""
        if self.training:
            self.session.steps[place.key] = self.session.steps.get(place.key, 0) + 1

    def is_due(self, place: Place) -> bool:
        """Whether the next step measures: the schedule or a request says so.

        A graph that runs without gradients (evaluation) uses the units of the training graphs. If
        it has a tensor that none of them has, it measures its values once after each time that
        training did.
        """
        if place.requested or place.pending is not None:
            return True
        session = self.session
        if self.training:
            return session.is_due(session.steps.get(place.key, 0))
        wants = session.scale and session.remeasure != "never"
        visible = (place.prefix + t.name for t in self.tensors.values() if t.is_visible)
        return wants and any(map(session.lacks, visible))

    def collect(self) -> None:
        """Take over the finished measurements of every place."""
        for place in list(self.places.values()):
            self.collect_at(place)

    def collect_at(self, place: Place) -> None:
        """Take over a finished measurement; one whose backward pass never came is taken again."""
        if place.pending is None or (self.training and not place.pending.has_gradients):
            return
        found, place.pending = place.pending, None
        readings = found.close()
        self.count_step(place)
        try:
            self.session.adopt(
                {place.prefix + name: reading for name, reading in readings.items()},
                training=self.training,
                broken=found.broken_by(place.prefix),
            )
        except ValueError:
            place.requested = True  # these were no units: measure again
            raise

    def update(self) -> None:
        """Write the numbers of the factors under the session's units into new vectors.

        New ones, because a backward pass still to come holds on to the old.
        """
        for place in self.places.values():
            place.vector = self.vector(place.prefix)

    def vector(self, prefix: str) -> Tensor:
        """The numbers of the factors for one place."""
        units = self.units(prefix)
        values = [2.0 ** factor.log2(units) for factor in self.factors]
        with torch.inference_mode(False):  # an evaluation's, and the next training step's
            return torch.tensor(values, dtype=self.session.factor_dtype, device=self.device)

    def units(self, prefix: str) -> Mapping[str, Unit]:
        """The units of the graph's tensors by the names that the graph has for them."""
        known = self.session.units
        if not prefix:
            return known
        names = (tensor.name for tensor in self.tensors.values())
        return {name: known[prefix + name] for name in names if prefix + name in known}

    def watch(self, prefix: str = "") -> Watch:
        """What the recipe rounds in this graph, and which values say that a step is sound."""
        recipe = self.session.recipe
        products = [n for n in self.tensors if is_rounded_product(n, recipe)]
        taken: Iterable[fx.Node] = (x for n in products for x in operands(n, rule_of(n)))
        *_, last = self.module.graph.nodes
        results = [x for x in last.all_input_nodes if x in self.tensors]
        if self.training:  # of the others their gradients tell: parts may be masked afterwards
            results = [x for x in results if x.meta["example_value"].dim() == 0]
        return Watch(
            forward=recipe.forward,
            backward=recipe.backward,
            operands=frozenset(taken),
            outputs=frozenset(products),
            results=frozenset(results),
            units=self.units(prefix),
        )
