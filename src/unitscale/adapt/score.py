"""How far a classifier's confidence is from its accuracy."""

import torch
from torch import Tensor

from unitscale.adapt.argument import check_whole

__all__ = ["calibration_error", "entropy"]


def calibration_error(logits: Tensor, labels: Tensor, *, bins: int = 15) -> float:
    """Expected calibration error in [0, 1]: sum over bins of (share) |accuracy - confidence|.

    The bins are of equal width in confidence, the highest probability.

    Args:
        logits: (images, classes), finite. labels: (images,), class numbers.
    Raises:
        TypeError: not tensors. ValueError: no image, other shapes, a logit that is NaN or
            infinite, a label that is no class, no bin.
    Source: Guo et al. 2017, arXiv 1706.04599, equation 3.
    """
    if not isinstance(logits, Tensor) or not isinstance(labels, Tensor):
        raise TypeError(
            f"calibration_error: logits are a {type(logits).__name__} and labels a "
            f"{type(labels).__name__}; expected tensors."
        )
    if logits.ndim != 2 or labels.shape != logits.shape[:1] or not len(labels):
        raise ValueError(
            f"calibration_error: logits are {tuple(logits.shape)} and labels "
            f"{tuple(labels.shape)}; expected (images, classes) and (images,) of at least one "
            "image."
        )
    check_whole("calibration_error", "bins", bins, 1)
    wrong = labels[(labels < 0) | (labels >= logits.shape[1]) | (labels != labels.long())]
    if len(wrong):
        raise ValueError(
            f"calibration_error: {len(wrong)} of {len(labels)} labels are no class, the first is "
            f"{wrong[0].item()}; expected from 0 to {logits.shape[1] - 1}; leave those images out."
        )
    if not bool(torch.isfinite(logits).all()):
        raise ValueError(
            "calibration_error: the logits hold NaN or infinity; expected finite ones."
        )
    confidence, answer = logits.double().softmax(dim=1).max(dim=1)
    # Bins are open below and closed above, as in the source.
    place = (confidence * bins).ceil().long().clamp(1, bins) - 1
    gaps = torch.zeros(bins, dtype=torch.float64, device=logits.device)
    gaps.index_add_(0, place, (answer == labels).double() - confidence)
    return float(gaps.abs().sum() / len(labels))


def entropy(logits: Tensor) -> Tensor:
    """Entropy in nats of each row's softmax."""
    # A class that a model rules out has the logit -inf: 0 log 0 is 0, and 0 times -inf is not.
    logs = logits.float().log_softmax(dim=1).clamp(min=torch.finfo(torch.float32).min)
    return -(logs.exp() * logs).sum(dim=1)
