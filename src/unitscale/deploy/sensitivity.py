"""Which layers of a model lose most when they are quantized, each alone."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from unitscale.deploy.calibration import Batch, checked
from unitscale.deploy.choice import plan_of
from unitscale.deploy.distance import Metric, Output, check_metric, mean_distance, outputs
from unitscale.deploy.histogram import Clip, check_clip, check_use
from unitscale.deploy.making import Progress, made_layers
from unitscale.deploy.replacement import swapped
from unitscale.deploy.scheme import Scheme, scheme_of
from unitscale.deploy.switch import Part, check_parts, rounding
from unitscale.deploy.trial import try_out
from unitscale.recipes import Recipe

__all__ = ["Sensitivity", "SensitivityRow", "losses", "sensitivity"]


@dataclass(frozen=True, kw_only=True)
class SensitivityRow:
    """One layer, or one part of `also`, quantized alone.

    Args:
        path: of the layer; of a part its name.
        loss: the mean distance of the outputs.
        parameters: of its weight.
    """

    path: str
    loss: float
    parameters: int


@dataclass(frozen=True, kw_only=True)
class Sensitivity:
    """The loss of each layer alone, the largest first, and of all together; prints as a table."""

    recipe: str
    metric: str
    rows: tuple[SensitivityRow, ...]
    together: float

    def __str__(self) -> str:
        what = {"cosine": "1 - cosine", "kl": "KL, nats"}[self.metric]
        width = max(len(row.path) for row in self.rows)
        lines = [
            f"{self.recipe}: {what} of the output to full precision; all together "
            f"{self.together:.3g}",
            f"{'quantized alone':<{width}}  {'loss':>9}  {'parameters':>12}",
        ]
        lines += [f"{r.path:<{width}}  {r.loss:>9.3g}  {r.parameters:>12,}" for r in self.rows]
        return "\n".join(lines)


def sensitivity(
    model: nn.Module,
    recipe: str | Recipe | Scheme,
    calibration: Iterable[Batch],
    *,
    clip: Clip = "amax",
    percentile: float = 99.99,
    power_of_two: bool = False,
    skip: Sequence[str] = (),
    spare: Sequence[str] | None = None,
    also: Sequence[Part] = (),
    metric: Metric = "cosine",
    output: Output | None = None,
    progress: Progress = lambda what, done, of: None,
) -> Sensitivity:
    """Quantize one layer at a time, and all together; the model is as it was afterwards.

    The arguments are those of `quantize`. A part of `also` has a row of its own.

    Raises:
        TypeError, ValueError: as `quantize` does.
    """
    scheme = scheme_of(recipe)
    scheme = scheme.at_powers_of_two() if power_of_two else scheme
    check_clip(clip, percentile)
    check_use(clip, scheme)
    check_metric(metric)
    check_parts(also, scheme)
    plan = plan_of(model, scheme, skip, spare)
    batches = checked(calibration)
    made = made_layers(model, plan, scheme, batches, clip, percentile, progress)
    try_out(model, plan.layers, made, batches, also, scheme)
    reference = outputs(model, batches, output)
    rows = losses(model, plan.layers, made, batches, reference, metric, output, progress)
    for part in also:
        with rounding((part,), scheme):
            given = outputs(model, batches, output)
        rows.append(
            SensitivityRow(path=part, loss=mean_distance(reference, given, metric), parameters=0)
        )
    with swapped(model, plan.layers, made), rounding(also, scheme):
        together = mean_distance(reference, outputs(model, batches, output), metric)
    rows.sort(key=lambda row: -row.loss)
    return Sensitivity(recipe=scheme.name, metric=metric, rows=tuple(rows), together=together)


def losses(
    model: nn.Module,
    layers: Mapping[str, nn.Module],
    made: Mapping[str, nn.Module],
    batches: Sequence[Batch],
    reference: Sequence[Tensor],
    metric: Metric,
    output: Output | None,
    progress: Progress,
) -> list[SensitivityRow]:
    """The loss of each layer alone, in the order of the model."""
    rows = []
    for number, (path, layer) in enumerate(made.items()):
        with swapped(model, layers, {path: layer}):
            given = outputs(model, batches, output)
        weight = layers[path].weight
        assert isinstance(weight, Tensor)
        loss = mean_distance(reference, given, metric)
        rows.append(SensitivityRow(path=path, loss=loss, parameters=weight.numel()))
        progress("sensitivity", number + 1, len(made))
    return rows
