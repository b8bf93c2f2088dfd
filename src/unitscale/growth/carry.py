"""The units of a grown model, from those of the small one: nothing need be measured again.

A tensor between ops holds what it held, in `n` copies, so its s stays; and the copies share its
gradient, so its phi is n times as large. Of parameters both follow from `tensor`. Doubled by FPI, a
matrix W at (s, phi) = (1/8, 32) is W / 2 at (1/16, 64): the codes in FP8 are the same ones.
"""

import math
from collections.abc import Mapping
from dataclasses import replace
from fnmatch import fnmatchcase

import torch
from torch import Tensor, nn

from unitscale.anatomy.architecture import starred
from unitscale.anatomy.carry import (
    Passage,
    give_session,
    log2,
    rms,
    value_change,
    warn_of_numbers,
)
from unitscale.growth.names import EXPERTS, ROUTER, dense_name, descendants
from unitscale.growth.plan import Plan
from unitscale.units.placing import Skipped
from unitscale.units.session import Session

__all__ = ["carry_units", "growing"]

ROUTERS = f"*.{ROUTER}"


def carry_units(session: Session, small: nn.Module, grown: nn.Module, made: Plan) -> None:
    """Give a grown model the recipe of the small one, at units that grew along.

    Args:
        session: of the small model, which stays as it is.
    """
    session.terms.collect()
    if made.target.depth > made.small.depth:
        warn_of_numbers(session, made.known.layers, "growth")
    recipe, beside = session.recipe, session.beside
    if made.target.experts > 1:  # which expert a token takes would hang on a rounding
        recipe = replace(recipe, skip=(*recipe.skip, ROUTERS))
        beside = replace(beside, skips=(*beside.skips, Skipped(repr(ROUTERS), (ROUTERS,))))
    give_session(session, grown, growing(made, small, grown), recipe, beside)


def growing(made: Plan, small: nn.Module, grown: nn.Module) -> Passage:
    """How the tensors of a model become those of the grown one."""
    old: dict[str, Tensor] = dict(small.named_parameters())
    new: dict[str, Tensor] = dict(grown.named_parameters())
    return Passage(
        descendants=lambda name: descendants(name, made),
        change=lambda found, name: change(found, name, made, old, new),
        added=lambda found: routers(found, made),
        is_blank=lambda name: is_in_an_identity(name, made),
        old=old,
        new=new,
    )


def is_in_an_identity(name: str, made: Plan) -> bool:
    """Whether a tensor is in a new block that adds nothing at first.

    Its last matrices are zero, and so are all gradients before them. After a step they are tiny:
    at the units of the block that it was copied from FP8 would flush nearly all of them.
    """
    _, layer = starred(name, made.known.layers)
    return layer is not None and made.depth_method == "identity" and made.is_new(layer)


def routers(found: set[str], made: Plan) -> set[str]:
    """The routers that come with experts."""
    if made.target.experts == 1:
        return set()
    mlps = {name.partition(f".{EXPERTS}.")[0] for name in found if f".{EXPERTS}." in name}
    return {f"{mlp}.{ROUTER}.weight" for mlp in mlps}


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
    origin = dense_name(found, made)
    assert origin is not None
    share = made.growth(origin).moment(torch.ones(old.shape), "first")
    factor = rms(share[share != 0]) / (made.target.experts if is_expert else 1)
    return value_change(old, new), -log2(factor)


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
