"""Factors of softmax and of attention."""

import math
import operator

from unitscale.scaling.constant import constant
from unitscale.scaling.factors.result import AttentionFactors, Factors
from unitscale.scaling.softmax import at_size, log_sum_law, softmax_law

__all__ = ["attention_factors", "log_softmax_factors", "logsumexp_factors", "softmax_factors"]


def softmax_factors(size: int, *, mult: float = 1.0, center: str = "rms") -> Factors:
    """`softmax(mult * x)` over `size` unit normal logits.

    For long rows the output has `size / sqrt(exp(mult**2))`, or with center "std"
    `size / sqrt(exp(mult**2) - 1)`, and the gradient `size / sqrt(exp(mult**2)) / mult`. Short rows
    and large `mult` follow the exact law. The output keeps its mean, the factor over `size`.

    Args:
        size: of the softmax dimension, up to 2**24. Over a single entry softmax is constant, and
            both factors are 1.
        mult: positive, at most 64.
        center: "rms" or "std", see `activation_factors`. By "rms" a product with the output is at
            unit scale, since it adds up the mean as well.
    Raises:
        ValueError: mult out of range, or an unknown center.
    Source: derived, see `unitscale.scaling.softmax`. Blake et al. 2023 use `size` for both.
    """
    if not mult > 0:
        raise ValueError(f"softmax: mult is {mult}, expected a positive number.")
    if center not in {"std", "rms"}:
        raise ValueError(f"center is {center!r}, expected 'std' or 'rms'.")
    if size <= 1:
        return Factors(output_scale=1.0, grad_input_scale=1.0)
    law = softmax_law(constant(mult))
    spread = size * at_size(law.square, size) - (1 if center == "std" else 0)
    jacobian = at_size(law.jacobian, size) * (size - 1)
    return Factors(output_scale=size * spread**-0.5, grad_input_scale=size / mult / jacobian**0.5)


def log_softmax_factors() -> Factors:
    """Both 1: the logits pass through; the output keeps its mean of about `-log(size) - 1 / 2`."""
    return Factors(output_scale=1.0, grad_input_scale=1.0)


def logsumexp_factors(size: int) -> Factors:
    """`logsumexp` over `size` unit normal numbers.

    For long rows `(size / (e - 1))**0.5` for the output and `size / e**0.5` for the gradient, which
    is the softmax; short rows follow the exact laws.
    """
    size = max(size, 1)
    return Factors(
        output_scale=(size / at_size(log_sum_law(1.0), size)) ** 0.5,
        grad_input_scale=(size / at_size(softmax_law(1.0).square, size)) ** 0.5,
    )


def attention_factors(
    key_size: int,
    head_dim: int,
    *,
    query_size: int | None = None,
    is_causal: bool = False,
    mult: float = 1.0,
    scale: float | None = None,
    dropout_p: float = 0.0,
    num_query_heads: int = 1,
    num_key_heads: int = 1,
) -> AttentionFactors:
    """`softmax(logit_scale * q @ k.T) @ v` with unit normal q, k, v, pooled over positions.

    The logits have standard deviation `s = logit_scale * sqrt(head_dim)`, and the output without
    its factor the scale `sqrt(E sum p**2)`: about `sqrt(exp(s**2) / key_size)`, or under a causal
    mask `sqrt(H / key_size)` with `H = 1 + 1/2 + ... + 1/key_size` when s is small. The gradients
    of q and k have scale `s * sqrt(E sum (dp / dlogit)**2)`. Dropout multiplies all four by
    `(1 - dropout_p)**-0.5`.

    None of q, k and v is on a cut-edge in self-attention, so they are meant to be constrained to
    the output's factor; with "to_output_scale" the gradients of q and k then are of scale
    `logit_scale * sqrt(head_dim)`, which is small under u-muP.

    Assumes values that are independent over positions. Deep stacks correlate them, and the output
    then grows up to `sqrt(key_size)`; a normalization after the branch bounds that.

    Args:
        key_size: number of keys that a query may see; for a causal mask also the number of queries.
        head_dim: size of a query; a Python int (a symbolic one is made constant).
        query_size: number of queries per key, if not `key_size`.
        is_causal: query i sees keys 0 to i. Arbitrary masks: pass the typical number of keys.
        mult: u-muP's multiplier, the logit scale is `mult / head_dim`.
        scale: the logit scale itself, in place of mult; torch's default is `head_dim**-0.5`.
        dropout_p: probability with which an entry of the softmax is dropped.
        num_query_heads: of grouped-query attention.
        num_key_heads: likewise; a key serves `num_query_heads / num_key_heads` query heads.
    Raises:
        ValueError: a logit standard deviation of 0 or above 64; dropout_p not in [0, 1).
    Source: derived, see `unitscale.scaling.softmax`; logit scale from u-muP (Blake et al. 2024).
    """
    if not 0 <= dropout_p < 1:
        raise ValueError(f"attention: dropout_p is {dropout_p}, expected 0 or more and below 1.")
    head_dim = operator.index(head_dim)
    logit_scale = mult / head_dim if scale is None else scale
    logit_std = constant(abs(logit_scale) * math.sqrt(head_dim))
    if not logit_std > 0:
        raise ValueError(f"attention: the logit scale is {logit_scale}, expected one other than 0.")
    law = softmax_law(logit_std, is_causal)
    output = ((1 - dropout_p) / at_size(law.square, key_size)) ** 0.5
    logits = 1.0
    if key_size > 1:  # softmax over one key is constant
        jacobian = at_size(law.jacobian, key_size) * (key_size - 1) / key_size
        logits = ((1 - dropout_p) / jacobian) ** 0.5 / logit_std
    uses = num_query_heads / num_key_heads
    if query_size is not None:
        uses = uses * query_size / key_size
    return AttentionFactors(
        logit_scale=logit_scale,
        output_scale=output,
        grad_query_scale=logits,
        grad_key_scale=logits * uses**-0.5,
        grad_value_scale=output * uses**-0.5,
    )
