"""A plan carried out: a new model beside the old one, which stays as it is."""

import zlib
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from unitscale.anatomy.rebuilt import copy_buffers, fill, rebuilt
from unitscale.anatomy.shape import shape_of
from unitscale.growth.carry import carry_units
from unitscale.growth.experts import replace_mlps
from unitscale.growth.names import dense_names
from unitscale.growth.plan import Plan, dense
from unitscale.growth.shape import config_of
from unitscale.units.forward import session_of

__all__ = ["apply", "check_model", "grown_values"]


def apply(model: nn.Module, plan: Plan) -> nn.Module:
    """The grown model; the small one stays as it is.

    It has the class, dtype, device, mode and `requires_grad` of the small one; hooks, and whether
    activations are checkpointed, are set anew. If that is scaled
    (`us.unit_scale`), so is this, by the same recipe, at units that grew along: its first call is
    one of the recipe, and nothing need be measured before. Its optimizer: `grow_optimizer`.

    Raises:
        ValueError: the plan is of another model, or was applied to this one already.
    """
    check_model(model, plan)
    config: Any = model.config
    grown = rebuilt(model, config_of(config, plan.small, plan.target, plan.known))
    fill(grown, grown_values(dict(model.named_parameters()), plan))
    copy_buffers(model, grown)
    grown.train(model.training)
    for name, parameter in grown.named_parameters():
        parameter.requires_grad_(model.get_parameter(plan.origin(name).name).requires_grad)
    if plan.target.experts > 1:
        replace_mlps(grown, plan)
    if (session := session_of(model)) is not None:
        carry_units(session, model, grown, plan)
    return grown


def check_model(model: nn.Module, made: Plan) -> None:
    """Refuse a model that a plan was not made for.

    Raises:
        ValueError: says what differs.
    """
    shapes = {name: tuple(p.shape) for name, p in model.named_parameters()}
    if shapes == made.shapes:
        return
    found = getattr(getattr(model, "config", None), "model_type", None)
    own = shape_of(model.config, made.known) if found == made.architecture else None
    again = "; the plan was applied to it already" if own == dense(made).target else ""
    raise ValueError(
        f"growth: the plan is for a {made.architecture} of {made.small}, and the model is a "
        f"{type(model).__name__} of {own or 'another architecture'}{again}: make a plan of this "
        "model"
    )


def grown_values(old: Mapping[str, Tensor], made: Plan) -> Iterator[tuple[str, Tensor]]:
    """Every parameter of the grown, dense model, by name.

    Args:
        old: the parameters of the small one.
    """
    for name in dense_names(made):
        origin, growth = made.origin(name), made.growth(name)
        value = old[origin.name].detach()
        beside = None if origin.beside is None else old[origin.beside].detach()
        grown = growth.values(value, beside)
        if made.noise:
            generator = torch.Generator().manual_seed(made.seed + zlib.crc32(name.encode()))
            grown = growth.noise(grown, made.noise, generator)
        yield name, torch.zeros_like(grown) if origin.is_zero else grown
