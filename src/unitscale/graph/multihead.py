"""`F.multi_head_attention_forward` in ops of its own: four products, and attention between them."""

import inspect
import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx
from torch.fx.proxy import Proxy

from unitscale.graph import dynamo
from unitscale.graph.number import constant, is_known, may_be_true

__all__ = ["SIGNATURE", "attention", "refusal", "size"]

SIGNATURE = inspect.signature(F.multi_head_attention_forward)

UNUSUAL = ("bias_k", "bias_v", "static_k", "static_v")
UNUSUAL_FLAGS = ("add_zero_attn",)
SETTINGS = (
    *("embed_dim_to_check", "num_heads", "training", "need_weights", "is_causal"),
    "use_separate_proj_weight",
)


def refusal(node: fx.Node, given: dict[str, Any]) -> str | None:
    """Why `attention` does not do what this call does, or None if it does.

    Not with a causal mask whose weights are asked for: they would differ in the last bit.
    """
    unknown = [name for name in (*SETTINGS, *UNUSUAL_FLAGS) if not is_known(given[name])]
    if unknown:
        return f"{unknown[0]} changes between calls"
    given = settled(given)
    set_ = [name for name in UNUSUAL if given[name] is not None]
    set_ += [name for name in UNUSUAL_FLAGS if given[name]]
    if set_:
        return f"{set_[0]} is set"
    if given["need_weights"] and given["is_causal"]:
        return "its weights are asked for under is_causal; pass need_weights=False"
    if dynamo.example(given["query"]).dim() != 3:
        return "its query has no batch axis"
    return None


def settled(given: dict[str, Any]) -> dict[str, Any]:
    """The arguments, with numbers for the settings that are nodes of the graph all the same."""
    return {**given, **{name: constant(given[name]) for name in (*SETTINGS, *UNUSUAL_FLAGS)}}


def example(x: Proxy) -> Tensor:
    """The example value behind a proxy."""
    value: Tensor = dynamo.example(x.node)
    return value


def size(x: Proxy, axis: int) -> Any:
    """A size of a tensor: a number, or a node for one that may change."""
    number = example(x).size(axis)
    return number if isinstance(number, int) else x.size(axis)


def attention(given: dict[str, Any]) -> tuple[Any, Any]:
    """What `F.multi_head_attention_forward` computes, [length, batch, width], and the weights."""
    given = settled(given)
    query, key, need_weights = given["query"], given["key"], given["need_weights"]
    heads, width = given["num_heads"], given["embed_dim_to_check"]
    target, batch, source = size(query, 0), size(query, 1), size(key, 0)
    mask, is_causal = combined_mask(given, batch, source)
    q, k, v = (
        x.view(length, batch * heads, width // heads).transpose(0, 1)
        for x, length in zip(projected(given, width), (target, source, source), strict=True)
    )
    dropout = given["dropout_p"] if given["training"] else 0.0
    if need_weights:
        q = q * math.sqrt(1.0 / float(width // heads))
        k = k.transpose(-2, -1)
        logits = torch.bmm(q, k) if mask is None else torch.baddbmm(mask, q, k)
        weights = F.softmax(logits, dim=-1)
        weights = F.dropout(weights, p=dropout) if may_be_true(dropout) else weights
        merged = torch.bmm(weights, v).transpose(0, 1).reshape(target * batch, width)
        weights = weights.view(batch, heads, target, source)
        weights = weights.mean(dim=1) if given["average_attn_weights"] else weights
    else:
        if mask is not None:
            shared = example(mask).size(0) == 1
            mask = mask.unsqueeze(0) if shared else mask.view(batch, heads, -1, source)
        q = q.view(batch, heads, target, width // heads)
        k, v = (x.view(batch, heads, source, width // heads) for x in (k, v))
        output = F.scaled_dot_product_attention(q, k, v, mask, dropout, is_causal)
        merged, weights = output.permute(2, 0, 1, 3).reshape(batch * target, width), None
    output = F.linear(merged, given["out_proj_weight"], given["out_proj_bias"])
    return output.view(target, batch, width), weights


def projected(given: dict[str, Any], width: int) -> tuple[Any, Any, Any]:
    """Query, key and value after their projections, in as few products as they allow."""
    query, key, value = given["query"], given["key"], given["value"]
    weight, bias = given["in_proj_weight"], given["in_proj_bias"]
    if given["use_separate_proj_weight"]:  # key or value has another width
        b_q, b_k, b_v = chunk(bias)
        q = F.linear(query, given["q_proj_weight"], b_q)
        k = F.linear(key, given["k_proj_weight"], b_k)
        return q, k, F.linear(value, given["v_proj_weight"], b_v)
    if query is key is value:
        q, k, v = unpacked(F.linear(query, weight, bias), 3, width)
        return q, k, v
    if key is value:
        parts = [width, 2 * width]
        (w_q, w_kv), (b_q, b_kv) = split(weight, parts), split(bias, parts)
        q = F.linear(query, w_q, b_q)
        k, v = unpacked(F.linear(key, w_kv, b_kv), 2, width)
        return q, k, v
    (w_q, w_k, w_v), (b_q, b_k, b_v) = chunk(weight), chunk(bias)
    return F.linear(query, w_q, b_q), F.linear(key, w_k, b_k), F.linear(value, w_v, b_v)


def unpacked(x: Any, count: int, width: int) -> list[Any]:
    """The results of one product for several projections."""
    x = x.unflatten(-1, (count, width)).unsqueeze(0).transpose(0, -2).squeeze(-2).contiguous()
    return [x[i] for i in range(count)]


def split(x: Any, parts: list[int]) -> list[Any]:
    """Pieces of a packed parameter; None of none."""
    if x is None:
        return [None] * len(parts)
    pieces = x.split(parts)
    return [pieces[i] for i in range(len(parts))]


def chunk(x: Any) -> list[Any]:
    """Three equal pieces of a packed parameter; None of none."""
    if x is None:
        return [None] * 3
    pieces = x.chunk(3)
    return [pieces[i] for i in range(3)]


def combined_mask(given: dict[str, Any], batch: Any, source: Any) -> tuple[Any, bool]:
    """The sum of both masks, [1 or batch * heads, length, length], and whether it is causal."""
    mask, padding = given["attn_mask"], given["key_padding_mask"]
    heads, is_causal = given["num_heads"], given["is_causal"]
    if is_causal and padding is None and not given["need_weights"]:
        return None, True
    mask = as_float(mask, given["query"])
    if mask is not None and example(mask).dim() == 2:
        mask = mask.unsqueeze(0)
    if padding is None:
        return mask, is_causal
    padding = as_float(padding, given["query"]).view(batch, 1, 1, source)
    padding = padding.expand(-1, heads, -1, -1).reshape(batch * heads, 1, source)
    return padding if mask is None else mask + padding, False


def as_float(mask: Any, query: Proxy) -> Any:
    """A mask as something to add: -inf where a boolean one is true."""
    if mask is None or example(mask).is_floating_point():
        return mask
    zeros = torch.zeros_like(mask, dtype=example(query).dtype)
    return zeros.masked_fill(mask, -math.inf)
