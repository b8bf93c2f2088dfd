"""The convolutional character model of the 2023 paper, written unit-scaled.

What it adds to `decoder`: convolutions over the past, an activation with a mean, and a prediction
that is shifted, so that one sequence is input and target.
"""

from torch import Tensor, nn

import unitscale.functional as U
from unitscale import nn as unn


class ConvBranch(nn.Module):
    """A grouped convolution over the past, and a ReLU.

    Of `groups` groups each output sees `kernel * width / groups` inputs, and each input is seen by
    as many outputs. So the factors are the same forward and backward, and the constraint costs
    nothing. The first `kernel - 1` positions have fewer terms, and are smaller.
    """

    def __init__(self, width: int, kernel: int, groups: int) -> None:
        super().__init__()
        self.conv = unn.CausalConv1d(width, width, kernel, groups=groups, bias=False)
        self.activation = unn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """x: [batch, time, width]."""
        return self.activation(self.conv(x.transpose(1, 2))).transpose(1, 2)


class FeedForward(nn.Module):
    """Up, ReLU, down: a mirrored pair, so its factors may be free.

    A ReLU of unit standard deviation has a mean of 0.68 besides, and a product adds it up: what
    comes out has an RMS of 1.2. With `center="rms"` the mean counts, and it is 1.
    """

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.up = unn.Linear(width, hidden, bias=False, constraint=None)
        self.down = unn.Linear(hidden, width, bias=False, constraint=None)

    def forward(self, x: Tensor) -> Tensor:
        """x: [..., width]."""
        return self.down(U.relu(self.up(x), center="rms"))


class ConvLM(nn.Module):
    """Embedding, norm, `depth` pairs of convolution and feed-forward, norm, read-out, shift.

    Args:
        kernel, groups: of the convolutions; the paper has 7 and 8.
        scheme: how much each branch adds. The paper's models have a fixed share of one half, or the
            running mean, in which embedding and branches all have equal shares.
    """

    def __init__(
        self,
        vocab_size: int = 256,
        width: int = 128,
        depth: int = 4,
        *,
        kernel: int = 7,
        groups: int = 8,
        scheme: unn.residual.Scheme = unn.RunningMean(),  # noqa: B008 - frozen
    ) -> None:
        super().__init__()
        bodies: list[nn.Module] = []
        for _ in range(depth):
            bodies += [ConvBranch(width, kernel, groups), FeedForward(width, 4 * width)]
        self.embedding = unn.Embedding(vocab_size, width)
        self.first_norm = unn.LayerNorm(width)
        self.trunk = unn.Stack(
            *(
                unn.Residual(
                    body,
                    scheme,
                    index=index,
                    depth=len(bodies),
                    norm=unn.LayerNorm(width),
                    placement="pre",
                )
                for index, body in enumerate(bodies)
            )
        )
        self.norm = unn.LayerNorm(width)
        self.readout = unn.LinearReadout(width, vocab_size)
        # Scores of position t become the prediction for t + 1; the first has scores of its own.
        self.shift = unn.PadAndShift(vocab_size)

    def forward(self, ids: Tensor) -> Tensor:
        """Mean cross-entropy in nats of every symbol, given those before it.

        Args:
            ids: int64 [batch, time].
        """
        return U.cross_entropy(self.scores(ids).flatten(0, 1), ids.flatten())

    def scores(self, ids: Tensor) -> Tensor:
        """Logits [batch, time, vocab_size] of `ids` themselves: those at t know ids before t."""
        x = self.trunk(self.first_norm(self.embedding(ids)))
        return self.shift(self.readout(self.norm(x)))
