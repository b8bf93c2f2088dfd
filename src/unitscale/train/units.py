"""The units of a run: given at its start, kept in its checkpoints, watched on the way."""

import warnings
from typing import Any

import torch
from torch.nn.parallel import DistributedDataParallel

from unitscale import units
from unitscale.models.placed import as_own, moved_inside
from unitscale.recipes import without_loss_scale
from unitscale.train.config import TrainConfig
from unitscale.units.forward import session_of

Kept = dict[str, Any]
"""Units and the place in the measuring schedule, as JSON holds them."""


def apply_numerics(config: TrainConfig, model: torch.nn.Module, kept: Kept | None = None) -> None:
    """Give a model the recipe of its run, and the units and amaxes that a checkpoint kept.

    An existing model gets units where the recipe has them. A `CharLM` is written unit-scaled, so
    its products are only rounded.
    """
    # The loop multiplies the loss itself.
    recipe = moved_inside(without_loss_scale(config.numerics), model)
    inner = config.inner
    if config.gives_units:
        units.unit_scale(model, recipe, inner=inner, remeasure=config.remeasure)  # type: ignore[arg-type]
    elif recipe.rounds:
        units.apply_recipe(model, recipe, inner=inner)
    session = session_of(model)
    if kept is not None and session is not None:
        session.store.load_state_dict(kept)


def units_to_keep(model: torch.nn.Module) -> Kept | None:
    """What a checkpoint needs of a model's units and amaxes; None for a model without both."""
    session = session_of(model)
    if session is None or not (session.scale or session.recipe.is_delayed):
        return None
    session.terms.collect()
    return session.store.state_dict()


def coverage_of(model: torch.nn.Module) -> float:
    """The share of a model's multiply-adds that its recipe rounds."""
    return units.coverage(model)


def full_precision_of(model: torch.nn.Module) -> dict[str, float]:
    """Why products are in full precision, with their share of the multiply-adds; largest first."""
    found = units.summary(model)
    macs: dict[str, int] = {}
    for product in found.products:
        if product.why is not None:
            why = as_own(product.why, model)
            macs[why] = macs.get(why, 0) + product.macs
    for path, why in found.plain.items():
        macs.setdefault(f"{as_own(path, model) or 'the model itself'}: {why}", 0)
    if found.plain:
        macs["modules that ran without the recipe"] = found.plain_macs
    total = found.plain_macs + sum(product.macs for product in found.products)
    ordered = sorted(macs.items(), key=lambda item: -item[1])
    return {why: round(count / total, 4) if total else 0.0 for why, count in ordered}


def is_measuring(model: torch.nn.Module) -> bool:
    """Whether the forward pass just made is that of a measuring step."""
    session = session_of(model)
    return session is not None and session.terms.measured


def take_measurement(model: torch.nn.Module) -> list[str]:
    """Set the units by a measuring step that is done; what its tensors lost until then."""
    session = session_of(model)
    assert session is not None
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        session.terms.collect()
    return [str(warning.message) for warning in caught]


def measured_tensors(model: torch.nn.Module) -> set[str]:
    """The tensors that have a unit, by name."""
    session = session_of(model)
    return set() if session is None else set(session.store.units)


def share_measurements(model: torch.nn.Module) -> None:
    """Have all ranks know what the last step measured; each of them has to call it.

    Args:
        model: the scaled model, or the DistributedDataParallel around it; a plain one is left.
    """
    inner = model.module if isinstance(model, DistributedDataParallel) else model
    if session_of(inner) is not None:
        units.share_units(model)
