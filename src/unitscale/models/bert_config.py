"""The settings of BERT, and the 2023 paper's two sizes with how it trained them. No torch."""

from dataclasses import dataclass
from typing import Any

COUNTS = ("vocab_size", "width", "depth", "heads", "hidden", "context", "segments")


@dataclass(frozen=True, kw_only=True)
class BertConfig:
    """Settings of a `Bert`; the same settings serve the standard and the unit-scaled model.

    The defaults are BERT base in the paper's version. Its vocabulary is a multiple of 128.

    Args:
        vocab_size: number of word pieces.
        width: size of the residual stream.
        depth: number of layers, each an attention branch and an MLP branch.
        heads: attention heads, a divisor of `width`.
        hidden: width of the MLP inside.
        context: number of positions, so the longest sequence that the model takes.
        segments: kinds of token, such as first and second sentence.
        dropout: on the embeddings, on attention weights and on each branch's output.
        ratio: how large a branch is beside the skip in the unit-scaled model. The standard model
            has the plain sum `x + f(x)`, with ratios from 0.18 to 0.36 at the start of BERT base.
        masked_fraction: share of tokens that the masked language model is asked about.
        unit_scaled: the unit-scaled parametrization instead of the standard one.
    Raises:
        TypeError, ValueError: a field is not of its type or outside its range.
    """

    vocab_size: int = 30400
    width: int = 768
    depth: int = 12
    heads: int = 12
    hidden: int = 3072
    context: int = 512
    segments: int = 2
    dropout: float = 0.1
    ratio: float = 0.25
    masked_fraction: float = 0.15
    unit_scaled: bool = False

    def __post_init__(self) -> None:
        for name in COUNTS:
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int):
                raise TypeError(f"BertConfig: {name}={value!r} must be an int.")
            if value < 1:
                raise ValueError(f"BertConfig: {name}={value} must be at least 1.")
        if not isinstance(self.unit_scaled, bool):
            raise TypeError(f"BertConfig: unit_scaled={self.unit_scaled!r} must be a bool.")
        if self.width % self.heads:
            raise ValueError(
                f"BertConfig: width={self.width} is not a multiple of heads={self.heads}; each "
                "head takes an equal part of the width."
            )
        if not 0 <= self.dropout < 1:
            raise ValueError(f"BertConfig: dropout={self.dropout} is not in [0, 1).")
        if not 0 < self.ratio < float("inf"):
            raise ValueError(f"BertConfig: ratio={self.ratio} is not a positive number.")
        if not 0 < self.masked_fraction <= 1:
            raise ValueError(
                f"BertConfig: masked_fraction={self.masked_fraction} is not in (0, 1]."
            )


@dataclass(frozen=True, kw_only=True)
class Phase:
    """One phase of the paper's pre-training; the rate rises over the warm-up and falls to 0.

    Args:
        lr: LAMB's peak rate.
        batch_size: sequences in a step: micro_batch * data_parallel * accumulation.
        loss_scale: by size, what the standard model needed in FP16; the unit-scaled one has none.
    """

    sequence_length: int
    steps: int
    lr: float
    warmup_steps: int
    batch_size: int
    micro_batch: int
    data_parallel: int
    accumulation: int
    loss_scale: dict[str, int]


BERT_BASE = BertConfig()
BERT_LARGE = BertConfig(width=1024, depth=24, heads=16, hidden=4096)
SIZES = {"bert-base": BERT_BASE, "bert-large": BERT_LARGE}

PHASES = (
    Phase(
        sequence_length=128,
        steps=28266,
        lr=0.0045,
        warmup_steps=2827,
        batch_size=16320,
        micro_batch=8,
        data_parallel=4,
        accumulation=510,
        loss_scale={"bert-base": 512, "bert-large": 32768},
    ),
    Phase(
        sequence_length=384,
        steps=8437,
        lr=0.0015,
        warmup_steps=275,
        batch_size=4080,
        micro_batch=2,
        data_parallel=4,
        accumulation=510,
        loss_scale={"bert-base": 512, "bert-large": 128},
    ),
)
"""The paper's two phases. Source: its hyperparameter file (Graphcore, branch 2023-01-paper)."""

LAMB: dict[str, Any] = {"betas": (0.9, 0.999), "eps": 1e-6, "weight_decay": 0.01}
"""The paper's optimizer, which is not in torch and not in this library: AdamW takes its place.

LAMB makes each step of a matrix a fixed share of the matrix's norm, so the paper could keep its
rates whatever the scale of weights is. AdamW's rates are other numbers: `docs/bert.md`.
"""
