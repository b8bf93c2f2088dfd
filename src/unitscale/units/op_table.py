"""One row per op: how it treats units, whether it is a matrix product, what else the rewrite asks.

What an op does to memory and to gradients, whatever units are, is in `graph.effect`: that room is
below this one and needs its half without units. The kinds are explained in `units.ops`.
"""

import operator
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
import torch.nn.functional as F

from unitscale.scaling import scaled

__all__ = ["GENERAL", "OPS", "Form", "Kind", "Op", "Rule"]

Kind = Literal["general", "linear", "sum", "view", "attention"]

Form = Callable[..., Any] | str
"""A way to call an op: a function, or the name of a method."""


@dataclass(frozen=True, kw_only=True)
class Rule:
    """How one op treats units.

    Args:
        kind: see the docstring of `units.ops`.
        operands: (position, keyword) of the tensors the op is linear in, or sums; a list counts as
            all its tensors. Empty: every tensor argument.
        additive: (position, keyword) of a bias, added after the product.
        product: a matrix product, where a recipe rounds the operands.
        bijective: a view of every element once, so its gradient has the RMS of its input's.
    """

    kind: Kind
    operands: tuple[tuple[int, str], ...] = ()
    additive: tuple[int, str] | None = None
    product: bool = False
    bijective: bool = False


@dataclass(frozen=True, kw_only=True)
class Op:
    """One op of torch.

    Args:
        forms: its functions and methods, all of which take their tensors in the rule's slots.
        rule: how it treats units; `general` is right for every op.
        registered: names in the dispatcher, and of private functions that need not exist.
        gemm: the function of `unitscale.gemm` that computes it with operands held in eight bits; a
            product without one is rounded at its edges.
        saved: the function whose derivative may be taken at a rounded input, see `units.saved`.
        unrounded: for a matrix product that has no rule, why no recipe rounds it.
    """

    forms: tuple[Form, ...]
    rule: Rule
    registered: tuple[str, ...] = ()
    gemm: str | None = None
    saved: Callable[..., Any] | None = None
    unrounded: str | None = None


GENERAL = Rule(kind="general")
FIRST = Rule(kind="linear", operands=((0, "input"),))
BOTH = Rule(kind="linear", operands=((0, "input"), (1, "other")))
SUM = Rule(kind="sum", operands=((0, "input"), (1, "other")))
RESHAPE = Rule(kind="view", operands=((0, "input"),), bijective=True)
SLICE = Rule(kind="view", operands=((0, "input"),))

WEIGHTED = Rule(
    kind="linear", operands=((0, "input"), (1, "weight")), additive=(2, "bias"), product=True
)
ATTENTION = Rule(kind="attention", operands=((0, "query"), (1, "key"), (2, "value")), product=True)
MATMUL = replace(BOTH, product=True)
ADD_PRODUCT = Rule(
    kind="linear", operands=((1, "mat1"), (2, "mat2")), additive=(0, "input"), product=True
)
BILINEAR = Rule(
    kind="linear",
    operands=((0, "input1"), (1, "input2"), (2, "weight")),
    additive=(3, "bias"),
    product=True,
)


def times(second: str) -> Rule:
    """A product of `input` and an operand of this name."""
    return replace(MATMUL, operands=((0, "input"), (1, second)))


def add(left: str, right: str) -> Rule:
    """A product of two operands of these names, added to `input`."""
    return replace(ADD_PRODUCT, operands=((1, left), (2, right)))


def row(rule: Rule, *forms: Form, aten: str | None = None, **others: Any) -> Op:
    """A row; `aten` names the op in the dispatcher, which takes its arguments in the same order."""
    registered = (*others.pop("registered", ()), *((f"aten.{aten}",) if aten else ()))
    return Op(forms=forms, rule=rule, registered=registered, **others)


def product_without_rule(why: str, *registered: str) -> Op:
    """A matrix product by nature that no recipe rounds, known by the names of its functions."""
    return Op(forms=(), rule=GENERAL, registered=registered, unrounded=why)


PRODUCTS = (
    row(WEIGHTED, F.linear, aten="linear", gemm="linear"),
    row(WEIGHTED, F.conv1d, aten="conv1d", gemm="conv1d"),
    row(WEIGHTED, F.conv2d, aten="conv2d", gemm="conv2d"),
    row(WEIGHTED, F.conv3d, aten="conv3d", gemm="conv3d"),
    row(WEIGHTED, F.conv_transpose1d, aten="conv_transpose1d"),
    row(WEIGHTED, F.conv_transpose2d, aten="conv_transpose2d"),
    row(WEIGHTED, F.conv_transpose3d, aten="conv_transpose3d"),
    row(WEIGHTED, torch.convolution, aten="convolution"),
    row(WEIGHTED, F.conv_tbc, aten="conv_tbc"),
    row(BILINEAR, F.bilinear, aten="bilinear"),
    row(
        ATTENTION,
        F.scaled_dot_product_attention,
        aten="scaled_dot_product_attention",
        gemm="scaled_dot_product_attention",
    ),
    row(
        MATMUL,
        *(torch.matmul, operator.matmul, "matmul", "__matmul__"),
        aten="matmul",
        gemm="matmul",
    ),
    row(MATMUL, torch.linalg.matmul, operator.imatmul, aten="linalg_matmul", gemm="matmul"),
    row(MATMUL, "__rmatmul__"),  # the other tensor comes first, so `gemm.matmul` is not for it
    row(times("mat2"), torch.mm, "mm", aten="mm", gemm="matmul"),
    row(times("mat2"), torch.bmm, "bmm", aten="bmm", gemm="matmul"),
    row(times("vec"), torch.mv, "mv", aten="mv"),
    row(times("tensor"), torch.dot, "dot", aten="dot"),
    row(MATMUL, torch.vdot, "vdot", aten="vdot"),
    row(MATMUL, torch.inner, "inner", aten="inner"),
    row(times("vec2"), torch.outer, "outer", aten="outer"),
    row(times("vec2"), torch.ger, "ger", aten="ger"),
    row(MATMUL, torch.kron, "kron", aten="kron"),
    row(replace(MATMUL, operands=((0, "x"), (1, "y"))), torch.linalg.vecdot, aten="linalg_vecdot"),
    row(replace(MATMUL, operands=((0, "a"), (1, "b"))), torch.tensordot, aten="tensordot"),
    row(add("mat1", "mat2"), torch.addmm, "addmm", aten="addmm", gemm="addmm"),
    row(add("batch1", "batch2"), torch.baddbmm, "baddbmm", aten="baddbmm"),
    row(add("batch1", "batch2"), torch.addbmm, "addbmm", aten="addbmm"),
    row(add("mat", "vec"), torch.addmv, "addmv", aten="addmv"),
    row(add("vec1", "vec2"), torch.addr, "addr", aten="addr"),
    row(
        Rule(kind="linear", operands=((0, "tensors"),), product=True),
        torch.linalg.multi_dot,
        aten="linalg_multi_dot",
    ),
    row(Rule(kind="linear", product=True), torch.einsum, torch.chain_matmul),
    # the products of experts
    row(
        Rule(
            kind="linear",
            operands=((0, "input"), (1, "weight")),
            additive=(3, "bias"),
            product=True,
        ),
        registered=("_grouped_mm", "transformers.grouped_mm_fallback"),
    ),
    row(
        Rule(
            kind="linear", operands=((0, "mat_a"), (1, "mat_b")), additive=(3, "bias"), product=True
        ),
        registered=("grouped_mm", "aten._grouped_mm"),
    ),
)

UNROUNDED = (
    product_without_rule(
        "torch runs all steps of a recurrent layer in one op; use unitscale.nn, or cells",
        *("lstm", "gru", "rnn_tanh", "rnn_relu", "quantized_lstm", "quantized_gru"),
    ),
    product_without_rule(
        "one kernel computes its scores, their mask and their sum; use "
        "scaled_dot_product_attention",
        *("flex_attention", "_native_multi_head_attention", "varlen_attn", "_varlen_attn"),
        *("_transformer_encoder_layer_fwd", "_triton_multi_head_attention"),
        *("aten._scaled_dot_product_flash_attention", "aten._scaled_dot_product_attention_math"),
        *("aten._scaled_dot_product_flash_attention_for_cpu", "_scaled_dot_product_attention"),
        *("aten._scaled_dot_product_efficient_attention", "aten._flash_attention_forward"),
        *("aten._scaled_dot_product_cudnn_attention", "aten._efficient_attention_forward"),
    ),
    product_without_rule(
        "it takes operands in low precision already",
        *("_scaled_mm", "scaled_mm", "_scaled_grouped_mm", "scaled_grouped_mm", "_int_mm"),
        *("aten._scaled_mm", "aten._scaled_grouped_mm", "aten._int_mm", "_weight_int8pack_mm"),
    ),
    product_without_rule(
        "it multiplies one tensor by itself, so that rounding it would be repeated",
        *("matrix_power", "linalg_matrix_power", "matrix_exp", "linalg_matrix_exp"),
        *("aten.matrix_power", "aten.linalg_matrix_power", "aten.linalg_matrix_exp"),
        *("cov", "corrcoef", "aten.cov", "aten.corrcoef"),
    ),
    product_without_rule(
        "a distance is a difference, which rounding both tensors would lose",
        *("cdist", "_euclidean_dist", "aten.cdist", "aten._cdist_forward"),
    ),
    product_without_rule(
        "it multiplies a sparse matrix",
        *("sspaddmm", "smm", "hspmm", "sparse_mm", "_sparse_mm", "sparse_sampled_addmm"),
    ),
)

SUMS = (
    row(SUM, torch.add, operator.add, "add"),
    row(SUM, torch.sub, operator.sub, "sub"),
    row(SUM, torch.maximum),
    row(SUM, torch.minimum),
    row(Rule(kind="sum", operands=((0, "tensors"),)), torch.cat, torch.stack),
    row(Rule(kind="sum", operands=((1, "input"), (2, "other"))), torch.where),
)

ELEMENTWISE = (
    row(BOTH, torch.mul, operator.mul, "mul", saved=torch.mul),
    row(FIRST, torch.div, operator.truediv, "div"),
    row(FIRST, torch.neg, operator.neg, "neg"),
    row(FIRST, torch.abs),
    row(FIRST, F.relu, torch.relu, "relu"),
    row(FIRST, F.leaky_relu),
    row(FIRST, F.dropout),
    row(Rule(kind="linear", operands=((0, "x"),)), scaled),
    row(GENERAL, F.elu, saved=F.elu),
    row(GENERAL, F.gelu, saved=F.gelu),
    row(GENERAL, F.mish, saved=F.mish),
    row(GENERAL, F.silu, saved=F.silu),
    row(GENERAL, F.softplus, saved=F.softplus),
)

REDUCTIONS_AND_COPIES = (
    row(FIRST, torch.sum, "sum"),
    row(FIRST, torch.mean, "mean"),
    row(FIRST, torch.cumsum, "cumsum"),
    row(Rule(kind="linear", operands=((1, "weight"),)), F.embedding),
    row(FIRST, F.avg_pool1d, F.avg_pool2d, F.adaptive_avg_pool1d, F.adaptive_avg_pool2d),
    row(FIRST, F.max_pool1d, F.max_pool2d),
    row(FIRST, F.interpolate),
    row(FIRST, torch.gather, "gather"),
    row(FIRST, torch.index_select, "index_select"),
    row(FIRST, torch.roll, "roll"),
    row(FIRST, torch.flip),
    row(FIRST, torch.tril, "tril"),
    row(FIRST, torch.triu),
    row(FIRST, torch.clone, "clone"),
    row(FIRST, torch.repeat_interleave, "repeat_interleave"),
    row(FIRST, "repeat"),
    row(FIRST, "to", "float", "type_as"),
    row(FIRST, "narrow", "select", operator.getitem),
)

VIEWS = (
    row(RESHAPE, "view"),
    row(RESHAPE, "reshape", torch.reshape),
    row(RESHAPE, "transpose", "swapaxes", torch.transpose, torch.swapaxes),
    row(RESHAPE, "permute", torch.permute),
    row(RESHAPE, "flatten", torch.flatten),
    row(RESHAPE, "unflatten"),
    row(RESHAPE, "squeeze", torch.squeeze),
    row(RESHAPE, "unsqueeze", torch.unsqueeze),
    row(RESHAPE, "contiguous"),
    row(RESHAPE, "t", torch.t),
    row(SLICE, "expand", "expand_as"),
    row(SLICE, "detach", torch.detach),
)

OPS: tuple[Op, ...] = (
    *PRODUCTS,
    *UNROUNDED,
    *SUMS,
    *ELEMENTWISE,
    *REDUCTIONS_AND_COPIES,
    *VIEWS,
)
