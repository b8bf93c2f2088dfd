"""Losses: torch's value, and a gradient of unit scale per element or per token."""

from typing import Any

from torch import Tensor, nn

import unitscale.functional as U
from unitscale.functional.arguments import check_mult


class MultipliedLogits(nn.Module):
    """What losses of logits share: `mult`, u-muP's multiplier of the logits, a positive number."""

    mult = 1.0  # of a module that was pickled before there was one

    def __init__(self, *args: Any, mult: float = 1.0, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        check_mult(type(self).__name__, mult=mult)
        self.mult = mult


class CrossEntropyLoss(MultipliedLogits, nn.CrossEntropyLoss):
    """torch.nn.CrossEntropyLoss's arguments and `mult`."""

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """Cross-entropy in nats; input: logits."""
        return U.cross_entropy(
            input,
            target,
            self.weight,
            ignore_index=self.ignore_index,
            reduction=self.reduction,
            label_smoothing=self.label_smoothing,
            mult=self.mult,
        )


class BCEWithLogitsLoss(MultipliedLogits, nn.BCEWithLogitsLoss):
    """torch.nn.BCEWithLogitsLoss's arguments and `mult`."""

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """Binary cross-entropy in nats; input: logits."""
        return U.binary_cross_entropy_with_logits(
            input,
            target,
            self.weight,
            reduction=self.reduction,
            pos_weight=self.pos_weight,
            mult=self.mult,
        )


class KLDivLoss(nn.KLDivLoss):
    """torch.nn.KLDivLoss's arguments."""

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """Divergence of `target` from `input`; input: log-probabilities."""
        return U.kl_div(input, target, reduction=self.reduction, log_target=self.log_target)


class MSELoss(nn.MSELoss):
    """torch.nn.MSELoss's arguments."""

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """Squared error."""
        return U.mse_loss(input, target, reduction=self.reduction)


class L1Loss(nn.L1Loss):
    """torch.nn.L1Loss's arguments."""

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """Absolute error."""
        return U.l1_loss(input, target, reduction=self.reduction)


class HuberLoss(nn.HuberLoss):
    """torch.nn.HuberLoss's arguments."""

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """Squared error below `delta`, absolute error beyond it."""
        return U.huber_loss(input, target, reduction=self.reduction, delta=self.delta)


class SmoothL1Loss(nn.SmoothL1Loss):
    """torch.nn.SmoothL1Loss's arguments."""

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """Huber's error divided by `beta`."""
        return U.smooth_l1_loss(input, target, reduction=self.reduction, beta=self.beta)
