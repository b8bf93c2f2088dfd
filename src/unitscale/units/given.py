"""Units that are given from outside, by layer: an export knows layers, and no names of tensors."""

from collections.abc import Iterator
from dataclasses import replace
from typing import NamedTuple

from torch import fx

from unitscale.units.assign import ONE, Unit
from unitscale.units.ops import operands, rule_of
from unitscale.units.plan import Symbols
from unitscale.units.program import Program
from unitscale.units.store import UnitStore

__all__ = ["Taken", "give", "taken_by"]


class Taken(NamedTuple):
    """The two operands of a rounded product with a parameter, by the names whose s they are at.

    Args:
        node: the product.
        input, weight: names as the graph has them.
    """

    node: fx.Node
    input: str
    weight: str


def taken_by(program: Program) -> Iterator[Taken]:
    """The rounded products of a graph that take one tensor and one parameter."""
    symbols = Symbols(program.tensors, scale=True)
    for node in program.rounded:
        taken = operands(node, rule_of(node))
        if len(taken) != 2 or not all(x in program.tensors for x in taken):
            continue
        x, weight = taken
        if program.tensors[weight].is_parameter:
            ((_, name),) = symbols.operand(x).powers
            yield Taken(node, name, program.tensors[weight].name)


def give(store: UnitStore, program: Program, prefix: str) -> None:
    """Set the units that `store.given` has for the layers of a graph.

    Raises:
        ValueError: two layers take one tensor at two units.
    """
    found: dict[str, Unit] = {}
    for _, x, weight in taken_by(program):
        name, taken = prefix + x, prefix + weight
        if taken not in store.given:
            continue
        s_weight, s_input = store.given[taken]
        if found.get(name, Unit(s_input)).s != s_input:
            raise ValueError(
                f"{name!r} is taken at 2^{found[name].s} and by the layer of {taken!r} at "
                f"2^{s_input}; a tensor has one unit, so give these layers one input scale"
            )
        found[name] = replace(store.units.get(name, ONE), s=s_input)
        found[taken] = replace(store.units.get(taken, ONE), s=s_weight)
    store.units = store.units | found
    store.version += 1
