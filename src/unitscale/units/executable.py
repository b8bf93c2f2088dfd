"""A captured graph that runs: measured at some steps, as rewritten at the others."""

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx

from unitscale.graph.capture import TensorNode, drop_idle_calls, tensor_nodes
from unitscale.graph.dynamo import is_number_input
from unitscale.graph.engine import address, saves_elsewhere
from unitscale.graph.expand import expand
from unitscale.graph.inplace import return_new
from unitscale.graph.place import parameter_slots
from unitscale.graph.recording import record_results, records_anywhere
from unitscale.graph.tensor import in_order, transformed
from unitscale.recipes import Gemm
from unitscale.units.amax import DelayedRun
from unitscale.units.assign import Unit
from unitscale.units.call import Call, Terms
from unitscale.units.given import give
from unitscale.units.measurement import Measurement
from unitscale.units.observe import MeasuringStep, UnitsInForce
from unitscale.units.ops import rule_of
from unitscale.units.products import gemm_at, rule_at, skips_at
from unitscale.units.program import Program, numbers
from unitscale.units.watching import Watched

__all__ = ["Executable", "Place"]


@dataclass(kw_only=True)
class Place:
    """What a graph remembers for one submodule that it runs for.

    Args:
        prefix: what the names of its tensors lack, see `graph.place`.
        program: the graph, rewritten for the products that are rounded there.
        vector: the numbers of the factors under the units of `version`.
        version: of the unit store.
        is_known: whether every unit that the graph needs was set, at that version.
        call: the number of the last call of the model in which it ran.
        runs: how often it ran in that call: layers without parameters may share a graph.
    """

    prefix: str
    program: Program
    vector: Tensor
    version: int = -1
    is_known: bool = False
    call: int = 0
    runs: int = 1


def prepare(module: fx.GraphModule) -> None:
    """Write a captured graph in the form whose tensors have units, equal to it to the bit."""
    expand(module.graph)
    drop_idle_calls(module.graph)
    return_new(module.graph)


def device_of(graph: fx.Graph, inputs: Sequence[Any]) -> torch.device | None:
    """Where a graph runs: the device of its first tensor that is not a number in disguise."""
    nodes = (node for node in graph.nodes if node.op == "placeholder")
    pairs = zip(nodes, inputs, strict=False)
    tensors = (x for n, x in pairs if isinstance(x, Tensor) and not is_number_input(n))
    return next((x.device for x in tensors), None)


def fuses(inner: str | Callable[..., Any]) -> bool:
    """Whether a compiler computes what lies between products in passes of its own.

    A function that only runs the graph says `fuses = False`.
    """
    return bool(getattr(inner, "fuses", inner != "eager"))


def local_groups(groups: Iterable[frozenset[str]], prefix: str) -> list[frozenset[str]]:
    """Groups of parameters by the names that a graph at a place has for them."""
    return [
        frozenset(name.removeprefix(prefix) for name in group)
        for group in groups
        if all(name.startswith(prefix) for name in group)
    ]


def refuse_nested(tensors: Iterable[TensorNode]) -> None:
    """Say which tensor can neither be measured nor rounded."""
    for tensor in tensors:
        if tensor.node.meta["example_value"].is_nested:
            raise TypeError(
                f"unit_scale: {tensor.name!r} is a nested tensor, which has neither an RMS nor a "
                "rounding; pad it to a rectangle, or leave the model that takes it unscaled."
            )


class Executable:
    """One captured graph, and the places of the model that it runs for: one, but for breaks."""

    def __init__(self, terms: Terms, module: fx.GraphModule, example_inputs: Sequence[Any]) -> None:
        self.terms, self.module = terms, module
        prepare(module)
        records = records_anywhere(module.graph, at_start=torch.is_grad_enabled())
        self.mode_at_end = record_results(module.graph)
        self.slots = parameter_slots(module.graph)
        self.first_prefix = first_prefix = self.prefix(example_inputs)
        tensors = tensor_nodes(module.graph, terms.arguments)
        tensors = tensors if terms.recipe.rounds else in_order(tensors)
        self.tensors = self.distinguish(tensors, is_whole=not first_prefix)
        self.hidden = {n for graph in {n.graph for n in tensors} for n in transformed(graph)}
        if terms.store.scale or terms.recipe.rounds:
            refuse_nested(self.tensors.values())
        terms.store.parameters |= {t.name for t in self.tensors.values() if t.is_parameter}
        self.training = records and any(
            isinstance(x, Tensor) and x.requires_grad for x in example_inputs
        )
        self.device = device_of(module.graph, example_inputs)
        self.places: dict[str, Place] = {}
        self.programs: dict[frozenset[tuple[fx.Node, Gemm]], Program] = {}
        first = self.program(first_prefix)
        vector = self.numbers(first, terms.store.units, first_prefix)
        first.compile(terms.inner_for(self.device), example_inputs, vector)

    def distinguish(
        self, tensors: dict[fx.Node, TensorNode], *, is_whole: bool
    ) -> dict[fx.Node, TensorNode]:
        """Give the tensors outside of every submodule names that no other graph uses.

        A graph of one submodule alone (not `is_whole`) has the names that its tensors would have
        in a graph of the whole model.
        """
        names = tuple(tensor.name for tensor in tensors.values() if tensor.at_root)
        parameters = tuple(sorted(name for _, name in self.slots))
        index = self.terms.store.index_of((is_whole, parameters, names))
        if index == 0:
            return tensors
        return {
            node: replace(tensor, name=f"graph{index}.{tensor.name}") if tensor.at_root else tensor
            for node, tensor in tensors.items()
        }

    def prefix(self, inputs: Sequence[Any]) -> str:
        """What the names of the graph's tensors lack, for these inputs."""
        return self.terms.places.prefix(self.slots, inputs) if self.slots else ""

    def program(self, prefix: str) -> Program:
        """The graph rewritten for the products that the recipe rounds at a place."""
        recipe = self.terms.recipe
        # What runs under a function transform is copied as it is, see `Writer.write`.
        seen = (n for n in self.tensors if n not in self.hidden)
        products = [n for n in seen if rule_of(n).product]
        self.terms.used_rules |= {rule_at(n, recipe, prefix) for n in products}
        self.terms.used_skips.update(p for n in products for p in skips_at(n, recipe, prefix))
        found = {n: gemm for n in products if (gemm := gemm_at(n, recipe, prefix)) is not None}
        key = frozenset(found.items())
        if key not in self.programs:
            self.programs[key] = Program(
                self.module,
                self.tensors,
                recipe,
                found,
                scale=self.terms.store.scale,
                training=self.training,
                fuses=fuses(self.terms.inner_for(self.device)),
            )
        return self.programs[key]

    def place(self, inputs: Sequence[Any]) -> Place:
        """The place that a call with these inputs is for, with the numbers of its factors."""
        prefix, store = self.prefix(inputs), self.terms.store
        if prefix not in self.places:
            program = self.program(prefix)
            if store.given:
                give(store, program, prefix)
            store.parameters |= {prefix + t.name for t in self.tensors.values() if t.is_parameter}
            vector = self.numbers(program, {}, prefix)
            self.places[prefix] = Place(prefix=prefix, program=program, vector=vector)
        place = self.places[prefix]
        if place.version != store.version:
            # A new vector: a backward pass still to come holds on to the old one.
            place.vector = self.numbers(place.program, self.units(prefix), prefix)
            s, phi = place.program.needed
            place.is_known = not any(store.lacks(prefix + name, phi=False) for name in s) and not (
                self.training and any(store.lacks(prefix + name, phi=True) for name in phi)
            )
            place.version = store.version
        return place

    def numbers(self, program: Program, units: Mapping[str, Unit], prefix: str) -> Tensor:
        """The numbers of a program's slots, and of its factors under some units.

        Of a program with slots it is a leaf of autograd: its gradient is the amaxes of the
        operands, of which the scales of later steps are made.
        """
        amaxes = self.terms.store.amaxes
        scales = [
            amaxes.scale_of(prefix + slot.name, slot.operand) * 2.0 ** -slot.unit.log2(units)
            for slot in program.slots
        ]
        factors = [2.0 ** factor.log2(units) for factor in program.factors]
        vector = numbers([*scales, *factors], self.device, self.terms.factor_dtype)
        return vector.requires_grad_(bool(scales) and self.training)

    def vector(self, place: Place) -> tuple[Tensor, DelayedRun | None]:
        """The numbers for one run: with slots, of this step, and its amaxes are waited for."""
        slots = place.program.slots
        if not slots:
            return place.vector, None
        units = self.units(place.prefix)
        vector = self.numbers(place.program, units, place.prefix)
        if not vector.requires_grad:
            return vector, None
        run = DelayedRun(
            slots=[(place.prefix + slot.name, slot.operand) for slot in slots],
            units=[slot.unit for slot in slots],
            log2=lambda unit: unit.log2(units),
        )
        vector.register_hook(partial(self.terms.note_amaxes, run))
        return vector, run

    def units(self, prefix: str) -> Mapping[str, Unit]:
        """The units of the graph's tensors by the names that the graph has for them."""
        known = self.terms.store.units
        if not prefix:
            return known
        names = (tensor.name for tensor in self.tensors.values())
        return {name: known[prefix + name] for name in names if prefix + name in known}

    def __call__(self, *args: Any) -> Any:
        """Run the graph: as a measuring step if it is due or a unit is missing."""
        terms = self.terms
        if terms.call is None:  # nobody calls a model around it
            with terms.calling():
                return self(*args)
        call, place = terms.call, self.place(args)
        call.graphs += 1
        if not call.is_replay:
            place.runs = place.runs + 1 if place.call == call.number else 1
            place.call = call.number
        call.parameters.update(id(args[i]) for i, _ in self.slots)
        was_inside, terms.inside_graph = terms.inside_graph, True
        result = self.run(call, place, args)
        if self.mode_at_end is not None:
            torch.set_grad_enabled(self.mode_at_end)
        # Left set where an exception passes: it came from the graph, not from capturing it.
        terms.inside_graph = was_inside
        return result

    def run(self, call: Call, place: Place, args: Sequence[Any]) -> Any:
        """The graph in the way that fits this call."""
        terms, program = self.terms, place.program
        remembers = not call.is_replay and saves_elsewhere()
        key = (id(self), place.prefix)
        if call.is_replay and (how := self.replayed(call, key, args)) is not None:
            if isinstance(how, UnitsInForce):
                return MeasuringStep(program.measured, how, ()).run(how.vector, *args)
            return program.run(how, *args)
        call.trained |= self.training
        vector, waiting = self.vector(place)
        measures = (call.is_due and self.training) or (
            terms.store.sets_units and not place.is_known
        )
        if measures or terms.observer is not None:
            units, result = self.measure(call, place, vector, args, measures=measures)
            if remembers:
                terms.remember(call.graph_runs, key, self.identity(args), units)
            if waiting is not None:
                waiting.log2 = units.log2
        else:
            if remembers:
                terms.remember(call.graph_runs, key, self.identity(args), vector)
            result = self.ordinary(place, vector, args)
        if waiting is not None:
            for x in result:
                if isinstance(x, Tensor) and x.requires_grad:
                    x.register_hook(partial(terms.note_backward, waiting))
        return result

    def ordinary(self, place: Place, vector: Tensor, args: Sequence[Any]) -> Any:
        """The graph as rewritten; node by node while somebody watches, unless it is compiled."""
        program, at = place.program, self.terms.at
        if at is None:
            return program.run(vector, *args)
        is_compiled = program.compiled is not None
        with at.inside(self.terms.recipe, place.prefix, vector, compiled=is_compiled):
            if is_compiled:
                return program.run(vector, *args)
            return Watched(program.eager_module, at).run(vector, *args)

    def replayed(self, call: Call, key: Hashable, args: Sequence[Any]) -> Any:
        """How the graph ran when the call was made that is computed again now; None: it was not.

        The first graph of a checkpoint is known by where its inputs lie; those after it, whose
        inputs are computed anew, by their order.
        """
        if call.following:
            expected, how = call.following[0]
            if expected == key:
                call.following = call.following[1:]
                return how
        found = self.terms.remembered.get((key, self.identity(args)))
        if found is None:
            return None
        runs, index = found
        call.following = runs[index + 1 :]
        return runs[index][1]

    def identity(self, args: Sequence[Any]) -> tuple[Any, ...]:
        """What tells the inputs of one call from those of another: where they lie."""
        given = {i for i, _ in self.slots}
        inputs = [x for i, x in enumerate(args) if i not in given and isinstance(x, Tensor)]
        return tuple((address(x), x.shape) for x in inputs)

    def measure(
        self, call: Call, place: Place, vector: Tensor, args: Sequence[Any], *, measures: bool
    ) -> tuple[UnitsInForce, Any]:
        """A measuring step, or one that is only observed, and the units that it ran at."""
        terms, program, key = self.terms, place.program, (id(self), place.prefix)
        if key not in call.measuring:
            store, names = terms.store, [t.name for t in self.tensors.values()]
            missing = {n for n in names if place.prefix + n in store.without_phi}
            zero = {
                (half, name.removeprefix(place.prefix))
                for half, name in store.zero
                if measures
                and (self.training or (half == "s" and name in store.stale))
                and name.startswith(place.prefix)
            }
            call.measuring[key] = (
                UnitsInForce(
                    self.units(place.prefix),
                    missing,
                    program.watch,
                    sets=store.sets_units,
                    zero=zero,
                    fused=local_groups(store.fused, place.prefix),
                ),
                Measurement(
                    program.watch,
                    prefix=place.prefix,
                    call=call.number,
                    blank=zero if store.ran_without else (),
                    arrive=terms.arrived.append if self.training else None,
                ),
            )
        units, measurement = call.measuring[key]
        readers: list[Any] = [measurement] if measures else []
        if terms.observer is not None:
            readers.append(terms.observer(place.prefix))
        units.vector = vector
        at = terms.at
        watching: AbstractContextManager[None] = nullcontext()
        if at is not None:
            watching = at.inside(terms.recipe, place.prefix, vector, measures=True)
        with watching:
            result = MeasuringStep(program.measured, units, readers, at).run(vector, *args)
        call.measured |= measures and self.training
        if measures and not self.training:
            terms.store.adopt(
                measurement.full_readings, training=False, broken=measurement.broken_by
            )
        return units, result
