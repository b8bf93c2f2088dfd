"""Softmax, and attention over it."""

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor

from unitscale.functional.arguments import axis_size, check_floating, check_mult, shape
from unitscale.functional.folded import can_fold
from unitscale.scaling import scale_bwd, scaled
from unitscale.scaling.constraints import apply_constraint
from unitscale.scaling.factors import attention_factors, softmax_factors


def softmax(
    input: Tensor,
    dim: int,
    dtype: torch.dtype | None = None,
    *,
    mult: float = 1.0,
    center: str = "rms",
    constraint: str | None = "to_output_scale",
) -> Tensor:
    """`F.softmax(mult * x)`, times about `0.61 * size`: RMS 1 for standard normal logits.

    So a product with it, `U.matmul(U.softmax(x, -1), v)`, is at unit scale. The rows sum to that
    factor and not to 1. Their mean, 0.61, is a part of the RMS; `center="std"` leaves it out, and
    then the spread about the mean is 1 and the product is larger (1.3 times for `mult` 1, 7 times
    for `mult` 0.14). A 0-dim tensor is one entry.

    Args:
        dim: axis to normalise over; not optional, as torch's default is deprecated.
        mult: multiplies the logits (u-muP's softmax multiplier).
        center: "rms" or "std".
    """
    check_floating("softmax", input=input)
    check_mult("softmax", mult=mult)
    factors = softmax_factors(axis_size(input, dim), mult=mult, center=center)
    output_scale, grad_input_scale = apply_constraint(
        constraint, factors.output_scale, factors.grad_input_scale
    )
    output = F.softmax(input if mult == 1.0 else input * mult, dim, dtype=dtype)
    return scaled(output, output_scale, grad_input_scale)


def softmin(
    input: Tensor,
    dim: int,
    dtype: torch.dtype | None = None,
    *,
    mult: float = 1.0,
    center: str = "rms",
    constraint: str | None = "to_output_scale",
) -> Tensor:
    """`softmax` of `-x`."""
    check_floating("softmin", input=input)
    check_mult("softmin", mult=mult)
    return softmax(-input, dim, dtype, mult=mult, center=center, constraint=constraint)


def log_softmax(input: Tensor, dim: int, dtype: torch.dtype | None = None) -> Tensor:
    """`F.log_softmax`: its spread and its gradient are at unit scale as they are.

    The mean of about `-(log(size) + 1/2)` stays: log-probabilities are what the caller wants.
    """
    check_floating("log_softmax", input=input)
    return F.log_softmax(input, dim, dtype=dtype)


def scaled_dot_product_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
    *,
    mult: float = 1.0,
    num_attended: float | None = None,
    training: bool = True,
    constraint: str | None = "to_output_scale",
) -> Tensor:
    """`F.scaled_dot_product_attention` at unit scale, for independent values.

    A nearly uniform average of n values has scale `n**-0.5`; the factor takes that back. It is
    exact pooled over positions only: under a causal mask the first positions, which average over
    little, are larger than 1 and the last smaller. Values that are correlated along the sequence,
    as deep layers have, come out larger, by up to `n**0.5`.

    The edges of query, key and value lie on cycles, so a constraint ties all three to the output;
    the gradients of query and key are then about `mult / sqrt(head_dim)` and not 1.

    Args:
        query, key, value: [..., heads, length, head_dim].
        attn_mask: as in torch. It does not change the factor: give `num_attended` with it.
        scale: factor of the logits; None is u-muP's `mult / head_dim`.
        enable_gqa: key and value may have fewer heads than the query.
        mult: multiplies the logits, when `scale` is None.
        num_attended: how many keys a query sees (harmonic mean over queries). None takes the
            number of keys, or of a causal triangle of them. Give a constant when the number of
            keys varies and the function should not: decoding with a cache, batches of other
            lengths.
        training: False switches the dropout off and keeps its factor, so that evaluation sees the
            mean of training. Pass `training=self.training`, not a `dropout_p` of 0.
    Raises:
        TypeError: an argument is not a floating-point tensor.
        ValueError: head sizes or head counts do not fit, both `scale` and `mult` are given, or
            dropout_p is not in [0, 1).
    Source: Blake et al. 2024 (u-muP), attention; the factor is that of a softmax with independent
        logits and values.
    """
    check_attention(query, key, value, enable_gqa)
    check_mult("scaled_dot_product_attention", mult=mult)
    if scale is not None and mult != 1.0:
        raise ValueError(
            f"scaled_dot_product_attention: scale={scale} and mult={mult}, expected one of them; "
            "without scale the logits are multiplied by mult / head_dim."
        )
    # Of no queries and no keys there is no output to scale.
    num_queries, num_keys = (max(x.shape[-2], 1) for x in (query, key))
    triangle = is_causal and num_attended is None
    if num_attended is None:
        # A causal mask is aligned at the top left: with fewer queries, later keys are never seen.
        num_attended = min(num_queries, num_keys) if is_causal else num_keys
    factors = attention_factors(
        cast("int", num_attended),  # a mean is as good as a size
        query.shape[-1],
        query_size=cast("int", num_attended * num_queries / num_keys),
        is_causal=triangle,
        mult=mult,
        scale=scale,
        dropout_p=dropout_p,
        num_query_heads=query.shape[-3] if enable_gqa else 1,
        num_key_heads=key.shape[-3] if enable_gqa else 1,
    )
    output_scale, grad_query_scale, grad_key_scale, grad_value_scale = apply_constraint(
        constraint,
        factors.output_scale,
        factors.grad_query_scale,
        factors.grad_key_scale,
        factors.grad_value_scale,
    )
    if constraint is not None and can_fold(query, key, value):
        # One factor on every edge: the gradients may all take it at the output.
        grad_output_scale, grad_query_scale, grad_key_scale, grad_value_scale = (
            output_scale,
            1,
            1,
            1,
        )
    else:
        grad_output_scale = 1.0
    output = F.scaled_dot_product_attention(
        scale_bwd(query, grad_query_scale),
        scale_bwd(key, grad_key_scale),
        scale_bwd(value, grad_value_scale),
        attn_mask=attn_mask,
        dropout_p=dropout_p if training else 0.0,
        is_causal=is_causal,
        scale=factors.logit_scale,
        enable_gqa=enable_gqa,
    )
    return scaled(output, output_scale, grad_output_scale)


def check_attention(query: Tensor, key: Tensor, value: Tensor, enable_gqa: bool) -> None:
    """Sizes that must agree, before torch reports them in its kernel's terms."""
    op = "scaled_dot_product_attention"
    check_floating(op, query=query, key=key, value=value)
    if min(query.dim(), key.dim(), value.dim()) < 2 + enable_gqa:
        expected = "[..., heads, length, head_dim]"
    elif query.shape[-1] != key.shape[-1]:
        expected = "query and key of one head_dim (last axis)"
    elif key.shape[-2] != value.shape[-2]:
        expected = "key and value of one length (second last axis)"
    elif enable_gqa and query.shape[-3] % key.shape[-3]:
        expected = "a multiple of the key's heads (third last axis) for the query"
    else:
        return
    raise ValueError(
        f"{op}: query has shape {shape(query)}, key {shape(key)}, value {shape(value)}; "
        f"expected {expected}."
    )
