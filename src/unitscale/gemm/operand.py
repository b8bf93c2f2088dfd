"""Operands of a low-precision product: rounded, held in eight bits for backward, taken out again.

With a scale of its own an operand is `data * scale`. In a float32 model the two are multiplied
before the product. In 16 bits they stay apart, as on FP8 hardware: the data is multiplied, and the
product by both scales, in float32. A scale in float16 would be 0 for most gradients, and one in
bfloat16 off by up to 2**-9, and the whole product with it.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor

from unitscale.formats import widen
from unitscale.formats.rounding import is_traced
from unitscale.gemm.rounded import (
    SUM_OVER_FEATURES,
    ProductFormats,
    Quantized,
    round_data,
    round_sum,
)

__all__ = [
    "Operands",
    "in_backward",
    "is_apart",
    "recover",
    "restore",
    "result_dtype",
    "save",
    "uncast",
]

NONE = Quantized(None, None)  # type: ignore[arg-type]


class Operands(NamedTuple):
    """Operands in the dtype they are multiplied in, and the scales that their product lacks.

    A scale is None where the values have it already; a value is None that was not kept. `more` is
    what else was saved.
    """

    values: list[Any]
    scales: list[Tensor | None]
    more: tuple[Any, ...] = ()


def result_dtype(x: Tensor) -> torch.dtype:
    """The dtype of a product with `x`: that of an autocast region, or of `x`."""
    kind = x.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype


def working_dtype(formats: ProductFormats, dtype: torch.dtype) -> torch.dtype:
    """The dtype in which the rounded operands of a model in `dtype` are multiplied."""
    if formats.executor == "bf16":
        return torch.bfloat16
    return torch.float32 if is_apart(formats, dtype) else dtype


def is_apart(formats: ProductFormats, dtype: torch.dtype) -> bool:
    """Whether data is multiplied alone, and the product by the scales, as FP8 hardware does.

    In 16 bits data times scale would be rounded once more, and many values by the same share: FP8
    has few values, and so has a product that is rounded before it is multiplied by the scales.
    That is a wrong gain of the product, of up to 2**-9 in bfloat16. So both stay in float32.
    """
    return formats.current and dtype.itemsize == 2


def save(
    ctx: Any,
    formats: ProductFormats,
    *operands: Tensor,
    dtype: torch.dtype | None,
    wanted: Sequence[bool] = (True,) * 3,
    more: Sequence[Tensor | None] = (),
) -> Operands:
    """Round the operands, and keep those `wanted` for backward in the format's own dtype.

    Args:
        dtype: of the product; None where every operand is taken with its scale (attention).
        more: what else backward reads. A tensor that is kept elsewhere may be written to between
            the passes without a word from autograd.
    """
    ctx.formats, ctx.dtypes = formats, [x.dtype for x in operands]
    held = [round_operand(x, formats.forward, formats) for x in operands]
    kept = [
        NONE if not is_wanted else q if formats.forward is None else q.narrow(formats.forward)
        for q, is_wanted in zip(held, wanted, strict=False)
    ]
    ctx.save_for_backward(*more, *(tensor for pair in kept for tensor in pair))
    # The values themselves, not those read back from eight bits: the same, and faster.
    if dtype is not None and is_apart(formats, dtype):
        return apart(held, working_dtype(formats, dtype))
    if formats.forward is None:
        return Operands(list(operands), [None] * len(operands))
    work = [x if dtype is None else working_dtype(formats, x) for x in ctx.dtypes]
    values = [q.dequantize(kind) for q, kind in zip(held, work, strict=True)]
    return Operands(values, [None] * len(values))


def restore(ctx: Any, grad: Tensor, *, is_product: bool = True) -> Operands:
    """The rounded output gradient, and the saved operands after it."""
    formats, count = ctx.formats, 2 * len(ctx.dtypes)
    saved, more = ctx.saved_tensors, ()  # read once: a second time, a checkpoint has no more
    if len(saved) > count:
        more, saved = saved[:-count], saved[-count:]
    held = [Quantized(*pair) for pair in zip(saved[::2], saved[1::2], strict=True)]
    held = [round_operand(grad, formats.backward, formats), *held]
    dtype = working_dtype(formats, grad.dtype) if is_product else grad.dtype
    if is_product and is_apart(formats, grad.dtype):
        found = apart(held, dtype)
    else:
        values = [None if q.data is None else q.dequantize(dtype) for q in held]
        found = Operands(values, [None] * len(values))
    first, *others = found.values
    if dtype.itemsize == 2:
        others = [None if x is None else in_backward(x, grad) for x in others]
    return Operands([first, *others], found.scales, more)


def round_operand(x: Tensor, format_name: str | None, formats: ProductFormats) -> Quantized:
    """An operand rounded, or as it is."""
    if format_name is None:
        return Quantized(x, None)
    return Quantized(*round_data(x, format_name, current=formats.current))


def apart(held: Sequence[Quantized], dtype: torch.dtype) -> Operands:
    """Data and scales, each on its own."""
    values = [None if q.data is None else widen(q.data, dtype) for q in held]
    return Operands(values, [q.scale for q in held])


def uncast(operands: Operands, x: Tensor) -> AbstractContextManager[Any]:
    """Without autocast where data and scales are apart: in float16 sums of data would overflow."""
    kind = x.device.type
    if all(scale is None for scale in operands.scales) or not torch.is_autocast_enabled(kind):
        return nullcontext()
    return torch.autocast(kind, enabled=False)


def recover(
    product: Tensor,
    scales: Sequence[Tensor | None],
    formats: ProductFormats,
    dtype: torch.dtype,
    factor: float = SUM_OVER_FEATURES,
) -> Tensor:
    """A product of data times the scales of its operands, on the grid of the recipe's results."""
    if any(scale is not None for scale in scales):
        for scale in scales:
            product = product if scale is None else product * scale
    return round_sum(product, formats, factor).to(dtype)


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
