"""Rows of a table, chosen by integers."""

import torch
import torch.nn.functional as F
from torch import Tensor

from unitscale.functional.arguments import check_floating, shape
from unitscale.scaling import scale_bwd
from unitscale.scaling.factors import embedding_factors


def embedding(
    input: Tensor,
    weight: Tensor,
    padding_idx: int | None = None,
    max_norm: float | None = None,
    norm_type: float = 2.0,
    scale_grad_by_freq: bool = False,
    sparse: bool = False,
) -> Tensor:
    """`F.embedding`, with the table's gradient multiplied by `sqrt(num_embeddings / lookups)`.

    The output is at unit scale as the table is, and the table's gradient as an average over all
    its rows. The rows of frequent tokens get more, in proportion to the root of their count, as
    long as gradients at different positions are independent.

    Args:
        input: integer ids of any shape.
        weight: [num_embeddings, embedding_dim], initialised N(0, 1). It may be the weight of
            `linear_readout` as well, if that is unconstrained and has as many rows as there are
            lookups: the factors of both ways to the loss are then in proportion.
    Raises:
        TypeError: ids that are not integers, or a table that is not floating-point.
        ValueError: the table is not a matrix.
    """
    if input.dtype not in (torch.int64, torch.int32):
        raise TypeError(
            f"embedding: input has dtype {input.dtype}, expected ids of dtype torch.int64 or "
            "torch.int32; convert them with input.long()."
        )
    check_floating("embedding", weight=weight)
    if weight.dim() != 2:
        raise ValueError(
            f"embedding: weight has shape {shape(weight)}, "
            "expected [num_embeddings, embedding_dim]."
        )
    factors = embedding_factors(input.numel(), weight.shape[0])
    if max_norm is not None:  # in place, so before the table is seen through a factor
        with torch.no_grad():
            torch.embedding_renorm_(weight, input.contiguous(), max_norm, norm_type)
    table = scale_bwd(weight, factors.grad_weight_scale)
    return F.embedding(
        input, table, padding_idx, scale_grad_by_freq=scale_grad_by_freq, sparse=sparse
    )
