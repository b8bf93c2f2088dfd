"""Operands of a low-precision product: rounded, held in eight bits for backward, taken out again.

An operand with a scale of its own is `data * scale`, for its tensor, row, block or tile. The two
are multiplied in float32 and so is the product, whatever the dtype of the model: a scale in float16
would be 0 for most gradients, and one in bfloat16 off by up to 2**-9, and the whole product with
it. Hardware multiplies the data and applies the scales to sums, in float32 as well.

A tensor is taken by two products, over the contraction axis of each. If both take the same values
one copy is kept for backward; if scales follow the contraction (rows, blocks) the second product
gets a copy of its own, rounded from the tensor and not from the first copy.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor

from unitscale.formats import BlockFormat, Encoded, widen
from unitscale.formats.rounding import is_traced
from unitscale.gemm import opaque, passes
from unitscale.gemm.formats import ProductFormats
from unitscale.gemm.grid import Given, Use, amax_of, codec_of, decoded, grid, saturates, wide
from unitscale.recipes import Current, Operand, PerTensor

__all__ = [
    "NOT_SHARED",
    "Given",
    "Sharing",
    "Use",
    "amax_of",
    "encode",
    "in_backward",
    "on_grid",
    "pack",
    "restore",
    "result_dtype",
    "saturates",
    "save",
    "take",
    "uncast",
    "wide",
    "working_dtype",
]


def result_dtype(x: Tensor) -> torch.dtype:
    """The dtype of a product with `x`: that of an autocast region, or of `x`."""
    kind = x.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype


def working_dtype(formats: ProductFormats, dtype: torch.dtype) -> torch.dtype:
    """The dtype in which the rounded operands of a model in `dtype` are multiplied."""
    if formats.executor == "bf16":
        return torch.bfloat16
    return wide(dtype) if formats.is_scaled else dtype


def uncast(formats: ProductFormats, x: Tensor) -> AbstractContextManager[Any]:
    """Without autocast where operands have scales: it would round their values once more."""
    kind = x.device.type
    if not formats.is_scaled or not torch.is_autocast_enabled(kind):
        return nullcontext()
    return torch.autocast(kind, enabled=False)


def encode(x: Tensor, use: Use, given: Given | None = None) -> Encoded:
    """A tensor rounded as a product takes it; data in the dtype of x, with a scale in a wide one.

    With scales that follow the contraction, the contraction is the last axis of the result.
    """
    if use.text is not None and not is_traced(x):
        count(use.operand)
    return on_grid(x, use, given)


def on_grid(x: Tensor, use: Use, given: Given | None = None) -> Encoded:
    """`encode` without counting it: at the edges of an op a kernel would round as it reads."""
    operand = use.operand
    if opaque.serves(x, operand):
        return opaque.encode(x, use)
    return grid(x, use, given)


def count(operand: Operand) -> None:
    """Count the passes over memory that encoding takes; see `gemm.passes`."""
    passes.note("casts")
    has_outer = not isinstance(operand.format, BlockFormat) or operand.format.has_tensor_scale
    is_whole = isinstance(operand.granularity, PerTensor) or isinstance(operand.format, BlockFormat)
    if isinstance(operand.scale, Current) and has_outer and is_whole:
        passes.note("amax")


def keep(x: Tensor, first: Encoded, use: Use, then: Use, given: Given | None = None) -> Encoded:
    """What backward needs of a tensor that a product took by `use`, and another takes by `then`.

    In as few bits as torch can hold.
    """
    found = first if then.shares(use) else encode(x, then, given)
    return pack(found, then)


def pack(encoded: Encoded, use: Use) -> Encoded:
    """The same with its data in the format's own dtype, an exact cast."""
    if use.text is None:
        return encoded
    if opaque.serves(encoded.data, use.operand):
        return opaque.pack(encoded, use.text)
    return codec_of(use.text).pack(encoded)


def take(encoded: Encoded, use: Use, dtype: torch.dtype) -> Tensor:
    """The values of an encoded tensor, in the axes of the tensor."""
    if encoded.scale is None and encoded.data.dtype != torch.uint8:
        values = widen(encoded.data, dtype)
    else:
        assert use.text is not None
        is_one_node = opaque.serves(encoded.data, use.operand)
        decode = opaque.decode if is_one_node else decoded
        values = decode(encoded, use.text, dtype)
    return values.mT if use.is_turned else values


class Sharing(NamedTuple):
    """What a product of an input and a weight need not keep by itself.

    Args:
        codes: data and scale of the input, packed, where several products take it alike: all of
            them keep this one copy.
        recodes: keep the weight as it is and round it again in backward. For a parameter, which is
            there in any case: that holds no byte more.
    """

    codes: tuple[Tensor, Tensor | None] | None = None
    recodes: bool = False


NOT_SHARED = Sharing()


class Saved(NamedTuple):
    """What a product keeps of its operands: how backward takes them, and in which dtypes they came.

    Args:
        uses: of each operand in backward.
        dtypes: of each operand.
        more: how many other tensors are kept before them.
        recodes: whether the last operand was kept as it is.
    """

    formats: ProductFormats
    uses: tuple[Use, ...]
    dtypes: tuple[torch.dtype, ...]
    more: int
    recodes: bool = False


PARTS = len(Encoded._fields)


def save(
    ctx: Any,
    formats: ProductFormats,
    operands: Sequence[Tensor],
    uses: Sequence[tuple[Use, Use]],
    *,
    dtype: torch.dtype | None,
    wanted: Sequence[bool] | None = None,
    given: Sequence[Given] | None = None,
    more: Sequence[Tensor | None] = (),
    sharing: Sharing = NOT_SHARED,
) -> list[Tensor]:
    """Round the operands, keep for backward what it takes, and return the values to multiply.

    Args:
        uses: of each operand, by the product of the forward pass and by that of backward.
        dtype: of the product; None where every operand keeps its own (attention).
        wanted: which operands backward reads.
        given: amaxes and scales, of operands whose scales come from earlier steps.
        more: what else backward reads. A tensor that is kept elsewhere may be written to between
            the passes without a word from autograd.
        sharing: what is kept elsewhere, of a product of an input and a weight.
    """
    values: list[Tensor] = []
    kept: list[Tensor | None] = []
    for index, (x, (use, then)) in enumerate(zip(operands, uses, strict=True)):
        own = given[index] if given else None
        shared = sharing.codes if index == 0 else None
        encoded = encode(x, use, own) if shared is None else Encoded(*shared)
        if wanted is None or wanted[index]:
            if sharing.recodes and index == 1:
                kept += Encoded(x, None)
            else:
                kept += keep(x, encoded, use, then, own) if shared is None else encoded
        else:
            kept += [None] * PARTS
        # The values themselves, not those read back from eight bits: the same, and faster.
        kind = x.dtype if dtype is None or not formats.operands else working_dtype(formats, dtype)
        values.append(take(encoded, use, kind))
    ctx.kept = Saved(
        formats,
        tuple(u for _, u in uses),
        tuple(x.dtype for x in operands),
        len(more),
        sharing.recodes,
    )
    ctx.save_for_backward(*more, *kept)
    return values


def restore(ctx: Any, dtype: torch.dtype, grad: Tensor) -> tuple[list[Any], tuple[Any, ...]]:
    """The values of the saved operands in `dtype` (None where not kept), and what else was saved.

    Args:
        grad: any gradient that backward got; in sixteen bits the values are taken out after it.
    """
    kept: Saved = ctx.kept
    saved = ctx.saved_tensors  # read once: a second time, a checkpoint has no more
    more, parts = saved[: kept.more], saved[kept.more :]
    values: list[Any] = []
    is_late = dtype.itemsize == 2 or kept.recodes
    for index, use in enumerate(kept.uses):
        encoded = Encoded(*parts[PARTS * index : PARTS * (index + 1)])
        if kept.recodes and index == 1 and encoded.data is not None:
            encoded = encode(in_backward(encoded.data, grad), use)
        value = None if encoded.data is None else take(encoded, use, dtype)
        values.append(in_backward(value, grad) if value is not None and is_late else value)
    return values, more


def in_backward(x: Tensor, grad: Tensor) -> Tensor:
    """`x`, in a way that a compiler computes it in the backward pass.

    To torch's partitioner two bytes saved for a product are as good as one byte saved and a cast,
    and it takes the two; what depends on the gradient it cannot compute before. Seen in torch 2.13.
    """
    if not is_traced(grad):
        return x
    first = grad.detach().reshape(-1)[:1].float()
    one = 1.0 + (first.view(torch.int32) & 0).float()
    return x * one.to(x.dtype)


def given_scales(
    scales: Tensor | None, operands: Sequence[Tensor], start: int = 0
) -> list[Given] | None:
    """The amaxes of some operands beside the scales that earlier steps gave them.

    A product sends the amaxes of its operands back as the gradient of its scales: so they reach
    whoever made the scales once the backward pass is done, from any compiler.
    """
    if scales is None:
        return None
    scales = scales.detach()
    return [Given(amax_of(x), scales[start + i]) for i, x in enumerate(operands)]
