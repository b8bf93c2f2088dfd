"""Pad-and-shift: prediction of a position from those before it."""

from typing import ClassVar

import torch
from torch import Tensor, nn

import unitscale.functional as U


class PadAndShift(nn.Module):
    """Every position takes the value before it; the first takes a vector that is learned.

    The paper's character models shift the scores of their read-out with it, so that token t is
    predicted from tokens before t while input and target are one sequence.

    Args:
        features: size of the vector, which starts at 0; its kind is "bias".
    """

    parameter_kinds: ClassVar[dict[str, str]] = {"pad": "bias"}

    def __init__(self, features: int) -> None:
        super().__init__()
        self.pad = nn.Parameter(torch.zeros(features))

    def forward(self, x: Tensor) -> Tensor:
        """x: [batch, time, features]."""
        return U.pad_and_shift(x, self.pad)
