"""Normalization: the output has unit scale by itself, gains and biases get unit gradients."""

from typing import Any, ClassVar

from torch import Tensor, nn

import unitscale.functional as U

NORM_KINDS = {"weight": "norm", "bias": "bias"}


class LayerNorm(nn.LayerNorm):
    """torch.nn.LayerNorm's arguments."""

    parameter_kinds: ClassVar[dict[str, str]] = NORM_KINDS

    def forward(self, x: Tensor) -> Tensor:
        """Normalize over the last dimensions."""
        return U.layer_norm(x, self.normalized_shape, self.weight, self.bias, self.eps)


class RMSNorm(nn.RMSNorm):
    """torch.nn.RMSNorm's arguments."""

    parameter_kinds: ClassVar[dict[str, str]] = NORM_KINDS

    def forward(self, x: Tensor) -> Tensor:
        """Divide by the root of the mean square over the last dimensions."""
        return U.rms_norm(x, self.normalized_shape, self.weight, self.eps)


class GroupNorm(nn.GroupNorm):
    """torch.nn.GroupNorm's arguments."""

    parameter_kinds: ClassVar[dict[str, str]] = NORM_KINDS

    def forward(self, x: Tensor) -> Tensor:
        """Normalize each group of channels; x: [batch, channels, ...]."""
        return U.group_norm(x, self.num_groups, self.weight, self.bias, self.eps)


class BatchNormalization(nn.Module):
    """What the two batch norms share: torch's running statistics, and the scaled op."""

    parameter_kinds: ClassVar[dict[str, str]] = NORM_KINDS

    def forward(self: Any, x: Tensor) -> Tensor:
        """Normalize over the batch when training, by the running statistics otherwise."""
        self._check_input_dim(x)
        tracks = self.training and self.track_running_stats
        momentum = self.momentum
        if tracks:
            self.num_batches_tracked.add_(1)
            if momentum is None:  # torch: a cumulative average
                momentum = 1.0 / float(self.num_batches_tracked)
        has_statistics = self.running_mean is not None
        keeps = tracks or not self.training  # torch passes no statistics if it must not write them
        return U.batch_norm(
            x,
            self.running_mean if keeps else None,
            self.running_var if keeps else None,
            self.weight,
            self.bias,
            training=self.training or not has_statistics,
            momentum=0.0 if momentum is None else momentum,
            eps=self.eps,
        )


class BatchNorm1d(BatchNormalization, nn.BatchNorm1d):
    """torch.nn.BatchNorm1d's arguments; x: [batch, channels] or [batch, channels, length]."""


class BatchNorm2d(BatchNormalization, nn.BatchNorm2d):
    """torch.nn.BatchNorm2d's arguments; x: [batch, channels, height, width]."""
