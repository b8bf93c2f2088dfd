"""A plan carried out: a new model beside the old one, which stays as it is."""

import zlib
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from unitscale.anatomy.planned import check_given, check_planned
from unitscale.anatomy.rebuilt import remade
from unitscale.growth.carry import carry_units
from unitscale.growth.experts import replace_mlps
from unitscale.growth.names import dense_names
from unitscale.growth.plan import Plan, dense
from unitscale.growth.shape import config_of
from unitscale.units.forward import session_of

__all__ = ["apply"]


def apply(model: nn.Module, plan: Plan) -> nn.Module:
    """The grown model; the small one stays as it is.

    It has the class, dtype, device, mode and `requires_grad` of the small one; hooks, whether
    activations are checkpointed and `model.compile()` are set anew. If that is scaled
    (`us.unit_scale`), so is this, by the same recipe, at units that grew along: its first call is
    one of the recipe, and nothing need be measured before. Its optimizer: `grow_optimizer`.

    Raises:
        TypeError: no model, or no plan.
        ValueError: the plan is of another model, or was applied to this one already; the model is
            wrapped, or its parameters are masked, computed or quantized.
    """
    check_given(model, plan, "growth")
    check_planned(model, plan, plan.small, dense(plan).target, "growth")
    config = config_of(model.config, plan.small, plan.target, plan.known)
    old = dict(model.named_parameters())
    grown = remade(
        model,
        config,
        dense_names(plan),
        lambda name: grown_value(name, old, plan),
        lambda name: plan.origin(name).name,
        "growth",
    )
    if plan.target.experts > 1:
        replace_mlps(grown, plan)
    if (session := session_of(model)) is not None:
        carry_units(session, model, grown, plan)
    return grown


def grown_value(name: str, old: Mapping[str, Tensor], made: Plan) -> Tensor:
    """What a parameter of the grown, dense model holds.

    Args:
        old: the parameters of the small one.
    """
    origin, growth = made.origin(name), made.growth(name)
    value = old[origin.name].detach()
    beside = None if origin.beside is None else old[origin.beside].detach()
    grown = growth.values(value, beside)
    if made.noise:
        generator = torch.Generator().manual_seed(made.seed + zlib.crc32(name.encode()))
        grown = growth.noise(grown, made.noise, generator)
    return torch.zeros_like(grown) if origin.is_zero else grown
