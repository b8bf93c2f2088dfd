"""The units of a grown model, from those of the small one: nothing need be measured again.

A tensor between ops holds what it held, in `n` copies, so its s stays; and the copies share its
gradient, so its phi is n times as large. Of parameters both follow from `tensor`. Doubled by FPI, a
matrix W at (s, phi) = (1/8, 32) is W / 2 at (1/16, 64): the codes in FP8 are the same ones.
"""

import math
import re
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import replace
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn

from unitscale.growth.architecture import starred
from unitscale.growth.names import EXPERTS, ROUTER, dense_name, descendants
from unitscale.growth.plan import Plan
from unitscale.units import fused_weights
from unitscale.units.assign import MAX_EXPONENT
from unitscale.units.forward import attach
from unitscale.units.placing import Skipped
from unitscale.units.session import Session

__all__ = ["carry_units", "grown_state"]

RESTARTED = 3
"""Training calls that the schedule has behind it: the second call from now on measures."""

ROUTERS = f"*.{ROUTER}"

State = dict[str, Any]


def carry_units(session: Session, small: nn.Module, grown: nn.Module, made: Plan) -> None:
    """Give a grown model the recipe of the small one, at units that grew along.

    Args:
        session: of the small model, which stays as it is.
    """
    session.terms.collect()
    warn_of_numbers(session, made)
    recipe, beside = session.recipe, session.beside
    if made.target.experts > 1:  # which expert a token takes would hang on a rounding
        recipe = replace(recipe, skip=(*recipe.skip, ROUTERS))
        beside = replace(beside, skips=(*beside.skips, Skipped(repr(ROUTERS), (ROUTERS,))))
    carried = Session(
        recipe,
        scale=session.scale,
        remeasure=session.store.remeasure,
        inner=session.inner,
        model=grown,
        beside=beside,
    )
    old = dict(small.named_parameters())
    state = grown_state(session.store.state_dict(), made, old, dict(grown.named_parameters()))
    carried.store.amaxes.lengths = {
        new: length
        for name, length in session.store.amaxes.lengths.items()
        for new in descendants(name, made)
    }
    if not isinstance(session.store.remeasure, str):
        state["step"] = session.store.step  # those steps are counted from the beginning
    carried.store.load_state_dict(state)
    carried.store.join(fused_weights(grown, session.recipe.fused))
    attach(grown, carried)


def warn_of_numbers(session: Session, made: Plan) -> None:
    """Warn of rules that name layers by number, which are others now."""
    numbered = re.compile(rf"{re.escape(made.known.layers)}\.[0-9]")
    patterns = [*session.recipe.skip, *(rule.path for rule in session.recipe.rules)]
    found = sorted(pattern for pattern in patterns if numbered.search(pattern))
    if found and made.target.depth > made.small.depth:
        warnings.warn(
            f"growth: recipe {session.recipe.name!r} names layers by number ({found[0]!r}), which "
            "are other ones in the grown model; us.set_recipe(grown, ..., skip=...) renews them",
            stacklevel=4,
        )


def grown_state(
    state: Mapping[str, Any],
    made: Plan,
    old: Mapping[str, Tensor],
    new: Mapping[str, Tensor],
    start: str = "",
) -> State:
    """What a store of units holds, for the grown model.

    Args:
        state: of `UnitStore.state_dict`.
        old, new: the parameters of both models.
        start: what the names in the state have in front: the path of the model in a larger one.
    """
    units: dict[str, dict[str, int]] = {}
    for name, unit in state["units"].items():
        for found in renamed(name, made, start):
            s, phi = change(found.removeprefix(start), name.removeprefix(start), made, old, new)
            units[found] = {"s": bounded(unit["s"] + s), "phi": bounded(unit["phi"] + phi)}
    amaxes = {
        found: [amax * factor for amax in history]
        for name, history in state.get("amaxes", {}).items()
        for found, factor in operands(name, made, old, new, start)
    }
    pending = [
        {
            found: [amax * factor, length]
            for name, (amax, length) in step.items()
            for found, factor in operands(name, made, old, new, start)
        }
        for step in state.get("pending_amaxes", [])
    ]
    return {
        **state,
        "step": min(state["step"], RESTARTED),
        "graphs": [
            [index, is_whole, grown_parameters(parameters, made, start), names]
            for index, is_whole, parameters, names in state["graphs"]
        ],
        "units": units,
        "amaxes": amaxes,
        "without_phi": sorted(
            f for name in state["without_phi"] for f in renamed(name, made, start)
        ),
        "evaluated": sorted(f for name in state["evaluated"] for f in renamed(name, made, start)),
        "unshared": {},
        "pending_amaxes": pending,
    }


def renamed(name: str, made: Plan, start: str) -> Iterator[str]:
    """The tensors of the grown model that one of the small one becomes."""
    if not name.startswith(start):
        yield name
        return
    for found in descendants(name.removeprefix(start), made):
        yield start + found


def grown_parameters(names: list[str], made: Plan, start: str) -> list[str]:
    """The parameters of a graph of the grown model, sorted, as a store knows a graph by them."""
    found = {new for name in names for new in renamed(name, made, start)}
    if made.target.experts > 1:
        mlps = {name.partition(f".{EXPERTS}.")[0] for name in found if f".{EXPERTS}." in name}
        found |= {f"{mlp}.{ROUTER}.weight" for mlp in mlps}
    return sorted(found)


def change(
    found: str, name: str, made: Plan, old: Mapping[str, Tensor], new: Mapping[str, Tensor]
) -> tuple[int, int]:
    """By how many powers of two the s and the phi of a tensor change."""
    experts = made.target.experts
    is_expert = found != name and f".{EXPERTS}." in found
    if found in new and name in old:
        return parameter_change(found, name, made, old[name], new[found], is_expert=is_expert)
    copies = activation_copies(name, made)
    folds = fold_of(name, made)
    # Of a token's `top` experts each gets 1 / top of its gradient; of other tokens none.
    share = math.sqrt(made.top / experts) / made.top if is_expert else 1.0
    return -log2(folds), log2(copies / folds / share)


def parameter_change(
    found: str, name: str, made: Plan, old: Tensor, new: Tensor, *, is_expert: bool
) -> tuple[int, int]:
    """`change` for a parameter: by its values, and by what its gradient will be."""
    before, after = rms(old), rms(new)
    s = log2(after / before) if before and after else 0
    origin = dense_name(found, made)
    assert origin is not None
    share = made.growth(origin).moment(torch.ones(old.shape), "first")
    factor = rms(share[share != 0]) / (made.target.experts if is_expert else 1)
    return s, -log2(factor)


def operands(
    name: str, made: Plan, old: Mapping[str, Tensor], new: Mapping[str, Tensor], start: str
) -> Iterator[tuple[str, float]]:
    """What an operand becomes, "PRODUCT:0", ":1" or ":gradient", and what its amax is times."""
    for found in renamed(name, made, start):
        yield found, 2.0 ** amax_change(found, name, made, old, new, start)


def amax_change(
    found: str,
    name: str,
    made: Plan,
    old: Mapping[str, Tensor],
    new: Mapping[str, Tensor],
    start: str,
) -> int:
    """By how many powers of two the amax of an operand changes."""
    product, _, operand = name.removeprefix(start).rpartition(":")
    own = found.removeprefix(start).rpartition(":")[0]
    if operand == "gradient":
        return -change(own, product, made, old, new)[1]
    weight, own_weight = (f"{one.rpartition('.')[0]}.weight" for one in (product, own))
    if operand == "1" and weight in old and own_weight in new:
        return change(own_weight, weight, made, old, new)[0]
    return 0


def activation_copies(name: str, made: Plan) -> float:
    """How many copies there are of what a tensor between ops holds."""
    star, _ = starred(name, made.known.layers)
    for pattern, space in made.known.activations:
        if fnmatchcase(star, pattern):
            return made.spaces[space].copies if space else 1.0
    return 1.0


def fold_of(name: str, made: Plan) -> float:
    """What a tensor is divided by, since the read-out is tied."""
    reads = any(fnmatchcase(name, pattern) for pattern in made.known.read_out)
    return made.spaces["residual"].copies if made.is_tied and reads else 1.0


def rms(x: Tensor) -> float:
    """The root of the mean square."""
    return x.detach().double().square().mean().sqrt().item()


def log2(ratio: float) -> int:
    """The nearest power of two."""
    return round(math.log2(ratio))


def bounded(exponent: int) -> int:
    """An exponent that a unit may have."""
    return max(-MAX_EXPONENT, min(MAX_EXPONENT, exponent))
