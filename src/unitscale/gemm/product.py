"""Low-precision matrix products: operands rounded and multiplied by the executor of the formats.

    output      = X(x) @ W(w)^T + bias      each operand as `ProductFormats` says
    grad_input  = G(g) @ W'(w)
    grad_weight = G'(g)^T @ X'(x)           and each result rounded to `formats.result`

What is saved for backward are W'(w) and X'(x), in the format's own dtype (one byte a value for
FP8). Emulated, a product is that of the CPU's `torch._scaled_mm` with float32 output, up to the
order of sums and to where a kernel multiplies by the scales. See `gemm.executor`.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from unitscale.formats import Encoded
from unitscale.gemm.derivative import first_order
from unitscale.gemm.executor import choose, without_fp8
from unitscale.gemm.formats import ProductFormats
from unitscale.gemm.operand import (
    Sharing,
    Use,
    amax_of,
    encode,
    given_scales,
    restore,
    result_dtype,
    save,
    take,
    uncast,
    working_dtype,
)
from unitscale.gemm.rounded import (
    SUM_OVER_ROWS,
    finish,
    owned,
    result_of,
    round_sum,
)
from unitscale.gemm.scaled_product import NO_FACTORS, Factors, ScaledProduct

__all__ = ["Factors", "addmm", "linear", "matmul"]


def settled(formats: ProductFormats, x: Tensor, *, has_kernel: bool = True) -> ProductFormats:
    """`formats` with the executor that a product with `x` gets.

    Without a kernel of its own in `torch._scaled_mm` an op gets the next best.
    """
    if formats.executor == "emulated":
        return formats
    return formats._replace(executor=chosen(formats, result_dtype(x), x.device, has_kernel))


@torch.compiler.assume_constant_result
def chosen(
    formats: ProductFormats, dtype: torch.dtype, device: torch.device, has_kernel: bool
) -> str:
    """The executor; what a machine can do does not change, and no compiler could trace it."""
    executor = choose(formats, dtype, device).executor
    if executor == "scaled_mm" and not has_kernel:
        return without_fp8(formats, dtype, device)
    return executor


class BackwardGradient:
    """The gradient of an output as the two backward products take it, each of them once.

    Args:
        by_input, by_weight: how the products of grad_input and grad_weight take it.
    """

    def __init__(
        self,
        grad: Tensor,
        by_input: Use,
        by_weight: Use,
        dtype: torch.dtype,
        scales: Tensor | None,
        index: int,
    ) -> None:
        self.grad, self.by_input, self.by_weight, self.dtype = grad, by_input, by_weight, dtype
        given = given_scales(scales, [grad], index)
        self.given = given[0] if given else None
        self.first: Encoded | None = None

    def for_input(self) -> Tensor:
        """The values that are multiplied by the weight."""
        self.first = encode(self.grad, self.by_input, self.given)
        return take(self.first, self.by_input, self.dtype)

    def for_weight(self) -> Tensor:
        """The values that are multiplied by the input: those of before, if the same are taken."""
        same = self.first is not None and self.by_weight.shares(self.by_input)
        encoded = self.first if same else encode(self.grad, self.by_weight, self.given)
        assert encoded is not None
        return take(encoded, self.by_weight, self.dtype)

    @property
    def amax(self) -> Tensor:
        """Its amax, as it was when a scale was asked for."""
        return amax_of(self.grad) if self.given is None else self.given.amax


class LinearProduct(torch.autograd.Function):
    """x [rows, k], weight [n, k], bias [n] -> [rows, n]."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        formats: ProductFormats,
        scales: Tensor | None,
        sharing: Sharing,
    ) -> Tensor:
        dtype = result_dtype(x)
        given = given_scales(scales, (x, weight))
        uses = (
            (Use(formats.x_output), Use(formats.x_grad_weight, -2)),
            (Use(formats.w_output), Use(formats.w_grad_input, -2)),
        )
        left, right = save(
            ctx,
            formats,
            (x, weight),
            uses,
            dtype=dtype,
            wanted=ctx.needs_input_grad[1::-1],
            given=given,
            more=() if given is None else (scales, given[0].amax, given[1].amax),
            sharing=sharing,
        )
        if formats.executor != "bf16" and not formats.is_scaled:
            return owned(round_sum(F.linear(left, right, bias), formats))
        with uncast(formats, x):
            output = F.linear(left, right)
        if formats.executor != "bf16":
            output = result_of(output, formats, dtype)
        return owned(finish(output, bias, formats, dtype))

    @staticmethod
    @first_order
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        formats, dtypes = ctx.kept.formats, ctx.kept.dtypes
        dtype = working_dtype(formats, grad.dtype)
        (x, weight), more = restore(ctx, dtype, grad)
        scales = more[0] if more else None
        uses = Use(formats.g_grad_input), Use(formats.g_grad_weight, -2)
        gradient = BackwardGradient(grad, *uses, dtype, scales, 2)
        grad_x = grad_weight = grad_bias = grad_scales = None
        with uncast(formats, grad):
            if ctx.needs_input_grad[0]:
                grad_x = gradient.for_input() @ weight
            if ctx.needs_input_grad[1]:
                grad_weight = gradient.for_weight().mT @ x
        if grad_x is not None:
            grad_x = result_of(grad_x, formats, dtypes[0])
        if grad_weight is not None:
            grad_weight = result_of(grad_weight, formats, dtypes[1], SUM_OVER_ROWS)
        if ctx.needs_input_grad[2]:
            # The bias is added, not multiplied: its gradient is the sum of the gradient as it came.
            grad_bias = grad.sum(0)
        if more:
            grad_scales = torch.stack([*more[1:], gradient.amax])
        return grad_x, grad_weight, grad_bias, None, grad_scales, None


class MatmulProduct(torch.autograd.Function):
    """a [..., m, k], b [..., k, n] -> [..., m, n], leading axes broadcast."""

    @staticmethod
    def forward(
        ctx: Any, a: Tensor, b: Tensor, formats: ProductFormats, scales: Tensor | None
    ) -> Tensor:
        ctx.shapes, dtype = (a.shape, b.shape), result_dtype(a)
        given = given_scales(scales, (a, b))
        uses = (
            (Use(formats.x_output), Use(formats.x_grad_weight, -2)),
            (Use(formats.w_output, -2), Use(formats.w_grad_input)),
        )
        more = () if given is None else (scales, given[0].amax, given[1].amax)
        wanted = ctx.needs_input_grad[1::-1]
        left, right = save(
            ctx, formats, (a, b), uses, dtype=dtype, wanted=wanted, given=given, more=more
        )
        with uncast(formats, a):
            output = torch.matmul(left, right)
        return owned(result_of(output, formats, dtype))

    @staticmethod
    @first_order
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        formats, dtypes = ctx.kept.formats, ctx.kept.dtypes
        dtype = working_dtype(formats, grad.dtype)
        (a, b), more = restore(ctx, dtype, grad)
        scales = more[0] if more else None
        uses = Use(formats.g_grad_input), Use(formats.g_grad_weight, -2)
        gradient = BackwardGradient(grad, *uses, dtype, scales, 2)
        grad_a = grad_b = grad_scales = None
        with uncast(formats, grad):
            if ctx.needs_input_grad[0]:
                grad_a = (gradient.for_input() @ b.mT).sum_to_size(ctx.shapes[0])
            if ctx.needs_input_grad[1]:
                grad_b = (a.mT @ gradient.for_weight()).sum_to_size(ctx.shapes[1])
        if grad_a is not None:
            grad_a = result_of(grad_a, formats, dtypes[0])
        if grad_b is not None:
            grad_b = result_of(grad_b, formats, dtypes[1], SUM_OVER_ROWS)
        if more:
            grad_scales = torch.stack([*more[1:], gradient.amax])
        return grad_a, grad_b, None, grad_scales


def linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    formats: ProductFormats,
    factors: Factors | None = None,
    scales: Tensor | None = None,
    codes: tuple[Tensor, Tensor | None] | None = None,
    recodes: bool = False,
) -> Tensor:
    """`F.linear` in low precision: x [..., k], weight [n, k], bias [n] -> [..., n].

    The bias is added in the model's dtype, as FP8 hardware does.

    Args:
        factors: with the executor "scaled_mm" alone, the scale arguments of the three products:
            what the output without its bias, the gradient of x and that of the weight are
            multiplied by, each on its own.
        scales: float32 [3], where scales come from earlier steps: of x, weight and the output's
            gradient, 0 where there is none yet. The gradient that it gets is their three amaxes.
        codes, recodes: see `operand.Sharing`; the codes are of x as it is given.
    Raises:
        ValueError: the executor cannot run here; factors with another executor.
    """
    formats = settled(formats, x)
    if factors is not None and formats.executor != "scaled_mm":
        raise ValueError(f"linear: factors are for 'scaled_mm', not {formats.executor!r}")
    # Its leading axes as one: over them is the contraction of grad_weight.
    rows = in_rows(x)
    sharing = Sharing(codes and (in_rows(codes[0]), codes[1]), recodes)
    if formats.executor == "scaled_mm":
        given = factors or NO_FACTORS
        output = ScaledProduct.apply(rows, weight, bias, given, formats, scales, sharing)
    else:
        output = LinearProduct.apply(rows, weight, bias, formats, scales, sharing)
    if x.dim() == 2:
        return output
    return output.reshape(*x.shape[:-1], weight.shape[0])


def in_rows(x: Tensor) -> Tensor:
    """A tensor as a matrix of its rows, which a vector is one of."""
    return x.flatten(0, -2) if x.dim() > 2 else x.unsqueeze(0) if x.dim() == 1 else x


def matmul(
    a: Tensor,
    b: Tensor,
    *,
    formats: ProductFormats,
    factors: Factors | None = None,
    scales: Tensor | None = None,
    codes: tuple[Tensor, Tensor | None] | None = None,
    recodes: bool = False,
) -> Tensor:
    """`torch.matmul` in low precision: a [..., m, k], b [..., k, n], either of them a vector [k].

    A vector is rounded as the matrix of one row (as `a`) or one column (as `b`) that it stands for.
    A product with a matrix is a `linear`, with its `factors`; `torch._scaled_mm` has no others.

    Args:
        codes, recodes: as of `linear`, where b is a matrix.
    Raises:
        ValueError: as `linear`; factors where neither operand is a matrix or a vector; codes or
            recodes where b is no matrix.
    """
    if (codes is not None or recodes) and (a.dim() < 2 or b.dim() != 2):
        raise ValueError(
            "matmul: codes and recodes are for products with a matrix on the right; "
            f"got {tuple(a.shape)} and {tuple(b.shape)}"
        )
    if b.dim() == 1:
        return matmul(a, b[:, None], formats=formats, factors=factors, scales=scales).squeeze(-1)
    if a.dim() == 1:
        return matmul(a[None], b, formats=formats, factors=factors, scales=scales).squeeze(-2)
    # A matrix shared by a batch has one gradient product, not one a sample and then a sum of them.
    if a.dim() >= 2 and b.dim() == 2:
        return linear(
            a,
            b.mT,
            formats=formats,
            factors=factors,
            scales=scales,
            codes=codes,
            recodes=recodes,
        )
    if a.dim() == 2 and b.dim() >= 2:
        swapped = None if factors is None else (factors[0], factors[2], factors[1])
        turned = None if scales is None else scales[[1, 0, 2]]
        crossed = formats.crossed()
        return linear(b.mT, a, formats=crossed, factors=swapped, scales=turned).mT
    if factors is not None:
        raise ValueError(
            "matmul: factors are for products with a matrix; "
            f"got {tuple(a.shape)} and {tuple(b.shape)}"
        )
    formats = settled(formats, a, has_kernel=False)
    if a.shape[:-2] != b.shape[:-2]:
        # The gradient of what is repeated is a sum, and is to be rounded as a sum.
        formats = formats._replace(executor="emulated")
    return MatmulProduct.apply(a, b, formats, scales)


def addmm(
    bias: Tensor,
    a: Tensor,
    b: Tensor,
    *,
    formats: ProductFormats,
    factors: Factors | None = None,
    scales: Tensor | None = None,
    codes: tuple[Tensor, Tensor | None] | None = None,
    recodes: bool = False,
) -> Tensor:
    """`torch.addmm` in low precision: bias [n] or [m, n], a [m, k], b [k, n] -> [m, n]."""
    product = matmul(
        a, b, formats=formats, factors=factors, scales=scales, codes=codes, recodes=recodes
    )
    return bias + product
