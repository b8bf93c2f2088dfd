"""Low-precision attention: q, k, v and the output rounded, and held in eight bits for backward.

Backward computes the attention again from the rounded q, k and v, so that nothing else is saved.
The probabilities stay in the model's dtype, as in fused attention kernels.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from unitscale.gemm.derivative import first_order
from unitscale.gemm.formats import ProductFormats
from unitscale.gemm.operand import Use, encode, given_scales, restore, save, take
from unitscale.gemm.rounded import edge_scales, owned, round_value, rounded, times

__all__ = ["scaled_dot_product_attention"]


class AttentionProduct(torch.autograd.Function):
    """q [..., H, L, d], k [..., H, S, d], v [..., H, S, e] -> [..., H, L, e]."""

    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        query_factor: Tensor | None,
        attn_mask: Tensor | None,
        options: tuple[bool, float | None, bool],
        formats: ProductFormats,
        scales: Tensor | None,
    ) -> Tensor:
        if attn_mask is not None and attn_mask.dtype == torch.bool:
            attn_mask = attn_mask.clone()  # torch's own attention makes a float mask of it
        operands = (query, key, value)
        given = given_scales(scales, operands)
        amaxes = () if given is None else (scales, *(own.amax for own in given))
        uses = [Use(text) for text in (formats.x_output, formats.w_output, formats.w_output)]
        q, k, v = save(
            ctx,
            formats,
            operands,
            [(use, use) for use in uses],
            dtype=None,
            given=given,
            more=(query_factor, attn_mask, *amaxes),
        )
        ctx.options = options
        output = attend(q, k, v, query_factor, attn_mask, options)
        return owned(round_value(output, formats.result))

    @staticmethod
    @first_order
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        formats = ctx.kept.formats
        operands, (query_factor, attn_mask, *amaxes) = restore(ctx, grad.dtype, grad)
        given = given_scales(amaxes[0] if amaxes else None, [grad], 3)
        use = Use(formats.g_grad_input)
        g = take(encode(grad, use, given[0] if given else None), use, grad.dtype)
        if attn_mask is not None and attn_mask.is_floating_point():
            attn_mask = attn_mask.to(g.dtype)  # as autocast made it on the way forward
        with torch.enable_grad():
            q, k, v = (x.detach().requires_grad_() for x in operands)
            output = attend(q, k, v, query_factor, attn_mask, ctx.options)
            grads = torch.autograd.grad(output, (q, k, v), g)
        rounded_grads = (
            round_value(x, formats.result).to(dtype)
            for x, dtype in zip(grads, ctx.kept.dtypes, strict=True)
        )
        grad_scales = torch.stack([*amaxes[1:], given[0].amax]) if given else None
        return (*rounded_grads, None, None, None, None, grad_scales)


TAKES_FORMATS = torch.__version__ >= "2.12"
"""Whether Dynamo passes a tuple made in a graph to a function of `allow_in_graph`."""


@torch.compiler.allow_in_graph
def attention_product(*args: Any) -> Tensor:
    """`AttentionProduct` for Dynamo, which does not trace a backward that calls autograd."""
    output: Tensor = AttentionProduct.apply(*args)
    return output


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    query_factor: Tensor | None,
    attn_mask: Tensor | None,
    options: tuple[bool, float | None, bool],
) -> Tensor:
    """Attention with the query multiplied by a factor."""
    is_causal, scale, enable_gqa = options
    if query_factor is not None:
        query = times(query, query_factor)
    return F.scaled_dot_product_attention(
        query, key, value, attn_mask, is_causal=is_causal, scale=scale, enable_gqa=enable_gqa
    )


def scaled_dot_product_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
    query_factor: Tensor | None = None,
    formats: ProductFormats,
    scales: Tensor | None = None,
) -> Tensor:
    """`F.scaled_dot_product_attention` in low precision.

    `query_factor`, a scalar tensor, multiplies the query after it is rounded: it takes the units of
    query and key to the logits, which must see their true values. `scales` is float32 [4]: of
    query, key, value and the output's gradient, see `linear`. With dropout, with a mask that
    is learned, or compiled by torch 2.11, the operands are rounded in the same way but saved as
    they are.
    """
    formats = formats._replace(executor="emulated")  # for the sake of the probabilities
    options = (is_causal, scale, enable_gqa)
    learned_mask = attn_mask is not None and attn_mask.requires_grad
    is_one_op = TAKES_FORMATS or not torch.compiler.is_compiling()
    if not dropout_p and not learned_mask and is_one_op:
        return attention_product(
            query, key, value, query_factor, attn_mask, options, formats, scales
        )
    *given, grad_scales = edge_scales(scales, 3)
    texts = (formats.x_output, formats.w_output, formats.w_output)
    q, k, v = (
        rounded(x, text, formats.result, scales=own)
        for x, text, own in zip((query, key, value), texts, given, strict=True)
    )
    if query_factor is not None:
        q = times(q, query_factor)
    output = F.scaled_dot_product_attention(
        q, k, v, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa
    )
    return rounded(output, formats.result, formats.g_grad_input, scales=grad_scales)
