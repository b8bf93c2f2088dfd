"""Linear layers and the embedding table."""

from typing import Any, ClassVar

from torch import Tensor, nn

import unitscale.functional as U

from .constrained import Constrained


class Linear(Constrained, nn.Linear):
    """torch.nn.Linear's arguments and `constraint`; `y = x @ W.T / sqrt(in_features) + b`."""

    def forward(self, x: Tensor) -> Tensor:
        """The scaled product; x: [..., in_features]."""
        return U.linear(x, self.weight, self.bias, constraint=self.constraint)


class LinearReadout(Constrained, nn.Linear):
    """The layer that makes logits: `y = x @ W.T / in_features + b`, so that logits start small.

    Unconstrained by default, which gives the right gradient only after the last residual add.
    The weight may be tied to an embedding that looks up as many rows as are read out: the factors
    of the two uses cancel like a mirrored pair's. With a constraint they would not.
    Source: u-muP, output weights.
    """

    parameter_kinds: ClassVar[dict[str, str]] = {"weight": "output", "bias": "bias"}

    def __init__(
        self, *args: Any, bias: bool = False, constraint: str | None = None, **kwargs: Any
    ) -> None:
        super().__init__(*args, bias=bias, constraint=constraint, **kwargs)

    def forward(self, x: Tensor) -> Tensor:
        """The scaled product; x: [..., in_features]."""
        return U.linear_readout(x, self.weight, self.bias, constraint=self.constraint)


class Embedding(nn.Embedding):
    """torch.nn.Embedding's arguments; rows start as N(0, 1), as torch's do."""

    parameter_kinds: ClassVar[dict[str, str]] = {"weight": "input"}

    def forward(self, ids: Tensor) -> Tensor:
        """Rows of the table; ids: integers of any shape."""
        return U.embedding(
            ids,
            self.weight,
            padding_idx=self.padding_idx,
            max_norm=self.max_norm,
            norm_type=self.norm_type,
            scale_grad_by_freq=self.scale_grad_by_freq,
            sparse=self.sparse,
        )
