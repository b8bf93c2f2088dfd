"""BERT in two parametrizations from one definition, standard and unit-scaled, and its three heads.

What it takes to write a model unit-scaled is all in this file:

- Every part comes from `Ops`: the standard part or its unit-scaled counterpart.
- Inside the residual stack each op has one factor in both passes. The branch itself has its ratio
  to the skip once forward and once backward, where `split` and `add` put it.
- Before the stack and after it the graph is a chain, where the backward factor is free. There
  `ops.scaled(x, forward, backward)` says what torch's ops do to a gradient: a mean over masked
  tokens only, or one position of a sequence.

The table of embeddings and the read-out are two tables, where Devlin et al. have one. A tied table
is used twice, so its two gradients would have to keep their proportion: the factor for looking up
rows and the factor for the read-out would be one number, and so would the learning rates, which
u-muP has apart. It costs `vocab_size * width` parameters, 23 million of 133 in BERT base.

A model has one head. Two heads on one stack would make it no chain behind the stack any more.
Source: Devlin et al. 2018; Blake, Orr, Luschi 2023, section 5.
"""

from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import unitscale.functional as U
from unitscale import nn as unn

from .bert_config import SIZES, BertConfig
from .parts import STANDARD, UNIT_SCALED, Ops

INITIAL_STD = 0.02
"""Of all weights of the standard model, which is Devlin et al.'s."""

IGNORED = -100
"""The target of a token that the masked language model is not asked about."""


class Attention(nn.Module):
    """Multi-head attention from every position to every other that the mask allows."""

    def __init__(self, config: BertConfig, ops: Ops) -> None:
        super().__init__()
        self.ops, self.heads, self.dropout = ops, config.heads, config.dropout
        self.query = ops.linear(config.width, config.width, bias=True)
        self.key = ops.linear(config.width, config.width, bias=True)
        self.value = ops.linear(config.width, config.width, bias=True)
        self.out = ops.linear(config.width, config.width, bias=True)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """x: [batch, time, width]; mask: bool [batch, 1, 1, time], True takes part."""
        q, k, v = (
            layer(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for layer in (self.query, self.key, self.value)
        )
        if self.ops is UNIT_SCALED:
            # Values along a sentence share much from the first layer on (position and segment are
            # a part of each), so their average is as large as they are: it is taken as over one.
            x = U.scaled_dot_product_attention(
                q,
                k,
                v,
                mask,
                self.dropout,
                scale=q.shape[-1] ** -0.5,
                num_attended=1.0,
                training=self.training,
            )
        else:
            dropout = self.dropout if self.training else 0.0
            x = F.scaled_dot_product_attention(q, k, v, mask, dropout)
        return self.out(x.transpose(1, 2).flatten(2))


class MLP(nn.Module):
    """Up, GELU, down."""

    def __init__(self, config: BertConfig, ops: Ops) -> None:
        super().__init__()
        self.up = ops.mirrored(config.width, config.hidden, bias=True)
        self.activation = ops.activation["gelu"]()
        self.down = ops.mirrored(config.hidden, config.width, bias=True)

    def forward(self, x: Tensor) -> Tensor:
        """x: [..., width]."""
        return self.down(self.activation(self.up(x)))


class Layer(nn.Module):
    """Attention, then the MLP; each is added to the stream, and the sum is normalized."""

    def __init__(self, config: BertConfig, ops: Ops) -> None:
        super().__init__()
        self.residual, self.ratio = ops.sum_residual, config.ratio
        self.attention = Attention(config, ops)
        self.attention_norm = ops.layer_norm(config.width)
        self.mlp = MLP(config, ops)
        self.mlp_norm = ops.layer_norm(config.width)
        self.dropout = ops.dropout(config.dropout)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """x: [batch, time, width]; mask as in `Attention`."""
        skip, branch = self.residual.split(x, self.ratio)
        branch = self.dropout(self.attention(branch, mask))
        x = self.attention_norm(self.residual.add(branch, skip, self.ratio))
        skip, branch = self.residual.split(x, self.ratio)
        branch = self.dropout(self.mlp(branch))
        return self.mlp_norm(self.residual.add(branch, skip, self.ratio))


class Bert(nn.Module):
    """Embeddings of token, position and segment, and `depth` layers; no head.

    The standard model starts as Devlin et al.'s, N(0, 0.02) everywhere; the unit-scaled one with
    N(0, 1). Parameters have the same names and shapes.
    """

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.config = config
        self.ops = ops = UNIT_SCALED if config.unit_scaled else STANDARD
        self.tokens = ops.embedding(config.vocab_size, config.width)
        self.positions = ops.embedding(config.context, config.width)
        self.segments = ops.embedding(config.segments, config.width)
        self.norm = ops.layer_norm(config.width)
        self.dropout = ops.dropout(config.dropout)
        layers = (Layer(config, ops) for _ in range(config.depth))
        self.layers = unn.Stack(*layers, branches=2 * config.depth)

    def forward(
        self, ids: Tensor, segments: Tensor | None = None, mask: Tensor | None = None
    ) -> Tensor:
        """The stream behind the last layer, [batch, time, width].

        Args:
            ids: int64 [batch, time], time at most `config.context`.
            segments: int64 like `ids`; None is the first kind everywhere.
            mask: bool like `ids`, False for padding; None takes all.
        Raises:
            ValueError: `ids` is longer than the context.
        """
        if ids.shape[-1] > self.config.context:
            raise ValueError(
                f"Bert: ids has {ids.shape[-1]} positions, more than context="
                f"{self.config.context}; pass shorter pieces or build it with a longer context."
            )
        segments = torch.zeros_like(ids) if segments is None else segments
        # A position is looked up once for each sentence: the factor of its table counts lookups.
        positions = torch.arange(ids.shape[-1], device=ids.device).expand_as(ids)
        x = self.tokens(ids) + self.positions(positions) + self.segments(segments)
        # Three independent unit terms. All tables are leaves: their gradients need no factor.
        x = self.dropout(self.norm(self.ops.scaled(x, 3**-0.5, 1.0)))
        allowed = None if mask is None else mask[:, None, None, :]
        for layer in self.layers:
            x = layer(x, allowed)
        return x


class Headed(nn.Module):
    """A `Bert` and a place for its head; the standard model's weights are drawn in `start`."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.config = config
        self.bert = Bert(config)
        self.ops = self.bert.ops

    def start(self) -> None:
        """Draw the standard model's weights; the unit-scaled modules have drawn theirs."""
        if self.config.unit_scaled:
            return
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=INITIAL_STD)


class MaskedLM(Headed):
    """Which token was there? Asked about a share `config.masked_fraction` of the tokens."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__(config)
        ops = self.ops
        self.transform = ops.linear(config.width, config.width, bias=True)
        self.activation = ops.activation["gelu"]()
        self.norm = ops.layer_norm(config.width)
        self.readout = ops.readout(config.width, config.vocab_size, bias=True)
        self.start()

    def forward(
        self,
        ids: Tensor,
        targets: Tensor | None = None,
        segments: Tensor | None = None,
        mask: Tensor | None = None,
    ) -> Tensor:
        """Logits, or the mean cross-entropy in nats per masked token if there are targets.

        Args:
            ids, segments, mask: as `Bert` takes them.
            targets: int64 like `ids`: the token that was there, or -100 where nothing is asked.
        """
        x = self.bert(ids, segments, mask)
        logits = self.readout(self.norm(self.activation(self.transform(x))))
        if targets is None:
            return logits
        loss = self.ops.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORED)
        # A share q of the logits have gradients, of size 1 / q: together sqrt(1 / q).
        return self.ops.scaled(loss, 1.0, self.config.masked_fraction**0.5)


class Classifier(Headed):
    """One of `num_classes` for a sentence, or for a pair of them in two segments.

    Read from the first position, behind a linear layer and tanh, as Devlin et al. do.
    """

    def __init__(self, config: BertConfig, num_classes: int) -> None:
        super().__init__(config)
        if isinstance(num_classes, bool) or not isinstance(num_classes, int) or num_classes < 2:
            raise ValueError(f"Classifier: num_classes={num_classes!r} is not an integer >= 2.")
        ops = self.ops
        self.pooler = ops.linear(config.width, config.width, bias=True)
        self.activation = unn.Tanh() if config.unit_scaled else nn.Tanh()
        self.dropout = ops.dropout(config.dropout)
        self.readout = ops.readout(config.width, num_classes, bias=True)
        self.start()

    def forward(
        self,
        ids: Tensor,
        targets: Tensor | None = None,
        segments: Tensor | None = None,
        mask: Tensor | None = None,
    ) -> Tensor:
        """Logits [batch, num_classes], or the mean cross-entropy; targets: int64 [batch]."""
        x = self.bert(ids, segments, mask)
        # All other positions have no gradient, so this one's is made larger by sqrt(time).
        x = self.ops.scaled(x[:, 0], 1.0, x.shape[1] ** 0.5)
        logits = self.readout(self.dropout(self.activation(self.pooler(x))))
        return logits if targets is None else self.ops.cross_entropy(logits, targets)


class SpanFinder(Headed):
    """The first and the last position of an answer in the sequence."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__(config)
        self.readout = self.ops.readout(config.width, 2, bias=True)
        self.start()

    def forward(
        self,
        ids: Tensor,
        targets: Tensor | None = None,
        segments: Tensor | None = None,
        mask: Tensor | None = None,
    ) -> Tensor:
        """Logits [batch, time, 2] of first and last, or the mean of their two cross-entropies.

        Args:
            targets: int64 [batch, 2], the two positions.
        """
        logits = self.readout(self.bert(ids, segments, mask))
        if mask is not None:
            logits = logits.masked_fill(~mask[..., None], torch.finfo(logits.dtype).min)
        if targets is None:
            return logits
        losses = [
            self.ops.cross_entropy(logits[..., i], targets[:, i]) for i in range(logits.shape[-1])
        ]
        # Each position of each row has a gradient of its own, which the mean of two would halve.
        return self.ops.scaled((losses[0] + losses[1]) / 2, 1.0, 2.0)


def masked_lm(size: str = "bert-base", *, unit_scaled: bool = False, **changes: int) -> MaskedLM:
    """The masked language model of a size by name, with settings changed: a factory for commands.

    `unitscale plan-memory --model unitscale.models.bert:masked_lm --set model.size=bert-large`

    Raises:
        ValueError: an unknown size, or settings that `BertConfig` refuses.
    """
    if size not in SIZES:
        raise ValueError(f"masked_lm: unknown size {size!r}; use {' or '.join(SIZES)}.")
    return MaskedLM(replace(SIZES[size], unit_scaled=unit_scaled, **changes))
