"""Convolutions over one, two and three dimensions, and over the past."""

from collections.abc import Callable
from typing import Any, ClassVar

from torch import Tensor, nn
from torch.nn import functional as F

import unitscale.functional as U

from .constrained import Constrained


class Convolution(Constrained):
    """What the three share: pad once, then convolve without padding.

    `padding_mode` "circular", "reflect" and "replicate" pad the input first; zero padding is the
    convolution's own. Zero padding lowers the output's scale at the border (conv2d, kernel 3,
    padding 1: 0.975 at 32 x 32, 0.906 at 8 x 8).
    """

    function: ClassVar[Callable[..., Tensor]]

    def forward(self: Any, x: Tensor) -> Tensor:
        """The scaled convolution; x: [batch, in_channels, *space]."""
        padding = self.padding
        if self.padding_mode != "zeros":
            x = F.pad(x, self.border(), mode=self.padding_mode)
            padding = 0
        return self.function(
            x,
            self.weight,
            self.bias,
            self.stride,
            padding,
            self.dilation,
            self.groups,
            constraint=self.constraint,
        )

    def border(self: Any) -> list[int]:
        """F.pad's argument: what `padding` adds on either side, last dimension first."""
        sides: list[int] = []
        for axis in reversed(range(len(self.kernel_size))):
            if self.padding == "same":
                total = self.dilation[axis] * (self.kernel_size[axis] - 1)
                sides += [total // 2, total - total // 2]
            elif self.padding == "valid":
                sides += [0, 0]
            else:
                sides += [self.padding[axis]] * 2
        return sides


class Conv1d(Convolution, nn.Conv1d):
    """torch.nn.Conv1d's arguments and `constraint`."""

    function = staticmethod(U.conv1d)


class CausalConv1d(Conv1d):
    """A convolution whose output at t sees inputs up to t: the layer of the paper's conv models.

    torch.nn.Conv1d's arguments without `padding`: zeros are put before the sequence, so that the
    length stays (divided by `stride`). The first `kernel - 1` positions see fewer terms, and are
    below unit scale.

    Raises:
        ValueError: `padding` or another `padding_mode` is given.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        if self.padding != (0,) or self.padding_mode != "zeros":
            raise ValueError(
                f"CausalConv1d: padding={self.padding}, padding_mode={self.padding_mode!r}; a "
                "causal convolution pads by itself; leave both out, or use Conv1d."
            )

    def forward(self, x: Tensor) -> Tensor:
        """x: [batch, in_channels, time]."""
        past = self.dilation[0] * (self.kernel_size[0] - 1)
        return super().forward(F.pad(x, (past, 0)))


class Conv2d(Convolution, nn.Conv2d):
    """torch.nn.Conv2d's arguments and `constraint`."""

    function = staticmethod(U.conv2d)


class Conv3d(Convolution, nn.Conv3d):
    """torch.nn.Conv3d's arguments and `constraint`."""

    function = staticmethod(U.conv3d)
