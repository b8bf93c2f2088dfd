"""The character language model of the 2023 paper's experiment, in two parametrizations."""

from itertools import chain

from torch import Tensor, nn

from unitscale import nn as unn

from .config import DEFAULT_RATIO, TAU, CharLMConfig
from .parts import STANDARD, UNIT_SCALED
from .sequence import MLP, SEQUENCE_LAYERS


class CharLM(nn.Module):
    """Embedding, norm, `depth` pairs of sequence layer and MLP with residuals, norm, read-out.

    The standard model starts as the paper's: Glorot-uniform matrices, N(0, 1) embeddings, biases 0.
    The unit-scaled model starts with N(0, 1) everywhere. Parameters have the same names and shapes.
    """

    def __init__(self, config: CharLMConfig) -> None:
        super().__init__()
        self.config = config
        self.ops = ops = UNIT_SCALED if config.unit_scaled else STANDARD
        self.embedding = ops.embedding(config.vocab_size, config.width)
        self.embedding_norm = ops.layer_norm(config.width)
        sequence_layer = SEQUENCE_LAYERS[config.layer]
        bodies = chain.from_iterable(
            (sequence_layer(config, ops), MLP(config, ops)) for _ in range(config.depth)
        )
        self.trunk = unn.Stack(*(self.branch(body, index) for index, body in enumerate(bodies)))
        self.norm = ops.layer_norm(config.width)
        self.readout = ops.readout(config.width, config.vocab_size, bias=config.bias)

    def branch(self, body: nn.Module, index: int) -> unn.Residual:
        """The residual layer around one sequence layer or MLP."""
        config, ops = self.config, self.ops
        residual = ops.sum_residual if config.residual == "default" else ops.residual
        return residual(
            nn.Sequential(body, ops.dropout(config.dropout)) if config.dropout else body,
            scheme(config),
            index=index,
            depth=2 * config.depth,
            norm=None if config.norm == "none" else ops.layer_norm(config.width),
            placement=config.norm,
        )

    def forward(self, ids: Tensor, targets: Tensor | None = None) -> Tensor:
        """Logits, or the mean cross-entropy in nats per symbol if there are targets.

        Args:
            ids: int64 [batch, time], time at most `config.context`.
            targets: int64 [batch, time], the symbol that follows each of `ids`.
        Raises:
            ValueError: `ids` is longer than the context.
        """
        if ids.shape[-1] > self.config.context:
            raise ValueError(
                f"CharLM: ids has {ids.shape[-1]} positions, more than context="
                f"{self.config.context}; pass shorter pieces or build it with a longer context."
            )
        x = self.trunk(self.embedding_norm(self.embedding(ids)))
        logits = self.readout(self.norm(x))
        if targets is None:
            return logits
        mult = self.config.loss_softmax_mult
        options = {} if mult == 1 else {"mult": mult}  # which the standard model does not have
        return self.ops.cross_entropy(logits.flatten(0, 1), targets.flatten(), **options)


def scheme(config: CharLMConfig) -> unn.residual.Scheme:
    """The residual scheme that a configuration names, with its multipliers."""
    if config.residual_mult == config.residual_attn_ratio == 1:
        return plain_scheme(config)
    return unn.Multipliers(
        scheme=plain_scheme(config),
        residual_mult=config.residual_mult,
        residual_attn_ratio=config.residual_attn_ratio,
    )


def plain_scheme(config: CharLMConfig) -> unn.residual.Scheme:
    """The scheme that `residual` and `tau` name."""
    if config.residual == "default":
        return unn.Ratio(ratio=DEFAULT_RATIO)
    if config.residual == "running-mean":
        return unn.RunningMean()
    tau = TAU[config.residual] if config.tau is None else config.tau
    return unn.Fixed(share=tau) if config.residual == "fixed" else unn.Ratio(ratio=tau)
