"""Post-training quantization of a finished model, in place."""

import warnings
from collections.abc import Iterable, Sequence

from torch import nn

from unitscale.deploy.calibration import Batch, checked
from unitscale.deploy.choice import plan_of
from unitscale.deploy.distance import Metric, Output
from unitscale.deploy.fallback import Fallback, check_target
from unitscale.deploy.histogram import Clip, check_clip, check_use
from unitscale.deploy.making import Progress, made_layers
from unitscale.deploy.replacement import replace_layers
from unitscale.deploy.scheme import Scheme, scheme_of
from unitscale.deploy.summary import Quantization, of_model, remember
from unitscale.deploy.switch import Part, check_parts, install
from unitscale.deploy.trial import check_held, try_out
from unitscale.recipes import Recipe
from unitscale.units import unscale
from unitscale.units.forward import session_of

__all__ = ["quantization", "quantize"]


def quantize(
    model: nn.Module,
    recipe: str | Recipe | Scheme,
    calibration: Iterable[Batch] | None = None,
    *,
    clip: Clip = "amax",
    percentile: float = 99.99,
    power_of_two: bool = False,
    skip: Sequence[str] = (),
    spare: Sequence[str] | None = None,
    also: Sequence[Part] = (),
    target: float | None = None,
    metric: Metric = "cosine",
    most: float = 0.5,
    output: Output | None = None,
    progress: Progress = lambda what, done, of: None,
) -> nn.Module:
    """Replace the linear layers and convolutions of a model by quantized ones, in place.

    Each computes `op(round(x), codes * scale) + bias`: weights are stored in a byte or less, the
    scales of inputs are numbers of the model. Softmax, GELU, norms, residual sums, embeddings and
    attention's own products keep full precision (`also`), and so do heads, poolers, classifiers and
    routers (`spare`). Weights take the scale of their amax, or with `clip="mse"` the best of 33.

    An input beyond what calibration saw saturates in INT8 and FP8. In a model of float16 a product
    beyond 65,504 is infinite, and NaN after it: calibrate on the largest inputs that are served.
    An output that is not finite on a calibration batch is refused.

    Where scales of inputs come from: the units of a model that `us.unit_scale` scaled and that ran
    (it is unscaled here); or else calibration batches.

    Args:
        model: plain, or scaled with units.
        recipe: a name of `deploy.SCHEMES` ("fp8", "fp8-e5m2", "int8", "mxfp8", "nvfp4", ...), a
            Scheme, or a training recipe, of which the forward operands count.
        calibration: several batches, each a tensor, a tuple of arguments or a dict.
        clip: "amax", which is nearly always right for FP8; "percentile" or "mse" for INT8.
        percentile: of the magnitudes, for `clip="percentile"`.
        power_of_two: whether all scales are powers of two, which a server in BF16 computes with
            exactly.
        skip: patterns of module paths to keep in full precision; each must match.
        spare: likewise, need not match; None is heads, poolers, classifiers and routers.
        also: what else to round, as inputs are: "attention", "softmax", "gelu".
        target: the largest loss that is accepted; the layers that lose most are put back until it
            is met, see `sensitivity`. Needs calibration.
        metric: "cosine" is 1 - cosine of the output and that in full precision, "kl" the divergence
            of softmax(output), a mean over batches.
        most: the largest share of layers that may be put back.
        output: picks the tensor to compare; None takes logits, or the first tensor.
        progress: told of the stage, what is done of it and how much it is.
    Returns:
        The model.
    Raises:
        TypeError, ValueError: says which argument, batch or layer; the model is as it was.
    Source: arXiv 2312.05725 (FP8-BERT), arXiv 2309.14592.
    """
    scheme = scheme_of(recipe)
    scheme = scheme.at_powers_of_two() if power_of_two else scheme
    check_clip(clip, percentile)
    check_use(clip, scheme)
    check_parts(also, scheme)
    check_target(target, metric, most, calibration)
    plan = plan_of(model, scheme, skip, spare)
    batches = None if calibration is None else checked(calibration)
    made = made_layers(model, plan, scheme, batches, clip, percentile, progress)
    if batches is None:
        check_held(model, plan.layers)
    else:
        try_out(model, plan.layers, made, batches, also, scheme)
    kept = dict(plan.kept)
    if target is not None:
        assert batches is not None
        choice = Fallback(target=target, metric=metric, most=most, output=output)
        for path in choice.put_back(model, plan.layers, made, batches, also, scheme, progress):
            del made[path]
            kept[path] = f"put back to meet the target {target:g}"
        if not made:
            warnings.warn(
                f"quantize: all {len(plan.layers)} layers were put back to meet the target "
                f"{target:g}, so that nothing is quantized; raise the target, or lower most=",
                stacklevel=2,
            )
    unscaled(model)
    replace_layers(model, plan.layers, made)
    install(model, also, scheme)
    remember(model, scheme, kept, also)
    return model


def quantization(model: nn.Module) -> Quantization:
    """What is quantized in a model and what is not; prints as a table.

    Raises:
        ValueError: nothing is.
    """
    return of_model(model)


def unscaled(model: nn.Module) -> None:
    """Take the graphs of `unit_scale` out of a model, if it has them."""
    if session_of(model) is not None:
        unscale(model)
