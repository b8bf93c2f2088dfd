"""The units of a model of other sizes, from those of the old one: nothing need be measured again.

How names and units change is a `Passage`, which growth and pruning each have one of.
"""

import math
import re
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from unitscale.recipes import Recipe
from unitscale.units import fused_weights
from unitscale.units.assign import MAX_EXPONENT
from unitscale.units.forward import attach
from unitscale.units.placing import Beside
from unitscale.units.session import Session

__all__ = [
    "Passage",
    "carried_state",
    "give_session",
    "log2",
    "rms",
    "value_change",
    "warn_of_numbers",
]

RESTARTED = 3
"""Training calls that the schedule has behind it: the second call from now on measures."""

State = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Passage:
    """How the tensors of one model become those of another.

    Attributes:
        descendants: the names that a tensor or a parameter has in the new model; none if it is
            dropped.
        change: of a new and an old name: by how many powers of two s and phi change.
        added: parameters of the new model that come with those of a graph.
        is_blank: of a name in the new model: whether what it was carried from says nothing of its
            size, so that the next measuring step sets its unit anew before it rounds.
        old, new: the names of the parameters of both.
    """

    descendants: Callable[[str], Iterator[str]]
    change: Callable[[str, str], tuple[int, int]]
    added: Callable[[set[str]], set[str]] = lambda _: set()
    is_blank: Callable[[str], bool] = lambda _: False
    old: Collection[str]
    new: Collection[str]


def give_session(
    session: Session, model: nn.Module, passage: Passage, recipe: Recipe, beside: Beside
) -> None:
    """Let a new model run under the recipe of an old one, at units that were carried over.

    Args:
        session: of the old model, which stays as it is.
        recipe, beside: of the new one.
    """
    carried = Session(
        recipe,
        scale=session.scale,
        remeasure=session.store.remeasure,
        inner=session.inner,
        model=model,
        beside=beside,
    )
    state = carried_state(session.store.state_dict(), passage)
    carried.store.amaxes.lengths = {
        new: length
        for name, length in session.store.amaxes.lengths.items()
        for new in passage.descendants(name)
    }
    if not isinstance(session.store.remeasure, str):
        state["step"] = state["began"] = (
            session.store.step
        )  # those steps are counted from the beginning
    carried.store.load_state_dict(state)
    carried.store.join(fused_weights(model, session.recipe.fused))
    attach(model, carried)


def carried_state(state: Mapping[str, Any], passage: Passage, start: str = "") -> State:
    """What a store of units holds, for the new model.

    Args:
        state: of `UnitStore.state_dict`.
        start: what the names in the state have in front: the path of the model in a larger one.
    """

    def renamed(name: str) -> Iterator[str]:
        if not name.startswith(start):
            yield name
            return
        for found in passage.descendants(name.removeprefix(start)):
            yield start + found

    def amax_change(found: str, name: str) -> int:
        product, _, operand = name.removeprefix(start).rpartition(":")
        own = found.removeprefix(start).rpartition(":")[0]
        if operand == "gradient":
            return -passage.change(own, product)[1]
        weight, own_weight = (f"{one.rpartition('.')[0]}.weight" for one in (product, own))
        if operand == "1" and weight in passage.old and own_weight in passage.new:
            return passage.change(own_weight, weight)[0]
        return 0

    def operands(name: str) -> Iterator[tuple[str, float]]:
        # An operand is "PRODUCT:0", ":1" or ":gradient".
        for found in renamed(name):
            yield found, 2.0 ** amax_change(found, name)

    def parameters(names: list[str]) -> list[str]:
        found = {new for name in names for new in renamed(name)}
        return sorted(found | passage.added(found))

    units: dict[str, dict[str, int]] = {}
    for name, unit in state["units"].items():
        for found in renamed(name):
            s, phi = passage.change(found.removeprefix(start), name.removeprefix(start))
            units[found] = {"s": bounded(unit["s"] + s), "phi": bounded(unit["phi"] + phi)}
    amaxes = {
        found: [amax * factor for amax in history]
        for name, history in state.get("amaxes", {}).items()
        for found, factor in operands(name)
    }
    pending = [
        {
            found: [amax * factor, length]
            for name, (amax, length) in step.items()
            for found, factor in operands(name)
        }
        for step in state.get("pending_amaxes", [])
    ]
    zero = {(half, new) for half, name in state.get("zero", ()) for new in renamed(name)}
    zero |= {
        (half, name)
        for name in units
        for half in ("s", "phi")
        if passage.is_blank(name.removeprefix(start))
    }
    return {
        **state,
        "zero": sorted(map(list, zero)),
        "asleep": sorted({new for name in state.get("asleep", ()) for new in renamed(name)}),
        "step": min(state["step"], RESTARTED),
        "began": min(state["step"], RESTARTED),
        "graphs": [
            [index, is_whole, parameters(own), names]
            for index, is_whole, own, names in state["graphs"]
        ],
        "units": units,
        "amaxes": amaxes,
        "without_phi": sorted(f for name in state["without_phi"] for f in renamed(name)),
        "evaluated": sorted(f for name in state["evaluated"] for f in renamed(name)),
        "unshared": {},
        "pending_amaxes": pending,
    }


def value_change(before: Tensor, after: Tensor) -> int:
    """By how many powers of two the s of a parameter changes, which follows its values."""
    old, new = rms(before), rms(after)
    return log2(new / old) if old and new else 0


def warn_of_numbers(session: Session, layers: str, who: str) -> None:
    """Warn of rules that name layers by number, which are others in the new model."""
    numbered = re.compile(rf"{re.escape(layers)}\.[0-9]")
    patterns = [*session.recipe.skip, *(rule.path for rule in session.recipe.rules)]
    if found := sorted(pattern for pattern in patterns if numbered.search(pattern)):
        warnings.warn(
            f"{who}: recipe {session.recipe.name!r} names layers by number ({found[0]!r}), which "
            "are other ones in the new model; us.set_recipe(new, ..., skip=...) renews them",
            stacklevel=5,
        )


def rms(x: Tensor) -> float:
    """The root of the mean square."""
    return x.detach().double().square().mean().sqrt().item()


def log2(ratio: float) -> int:
    """The nearest power of two."""
    return round(math.log2(ratio))


def bounded(exponent: int) -> int:
    """An exponent that a unit may have."""
    return max(-MAX_EXPONENT, min(MAX_EXPONENT, exponent))
