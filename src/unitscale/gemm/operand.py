"""Operands of a low-precision product: rounded, held in eight bits for backward, taken out again.

An operand with a scale of its own is `data * scale`, for its tensor, row, block or tile. The two
are multiplied in float32 and so is the product, whatever the dtype of the model: a scale in float16
would be 0 for most gradients, and one in bfloat16 off by up to 2**-9, and the whole product with
it. Hardware multiplies the data and applies the scales to sums, in float32 as well.

A tensor is taken by two products, over the contraction axis of each. If both take the same values
one copy is kept for backward; if scales follow the contraction (rows, blocks) the second product
gets a copy of its own, rounded from the tensor and not from the first copy.
"""

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor

from unitscale.formats import BlockFormat, Codec, Encoded, FloatFormat, round_to, widen
from unitscale.formats.batched import is_batched
from unitscale.formats.rounding import is_traced
from unitscale.formats.scale_rule import exact_scale
from unitscale.gemm import passes
from unitscale.gemm.formats import Parsed, ProductFormats, operand_of
from unitscale.gemm.hadamard import turned
from unitscale.recipes import Constant, Current, Delayed, Operand, PerTensor, Unit, parse_operand

__all__ = [
    "Given",
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


class Use(NamedTuple):
    """How a product takes a tensor.

    Args:
        text: of the operand; None takes it as it is.
        along: the axis of the contraction, -1 or -2.
    """

    text: str | None
    along: int = -1

    @property
    def operand(self) -> Operand:
        """What the text says."""
        return operand_of(self.text or "as is")

    @property
    def is_turned(self) -> bool:
        """Whether the encoded tensor has its last two axes swapped: its contraction is last."""
        return self.along == -2 and not self.operand.is_shared

    def shares(self, other: "Use") -> bool:
        """Whether both take the same values of a tensor."""
        return self.text == other.text and (self.operand.is_shared or self.along == other.along)


class Given(NamedTuple):
    """The amax of a tensor, and the scale that earlier steps gave it: 0 where there were none."""

    amax: Tensor
    scale: Tensor


def wide(dtype: torch.dtype) -> torch.dtype:
    """The dtype in which a scale meets a tensor of this dtype."""
    return torch.float64 if dtype == torch.float64 else torch.float32


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


def saturates(fmt: FloatFormat) -> bool:
    """Whether a cast to this format clamps: yes up to eight bits, no for FP16, BF16 and wider."""
    return fmt.bits <= 8


def amax_of(x: Tensor) -> Tensor:
    """The largest magnitude, in float32; 0 of an empty tensor."""
    return x.abs().amax().float() if x.numel() else x.new_zeros((), dtype=torch.float32)


CODECS = Parsed()


def codec_of(text: str) -> Codec:
    """The codec of an operand with a scale."""
    make_codec(text)
    codec: Codec = getattr(CODECS, text)
    return codec


@torch.compiler.assume_constant_result
def make_codec(text: str) -> None:
    """Have the codec of an operand's text among those that are known."""
    if hasattr(CODECS, text):
        return
    operand = parse_operand(text)
    assert operand.format is not None
    scale = operand.scale if isinstance(operand.scale, Current) else Current()
    rule = scale.power_of_two
    if isinstance(operand.format, BlockFormat) and not operand.format.has_tensor_scale:
        rule = rule or "floor"
    codec = Codec(
        format=operand.format,
        granularity=operand.granularity,
        power_of_two=rule,
        margin=scale.margin,
        rounding=operand.rounding,
    )
    setattr(CODECS, text, codec)


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
    if operand.format is None:
        return Encoded(x, None)
    if use.is_turned:
        x = x.mT
    if operand.transform is not None:
        x = turned(x.to(wide(x.dtype)), operand.transform.size)
    if isinstance(operand.format, FloatFormat) and not isinstance(operand.scale, Current):
        return at_given_scale(x, use, operand, given)
    assert use.text is not None
    codec = codec_of(use.text)
    if isinstance(operand.format, BlockFormat):
        is_unit = isinstance(operand.scale, Unit) and operand.format.has_tensor_scale
        return codec.grid(x, tensor_scale=1.0) if is_unit else codec.grid(x)
    return codec.grid(x)


def at_given_scale(x: Tensor, use: Use, operand: Operand, given: Given | None) -> Encoded:
    """A tensor at a scale that is known before it, or at none: what is not finite stays so.

    Inf becomes NaN, where a cast that saturates would hide an overflow from a `GradScaler`. A
    format without NaN has it in the scale: then the whole tensor is NaN, as a block would be.
    """
    fmt, rule, scale = operand.format, operand.scale, None
    assert isinstance(fmt, FloatFormat)
    assert use.text is not None
    if isinstance(rule, Constant):
        scale = torch.full((), 2.0**rule.log2, dtype=torch.float32, device=x.device)
    elif isinstance(rule, Delayed):
        amax = amax_of(x) if given is None else given.amax
        scale = exact_scale(amax, fmt, rule.margin)
        scale = scale if given is None else torch.where(given.scale > 0, given.scale, scale)
    if not fmt.has_nan:
        amax = amax_of(x) if given is None else given.amax
        scale = torch.ones_like(amax) if scale is None else scale
        scale = torch.where(amax.isfinite(), scale, torch.nan)
    elif saturates(fmt):
        x = nan_for_inf(x, given)
    if scale is not None:
        return codec_of(use.text).grid(x, scale=scale)
    return Encoded(round_to(x, fmt, operand.rounding, saturate=saturates(fmt)), None)


def nan_for_inf(x: Tensor, given: Given | None) -> Tensor:
    """`x` with NaN where it is Inf. On a CPU a sum tells first whether any is: a short pass."""
    if not (is_traced(x) or is_batched(x) or x.device.type != "cpu"):
        told = x.sum(dtype=wide(x.dtype)) if given is None else given.amax
        if math.isfinite(told.item()):
            return x
    return torch.nan_to_num(x, nan=torch.nan, posinf=torch.nan, neginf=torch.nan)


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
    return codec_of(use.text).pack(encoded)


def take(encoded: Encoded, use: Use, dtype: torch.dtype) -> Tensor:
    """The values of an encoded tensor, in the axes of the tensor."""
    if encoded.scale is None and encoded.data.dtype != torch.uint8:
        values = widen(encoded.data, dtype)
    else:
        assert use.text is not None
        values = codec_of(use.text).decode(encoded, dtype)
    return values.mT if use.is_turned else values


class Saved(NamedTuple):
    """What a product keeps of its operands: how backward takes them, and in which dtypes they came.

    Args:
        uses: of each operand in backward.
        dtypes: of each operand.
        more: how many other tensors are kept before them.
    """

    formats: ProductFormats
    uses: tuple[Use, ...]
    dtypes: tuple[torch.dtype, ...]
    more: int


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
) -> list[Tensor]:
    """Round the operands, keep for backward what it takes, and return the values to multiply.

    Args:
        uses: of each operand, by the product of the forward pass and by that of backward.
        dtype: of the product; None where every operand keeps its own (attention).
        wanted: which operands backward reads.
        given: amaxes and scales, of operands whose scales come from earlier steps.
        more: what else backward reads. A tensor that is kept elsewhere may be written to between
            the passes without a word from autograd.
    """
    values: list[Tensor] = []
    kept: list[Tensor | None] = []
    for index, (x, (use, then)) in enumerate(zip(operands, uses, strict=True)):
        own = given[index] if given else None
        encoded = encode(x, use, own)
        if wanted is None or wanted[index]:
            kept += keep(x, encoded, use, then, own)
        else:
            kept += [None] * PARTS
        # The values themselves, not those read back from eight bits: the same, and faster.
        kind = x.dtype if dtype is None or not formats.operands else working_dtype(formats, dtype)
        values.append(take(encoded, use, kind))
    ctx.kept = Saved(
        formats, tuple(u for _, u in uses), tuple(x.dtype for x in operands), len(more)
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
    for index, use in enumerate(kept.uses):
        encoded = Encoded(*parts[PARTS * index : PARTS * (index + 1)])
        value = None if encoded.data is None else take(encoded, use, dtype)
        values.append(
            in_backward(value, grad) if value is not None and dtype.itemsize == 2 else value
        )
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
