"""A decoder-only language model written unit-scaled: read it from the bottom of the page up.

Every tensor starts with a root mean square near 1, forward and backward, for one reason a line. The
reasons are those of docs/writing_models.md; what is torch's own has no factor to explain.
"""

from torch import Tensor, nn

import unitscale.functional as U
from unitscale import nn as unn

from .sequence import rotate


class SelfAttention(nn.Module):
    """Causal attention of a sequence to itself, with rotary positions.

    Args:
        normalize: a norm on what attention gives. An average of n values has n^-1/2 of their scale
            if they are independent and all of it if they are alike, and n runs from 1 to the
            length: no constant brings all positions of all layers to 1, and a norm does.
    """

    def __init__(self, width: int, heads: int, *, normalize: bool = True) -> None:
        super().__init__()
        self.heads = heads
        # `width -> width` has equal factors forward and backward, so its constraint costs nothing.
        self.query = unn.Linear(width, width, bias=False)
        self.key = unn.Linear(width, width, bias=False)
        self.value = unn.Linear(width, width, bias=False)
        self.norm = unn.RMSNorm(width, elementwise_affine=False) if normalize else nn.Identity()
        self.out = unn.Linear(width, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """x: [batch, time, width]."""
        query, key, value = (
            layer(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for layer in (self.query, self.key, self.value)
        )
        heads = U.scaled_dot_product_attention(
            rotate(query),
            rotate(key),
            value,
            is_causal=True,
            # Logits of scale 1, so that query and key have gradients of scale 1 too. u-muP starts
            # with 1 / head_dim; heads of one size are the same at any width under both.
            scale=query.shape[-1] ** -0.5,
            # Without a norm behind it: half way between values that are independent and alike.
            num_attended=None if isinstance(self.norm, nn.RMSNorm) else x.shape[1] ** 0.5,
        )
        return self.out(self.norm(heads.transpose(1, 2).flatten(2)))


class FeedForward(nn.Module):
    """Up, gate and down.

    `d -> 4 d` and `4 d -> d` mirror each other: their free factors cancel along every path, so they
    may be unconstrained together, and all weight gradients are at unit scale. Alone, neither may.
    """

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.up = unn.Linear(width, hidden, bias=False, constraint=None)
        self.gate = unn.Linear(width, hidden, bias=False, constraint=None)
        self.down = unn.Linear(hidden, width, bias=False, constraint=None)

    def forward(self, x: Tensor) -> Tensor:
        """x: [..., width]."""
        return self.down(U.silu_glu(self.up(x), self.gate(x)))


class Decoder(nn.Module):
    """Embedding, `depth` pairs of attention and feed-forward, norm, read-out.

    Args:
        placement: "pre" normalizes what goes into a branch. "res-post" normalizes what comes out,
            as mu-nit Scaling does (`mus_decoder`).
        scheme: how much each branch adds to the stream. The sum of the embedding and the branches
            is held at unit scale whatever it is.
    """

    def __init__(
        self,
        vocab_size: int = 256,
        width: int = 128,
        depth: int = 4,
        heads: int = 4,
        *,
        placement: str = "pre",
        scheme: unn.residual.Scheme = unn.RunningMean(),  # noqa: B008 - frozen
    ) -> None:
        super().__init__()
        bodies: list[nn.Module] = []
        for _ in range(depth):
            bodies.append(SelfAttention(width, heads, normalize=placement == "pre"))
            bodies.append(FeedForward(width, 4 * width))
        # N(0, 1) rows, which are at unit scale as they are. Nothing is upstream: a free edge.
        self.embedding = unn.Embedding(vocab_size, width)
        self.trunk = unn.Stack(
            *(
                unn.Residual(
                    body,
                    scheme,
                    index=index,
                    depth=len(bodies),
                    norm=unn.RMSNorm(width, elementwise_affine=False),
                    placement=placement,
                )
                for index, body in enumerate(bodies)
            )
        )
        # Behind the last sum the graph is a chain again, so factors are free: logits may start
        # small, at width^-1/2, while their gradient and the weight's are at unit scale.
        self.norm = unn.RMSNorm(width, elementwise_affine=False)
        self.readout = unn.LinearReadout(width, vocab_size)

    def forward(self, ids: Tensor, targets: Tensor | None = None) -> Tensor:
        """Logits [batch, time, vocab_size], or with targets the mean cross-entropy in nats.

        The loss is the end of the graph: its factor is free too, so no loss scale is needed.
        """
        logits = self.readout(self.norm(self.trunk(self.embedding(ids))))
        if targets is None:
            return logits
        return U.cross_entropy(logits.flatten(0, 1), targets.flatten())


def mus_decoder(
    vocab_size: int = 256, width: int = 128, depth: int = 4, heads: int = 4, *, share: float = 0.2
) -> Decoder:
    """The decoder of mu-nit Scaling, for `apply_recipe(model, "mus")`.

    Norms stand on the branches' outputs, so the stream is a sum of unit terms whatever a branch
    makes; every branch has the share `share` of the variance. Hidden layers are cast to FP8 as they
    are, and the recipe keeps embedding and read-out in BF16. Source: arXiv 2502.05967.
    """
    scheme = unn.Fixed(share=share)
    return Decoder(vocab_size, width, depth, heads, placement="res-post", scheme=scheme)
