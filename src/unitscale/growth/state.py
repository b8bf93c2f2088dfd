"""The state of an optimizer for a grown model, from that of the small one's."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from unitscale.anatomy.optimizer import MOMENTS, State, carry_optimizer, moments_of
from unitscale.growth.names import dense_name, parameter_names, router_name
from unitscale.growth.plan import Plan

__all__ = ["grow_optimizer", "grown_moments"]


def grow_optimizer(
    optimizer: torch.optim.Optimizer,
    new: torch.optim.Optimizer,
    *,
    small: nn.Module,
    grown: nn.Module,
    plan: Plan,
) -> None:
    """Give an optimizer of the grown model the state of the small one's, grown along.

    Moments are those that the grown model would have had if it had made the steps itself (see
    `tensor`). Layers that are new and add nothing at first have no mean of gradients, and the
    squares of their source; routers begin without a state. Settings are those of `new`.

    Args:
        optimizer: of the small model: Adam, AdamW or SGD of torch or of `us.optim`, with any
            `states`.
        new: of the grown model, without a state: the same kind, with any `states`.

    Raises:
        ValueError: parameters of another model, another kind of optimizer, a state that is unknown;
            `new` is left as it was.
    """
    carry_optimizer(
        optimizer,
        new,
        (small, grown),
        (plan.shapes, parameter_names(plan)),
        lambda name, moments: grown_moments(name, plan, moments),
        "growth",
    )


def grown_moments(name: str, made: Plan, moments: Mapping[str, State]) -> State | None:
    """The state of one parameter of the grown model; None if it has none.

    Args:
        moments: the states of the small model's parameters, by name.
    Raises:
        ValueError: a state that is neither a moment nor a number.
    """
    dense = dense_name(name, made)
    if dense is None or name in (router_name(layer, made) for layer in range(made.target.depth)):
        return None
    origin, growth = made.origin(dense), made.growth(dense)
    if origin.name not in moments:
        return None
    # Each expert gets the gradients of its share of the tokens.
    share = 1 / made.target.experts if dense != name else 1.0
    begins = origin.is_new and made.depth_method == "identity"

    def moment(key: str, value: Tensor) -> Tensor:
        beside = moments.get(origin.beside or origin.name, {}).get(key, value)
        grown = growth.moment(value, MOMENTS[key], beside)
        grown = grown * share ** (1 if MOMENTS[key] == "first" else 2)
        return torch.zeros_like(grown) if begins and MOMENTS[key] == "first" else grown

    return moments_of(moments[origin.name], origin.name, moment, "growth")
