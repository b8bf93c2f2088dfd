"""`ScaledProduct`: a linear layer's three products by the kernels of FP8 and FP4 hardware.

Each product is asked on its own: a recipe may have the output in hardware and grad_weight in BF16.
One that has no kernel is emulated, by the same operands. The factors of the results are folded into
the scales that a kernel takes anyway, where those are float32; powers of two (MX) take none, so the
result is multiplied.
"""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from unitscale.formats import FORMATS, Encoded, torch_dtype
from unitscale.formats.granularity import PerTile
from unitscale.formats.rounding import is_traced
from unitscale.gemm import passes
from unitscale.gemm.derivative import first_order
from unitscale.gemm.executor import Plan, Way, plan
from unitscale.gemm.formats import ProductFormats, is_scaled
from unitscale.gemm.kernel import scaled_mm, scaled_mm_by
from unitscale.gemm.layout import in_rows, lay
from unitscale.gemm.operand import (
    PARTS,
    Given,
    Sharing,
    Use,
    amax_of,
    encode,
    given_scales,
    in_backward,
    keep,
    pack,
    result_dtype,
    take,
    wide,
)
from unitscale.gemm.rounded import SUM_OVER_FEATURES, SUM_OVER_ROWS, finish, owned, result_of

__all__ = ["NO_FACTORS", "Factors"]

Factors = tuple[Tensor | None, Tensor | None, Tensor | None]
"""What the results of the three products are multiplied by: scalar tensors; None is 1."""

NO_FACTORS: Factors = (None, None, None)


class ScaledProduct(torch.autograd.Function):
    """`LinearProduct` by `torch.nn.functional.scaled_mm`, with the factors of its results."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        factors: Factors,
        formats: ProductFormats,
        scales: Tensor | None,
        sharing: Sharing,
    ) -> Tensor:
        given = given_scales(scales, (x, weight))
        dtype = result_dtype(x)
        ctx.plan = plan(formats, dtype, x.device)
        ctx.formats, ctx.dtypes = formats, (x.dtype, weight.dtype)
        wants_x, wants_weight, *_ = ctx.needs_input_grad  # each from the other operand
        ctx.recodes = sharing.recodes
        codes = sharing.codes and Encoded(*sharing.codes)
        own = given or (None, None)
        left = operand(x, *uses_of_input(formats), own[0], wants_weight, codes)
        right = operand(weight, *uses_of_weight(formats), own[1], wants_x)
        if sharing.recodes and wants_x:
            right = right[0], Encoded(weight, None)
        more = () if given is None else (scales, given[0].amax, given[1].amax)
        output_factor, *grad_factors = factors
        ctx.save_for_backward(*left[1], *right[1], *grad_factors, *more)
        output = multiply(
            (left[0], Use(formats.x_output)),
            (right[0], Use(formats.w_output)),
            output_factor,
            formats,
            dtype,
            ctx.plan.output,
            is_output=True,
        )
        return owned(finish(output, bias, formats, dtype))

    @staticmethod
    @first_order
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        saved = ctx.saved_tensors
        x, weight = Encoded(*saved[:PARTS]), Encoded(*saved[PARTS : 2 * PARTS])
        x_factor, weight_factor, *more = saved[2 * PARTS :]
        formats: ProductFormats = ctx.formats
        ways: Plan = ctx.plan
        given = given_scales(more[0], [grad], 2) if more else None
        own = given[0] if given else None
        by_input, by_weight = Use(formats.g_grad_input), Use(formats.g_grad_weight, -2)
        grad_x = grad_weight = grad_bias = grad_scales = g = None
        if ctx.needs_input_grad[0]:
            g = pack(encode(grad, by_input, own), by_input)
            use = uses_of_weight(formats)[1]
            if ctx.recodes:
                weight = pack(encode(in_backward(weight.data, grad), use), use)
            right = weight, use
            grad_x = multiply(
                (g, by_input), right, x_factor, formats, grad.dtype, ways.grad_input
            ).to(ctx.dtypes[0])
        if ctx.needs_input_grad[1]:
            if g is None or not by_weight.shares(by_input):
                g = pack(encode(grad, by_weight, own), by_weight)
            right = x, uses_of_input(formats)[1]
            grad_weight = multiply(
                (g, by_weight),
                right,
                weight_factor,
                formats,
                grad.dtype,
                ways.grad_weight,
                sum_factor=SUM_OVER_ROWS,
            ).to(ctx.dtypes[1])
        if ctx.needs_input_grad[2]:
            grad_bias = grad.sum(0)
        if more:
            grad_scales = torch.stack([*more[1:], amax_of(grad) if own is None else own.amax])
        return grad_x, grad_weight, grad_bias, None, None, grad_scales, None


def uses_of_input(formats: ProductFormats) -> tuple[Use, Use]:
    """How the output and the gradient of the weight take the input."""
    return Use(formats.x_output), Use(formats.x_grad_weight, -2)


def uses_of_weight(formats: ProductFormats) -> tuple[Use, Use]:
    """How the output and the gradient of the input take the weight."""
    return Use(formats.w_output), Use(formats.w_grad_input, -2)


def operand(
    x: Tensor,
    use: Use,
    then: Use,
    given: Given | None,
    is_kept: bool,
    codes: Encoded | None = None,
) -> tuple[Encoded, Encoded]:
    """An operand as the output takes it, and what backward keeps of it: packed, or nothing.

    Args:
        codes: it, packed already; for an operand that both products take alike.
    """
    if codes is not None:
        return codes, codes if is_kept else Encoded(None, None)  # type: ignore[arg-type]
    found = encode(x, use, given)
    now = pack(found, use)
    if not is_kept:
        return now, Encoded(None, None)  # type: ignore[arg-type]
    return now, now if then.shares(use) else keep(x, found, use, then, given)


Side = tuple[Encoded, Use]
"""A packed operand, and how a product takes it."""


def multiply(
    left: Side,
    right: Side,
    factor: Tensor | None,
    formats: ProductFormats,
    dtype: torch.dtype,
    way: Way,
    *,
    is_output: bool = False,
    sum_factor: float = SUM_OVER_FEATURES,
) -> Tensor:
    """`left @ right^T * factor`, in the dtype of the recipe's results.

    Args:
        way: the kernel, or "bf16" or "emulated", see `executor.plan`.
        is_output: of the three products, the one that hardware may sum with fewer bits.
        sum_factor: of an emulated gradient, see `rounded.result_of`.
    """
    if way == "bf16" or way == "emulated":
        return without_kernel(left, right, factor, formats, dtype, way, sum_factor)
    result = dtype if formats.result is None else torch_dtype(FORMATS[formats.result])
    assert result is not None
    a, b = as_rows(*left), as_rows(*right)
    if way == "tensor":
        one = torch.ones((), dtype=torch.float32, device=a.data.device)
        scales = [one if x.scale is None else x.scale.reshape(()) for x in (a, b)]
        if factor is not None:
            scales[0] = scales[0] * factor.float()
        return scaled_mm(in_rows(a.data), in_rows(b.data), *scales, result, is_output)
    size = a.data.shape[0], b.data.shape[0]
    if 0 in (*size, a.data.shape[1]):
        return a.data.new_zeros(size, dtype=result)
    late = factor if way == "1x32" else None
    if factor is not None and late is None:
        a = multiplied_scale(a, factor.float())
    laid = lay(a, way, is_left=True), lay(b, way, is_left=False)
    outer = [x.tensor_scale for x in laid if x.tensor_scale is not None]
    product = scaled_mm_by(
        way, laid[0].data, laid[1].data, laid[0].scale, laid[1].scale, outer, result, is_output
    )
    if product.shape != size:
        product = in_rows(product.narrow(0, 0, size[0]).narrow(1, 0, size[1]))
    return product if late is None else (product.float() * late).to(result)


def multiplied_scale(x: Encoded, factor: Tensor) -> Encoded:
    """`x * factor`, by the scale of its tensor where it has one."""
    if x.tensor_scale is not None:
        return x._replace(tensor_scale=x.tensor_scale * factor)
    one = torch.ones((), dtype=torch.float32, device=x.data.device)
    return x._replace(scale=(one if x.scale is None else x.scale) * factor)


def as_rows(x: Encoded, use: Use) -> Encoded:
    """The same with the contraction last. An operand that `encode` turned has it there already.

    It is a view: where its last stride is not 1, the kernel's layout copies it.
    """
    if use.along == -2 and not use.is_turned:
        is_tile = isinstance(use.operand.granularity, PerTile)
        scale = x.scale.t() if is_tile and x.scale is not None else x.scale
        x = x._replace(data=x.data.t(), scale=scale)
    if not x.data.is_contiguous() and not is_traced(x.data):
        passes.note("transposes")
    return x


def without_kernel(
    left: Side,
    right: Side,
    factor: Tensor | None,
    formats: ProductFormats,
    dtype: torch.dtype,
    way: str,
    sum_factor: float,
) -> Tensor:
    """`multiply` emulated: as `LinearProduct`, with scales in float32 and so the product."""
    has_scales = is_scaled((left[1].text, right[1].text))
    work = torch.bfloat16 if way == "bf16" else wide(dtype) if has_scales else dtype
    a, b = (
        value.t() if use.along == -2 else value
        for value, use in ((take(x, use, work), use) for x, use in (left, right))
    )
    with without_autocast(a.device.type):
        product = a @ b.t()
    if factor is not None:
        product = product.float() * factor
    return result_of(product, formats, dtype, sum_factor)


def without_autocast(kind: str) -> AbstractContextManager[Any]:
    """The operands are in the dtype that they are to be multiplied in."""
    if not torch.is_autocast_enabled(kind):
        return nullcontext()
    return torch.autocast(kind, enabled=False)
