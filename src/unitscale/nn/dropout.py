"""Dropout at unit scale."""

from torch import Tensor, nn

import unitscale.functional as U


class Dropout(nn.Dropout):
    """torch.nn.Dropout's arguments, `inplace` apart.

    In evaluation nothing is dropped and the factor `sqrt(1 - p)` stays, so that the mean of the
    output is the mean it had in training.
    """

    def __init__(self, p: float = 0.5) -> None:
        super().__init__(p)

    def forward(self, x: Tensor) -> Tensor:
        """Drop elements of x, scaled; any shape."""
        return U.dropout(x, self.p, self.training)
