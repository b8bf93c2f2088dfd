"""The layers to put back into full precision so that a model loses no more than is accepted."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from torch import nn

from unitscale.deploy.calibration import Batch
from unitscale.deploy.distance import Metric, Output, check_metric, mean_distance, outputs
from unitscale.deploy.making import Progress
from unitscale.deploy.replacement import swapped
from unitscale.deploy.scheme import Scheme
from unitscale.deploy.sensitivity import losses
from unitscale.deploy.switch import Part, rounding
from unitscale.recipes import RECIPES
from unitscale.units import fused_weights

__all__ = ["Fallback", "check_target"]


def check_target(target: float | None, metric: str, most: float, calibration: object) -> None:
    """Refuse a target that no model could be measured against.

    Raises:
        ValueError: it is negative or NaN, has no batches to be measured on; `most` is no share.
    """
    check_metric(metric)
    if not isinstance(most, int | float) or not 0 <= most <= 1:
        raise ValueError(f"quantize: most is {most!r}; expected a share of layers from 0 to 1")
    if target is None:
        return
    if not isinstance(target, int | float) or not (math.isfinite(target) and target >= 0):
        raise ValueError(f"quantize: target is {target!r}; expected a loss of 0 or more, as 0.01")
    if calibration is None:
        raise ValueError(
            f"quantize: the target {target:g} is measured on calibration batches; pass "
            "calibration=batches"
        )


@dataclass(frozen=True, kw_only=True)
class Fallback:
    """What is accepted; the arguments are those of `quantize`."""

    target: float
    metric: Metric
    most: float
    output: Output | None

    def put_back(
        self,
        model: nn.Module,
        layers: Mapping[str, nn.Module],
        made: Mapping[str, nn.Module],
        batches: Sequence[Batch],
        also: Sequence[Part],
        scheme: Scheme,
        progress: Progress,
    ) -> list[str]:
        """The fewest of the most sensitive layers with which the target is met, by bisection.

        Raises:
            ValueError: with all that may be put back it is not met.
        """
        reference = outputs(model, batches, self.output)

        def loss(back: Sequence[str]) -> float:
            rest = {path: layer for path, layer in made.items() if path not in back}
            with swapped(model, layers, rest), rounding(also, scheme):
                return mean_distance(reference, outputs(model, batches, self.output), self.metric)

        if loss(()) <= self.target:
            return []
        rows = losses(model, layers, made, batches, reference, self.metric, self.output, progress)
        ranked = [row.path for row in sorted(rows, key=lambda row: -row.loss)]
        prefixes = list(accumulated(ranked, joined_layers(model)))
        allowed = [back for back in prefixes if len(back) <= self.most * len(ranked)]
        most = allowed[-1] if allowed else []
        reached = loss(most)
        if reached > self.target:
            raise ValueError(
                f"quantize: with {len(most)} of {len(ranked)} layers in full precision the loss is "
                f"still {reached:.3g}, above the target {self.target:g}; raise most= or the "
                "target, or take another recipe"
            )
        low, high = -1, len(allowed) - 1  # the target is not met by `low`, and is by `high`
        while high - low > 1:
            middle = (low + high) // 2
            if loss(allowed[middle]) <= self.target:
                high = middle
            else:
                low = middle
        return allowed[high]


def joined_layers(model: nn.Module) -> dict[str, list[str]]:
    """By path, the layers that servers join into one: all of them are quantized, or none."""
    found: dict[str, list[str]] = {}
    for names in fused_weights(model, RECIPES["fp8-serve"].fused):
        paths = sorted(name.removesuffix(".weight") for name in names)
        found |= dict.fromkeys(paths, paths)
    return found


def accumulated(ranked: Sequence[str], groups: Mapping[str, list[str]]) -> Iterator[list[str]]:
    """The first of the ranked layers, the first two, and so on; each with those joined to it."""
    back: list[str] = []
    for path in ranked:
        if path not in back:
            back += [name for name in groups.get(path, [path]) if name in ranked]
            yield list(back)
