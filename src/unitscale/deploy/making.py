"""Quantized layers made for those of a model: the scales of their inputs and weights."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from unitscale.deploy.calibration import Batch, check_reached, seen
from unitscale.deploy.choice import Plan
from unitscale.deploy.histogram import FRACTIONS, Clip, scale_of
from unitscale.deploy.quantized import QuantizedLayer, matrix_of
from unitscale.deploy.scheme import Scheme
from unitscale.formats import BlockFormat
from unitscale.recipes import RECIPES
from unitscale.units import fused_weights, layer_units
from unitscale.units.forward import session_of

__all__ = ["Progress", "made_layers"]

Progress = Callable[[str, int, int], None]
"""Told of the stage, what is done of it and how much it is."""

UNIT_OF_INTEGERS = 2.0**-4
"""A unit is near the RMS. A float format takes it as it is, as training does. Whole numbers up to
127 have no binades to spare: at a 16th of the unit they reach 8 RMS, in steps of a 16th."""


def made_layers(
    model: nn.Module,
    plan: Plan,
    scheme: Scheme,
    batches: list[Batch] | None,
    clip: Clip,
    percentile: float,
    progress: Progress,
) -> dict[str, QuantizedLayer]:
    """What is to stand for each layer of the plan; the model is as it was.

    Raises:
        ValueError: there are neither units nor batches for static scales, or both; a batch does not
            fit.
    """
    scales = input_scales(model, plan, scheme, batches, clip, percentile, progress)
    shared = shared_scales(model, plan, scheme, clip)
    made = {}
    for number, (path, layer) in enumerate(plan.layers.items()):
        scale = shared.get(path)
        if scale is None and clip == "mse":
            scale = best_scale(matrix_of(layer), scheme)
        made[path] = QuantizedLayer(layer, scheme, weight_scale=scale, input_scale=scales.get(path))
        progress("weights", number + 1, len(plan.layers))
    return made


def input_scales(
    model: nn.Module,
    plan: Plan,
    scheme: Scheme,
    batches: list[Batch] | None,
    clip: Clip,
    percentile: float,
    progress: Progress,
) -> dict[str, Tensor]:
    """The static scale of each layer's input; none where the scheme computes them.

    Raises:
        ValueError: there are neither units nor batches, or both.
    """
    session = session_of(model)
    if session is not None and (batches is not None or not session.scale):
        raise ValueError(
            f"quantize: the model is scaled by recipe {session.recipe.name!r}; call "
            "us.unscale(model) first to calibrate it"
            + (", or leave calibration out to take its units" if session.scale else "")
        )
    codec = scheme.input
    if codec is None or not scheme.is_static:
        if batches is not None:  # they must fit all the same, and other schemes need them
            seen(model, batches, plan.layers, progress)
        return {}
    if session is not None:
        return scales_of_units(model, plan, scheme)
    if batches is None:
        raise ValueError(
            f"quantize: {scheme.name!r} has static scales for inputs, and this "
            f"{type(model).__name__} has no units; pass calibration=batches, or scale it and call "
            "it once: us.unit_scale(model, 'fp8-serve'); model(batch)"
        )
    histograms = seen(model, batches, plan.layers, progress)
    check_reached(histograms)
    return {
        path: scale_of(histogram.clip(clip, percentile, codec), codec).to(device_of(model))
        for path, histogram in histograms.items()
    }


def scales_of_units(model: nn.Module, plan: Plan, scheme: Scheme) -> dict[str, Tensor]:
    """The scales that the units of a model give its layers' inputs."""
    assert scheme.input is not None
    rows = [row for row in layer_units(model) if row.weight and row.input_log2 is not None]
    # Evaluation's own, where it ran: training has dropout between a layer and its input.
    ordered = sorted(rows, key=lambda row: row.is_training, reverse=True)
    log2 = {row.path: row.input_log2 for row in ordered}
    if missing := [path for path in plan.layers if path not in log2]:
        raise ValueError(
            f"quantize: {missing[0]!r} and {len(missing) - 1} other layers have no unit; call the "
            "model once since it was scaled, or keep them in full precision: "
            f"skip={missing[:3]!r}"
        )
    factor = UNIT_OF_INTEGERS if scheme.input.element.is_uniform else 1.0
    return {
        path: torch.tensor([2.0 ** (log2[path] or 0) * factor], device=device_of(model))
        for path in plan.layers
    }


def device_of(model: nn.Module) -> torch.device:
    """That of a model's first parameter."""
    return next(model.parameters()).device


def shared_scales(model: nn.Module, plan: Plan, scheme: Scheme, clip: Clip) -> dict[str, Tensor]:
    """One scale for weights that servers join into one matrix, where each has one scale."""
    found: dict[str, Tensor] = {}
    if scheme.weight.groups.scale_shape((2, 2)) != ():
        return found
    for names in fused_weights(model, RECIPES["fp8-serve"].fused):
        paths = [name.removesuffix(".weight") for name in sorted(names)]
        group = [path for path in paths if path in plan.layers]
        if len(group) < 2:
            continue
        scales = []
        for path in group:
            matrix = matrix_of(plan.layers[path])
            best = best_scale(matrix, scheme) if clip == "mse" else None
            scales.append(scheme.weight.grid(matrix.float()).scale if best is None else best)
        largest = torch.stack([scale for scale in scales if scale is not None]).max()
        found |= {path: largest.clone() for path in group}
    return found


def best_scale(matrix: Tensor, scheme: Scheme) -> Tensor | None:
    """Of 33 fractions of the amax's scale, the one with the least squared error in each group.

    None for block formats, whose scales are what their rule says.
    """
    codec = scheme.weight
    if isinstance(codec.format, BlockFormat):
        return None
    matrix = matrix.float()
    largest = codec.grid(matrix).scale
    assert largest is not None
    axes = (1,) if largest.dim() else (0, 1)
    best, least = largest, torch.full_like(largest, torch.inf)
    fractions = FRACTIONS.flip(0) if codec.power_of_two is None else 2.0 ** -torch.arange(3.0)
    for fraction in fractions.tolist():
        scale = largest * fraction
        error = (codec.round(matrix, scale=scale) - matrix).square().sum(axes, keepdim=True)
        error = error.view(least.shape)
        best = torch.where(error < least, scale, best)
        least = torch.minimum(error, least)
    return best
