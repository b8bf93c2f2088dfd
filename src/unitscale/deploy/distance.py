"""How far the outputs of a quantized model are from those in full precision."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unitscale.deploy.calibration import Batch, call, eager

__all__ = ["METRICS", "Metric", "Output", "check_metric", "mean_distance", "outputs"]

Metric = Literal["cosine", "kl"]
METRICS: tuple[str, ...] = get_args(Metric)
Output = Callable[[Any], Tensor]


def check_metric(metric: str) -> None:
    """Refuse an unknown metric.

    Raises:
        ValueError: there is no such one.
    """
    if metric not in METRICS:
        raise ValueError(f"quantize: metric is {metric!r}; expected one of {', '.join(METRICS)}")


def outputs(model: nn.Module, batches: Sequence[Batch], pick: Output | None) -> list[Tensor]:
    """The output for each batch, in float32."""
    with eager(model):
        return [
            (pick or picked)(call(model, batch, number)).detach().float()
            for number, batch in enumerate(batches)
        ]


def picked(result: Any) -> Tensor:
    """The tensor of a model's result that counts: logits, or the first one.

    Raises:
        ValueError: there is none.
    """
    logits = getattr(result, "logits", None)
    if isinstance(logits, Tensor):
        return logits
    values = result.values() if isinstance(result, Mapping) else result
    every = values if isinstance(values, tuple | list) or isinstance(result, Mapping) else (result,)
    for value in every:
        if isinstance(value, Tensor) and value.is_floating_point() and value.dim():
            return value
    raise ValueError(
        f"quantize: the model returns a {type(result).__name__} without a tensor to compare; pass "
        "output=, a function that picks one"
    )


def mean_distance(reference: Sequence[Tensor], given: Sequence[Tensor], metric: Metric) -> float:
    """The mean over all rows, along the last axis, of what each loses; NaN counts as infinity."""
    found = torch.cat(
        [DISTANCES[metric](p, q).flatten() for p, q in zip(reference, given, strict=True)]
    )
    value = float(found.double().mean())
    return value if value == value else float("inf")


def one_minus_cosine(p: Tensor, q: Tensor) -> Tensor:
    """1 - cosine of two rows; 0 of two that are zero."""
    distance = 1 - F.cosine_similarity(p.double(), q.double(), dim=-1, eps=1e-30)
    return torch.where((p == q).all(-1), 0.0, distance)


def divergence(p: Tensor, q: Tensor) -> Tensor:
    """KL(softmax(p) || softmax(q)) of two rows, in nats."""
    reference, given = (F.log_softmax(x.double(), -1) for x in (p, q))
    return F.kl_div(given, reference, reduction="none", log_target=True).sum(-1)


DISTANCES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "cosine": one_minus_cosine,
    "kl": divergence,
}
