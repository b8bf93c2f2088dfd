"""`scaled_mm` and `scaled_mm_by`: the products of FP8 and FP4 hardware, as one node each.

Hardware takes the left operand row by row and the right one column by column, so every product is
written `left @ right^T` with both in rows; for a linear layer's three products

    output      = x    @ weight^T     both as they are saved
    grad_input  = g    @ weight       weight in columns
    grad_weight = g^T  @ x            both in columns

The copies into columns (one byte a value) and the layout of scales are left to the caller's graph,
where a compiler fuses them with the cast; here are the kernels alone.

Without a GPU these are tried as far as they can be: the shapes, strides and dtypes by torch's own
rules for CUDA on tensors without data, the layout of scales and of packed data by a product in
software that reads it as the cuBLAS guide says, one scale a tensor and one a row on the CPU in
earnest. Not tried are the kernels for blocks themselves, and every speed.
"""

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.functional import ScalingType, SwizzleType

from unitscale.gemm.layout import SIXTEEN, filled

__all__ = ["MULTIPLE", "scaled_mm", "scaled_mm_by"]

MULTIPLE = SIXTEEN

SCALINGS = {
    "row": (ScalingType.RowWise, ScalingType.RowWise),
    "1x32": (ScalingType.BlockWise1x32, ScalingType.BlockWise1x32),
    "1x128 @ 1x128": (ScalingType.BlockWise1x128, ScalingType.BlockWise1x128),
    "1x128 @ 128x128": (ScalingType.BlockWise1x128, ScalingType.BlockWise128x128),
    "128x128 @ 1x128": (ScalingType.BlockWise128x128, ScalingType.BlockWise1x128),
}


def multiply(
    left: Tensor,
    right: Tensor,
    left_scale: Tensor,
    right_scale: Tensor,
    out_dtype: torch.dtype,
    fast_accum: bool,
) -> Tensor:
    """The kernel on operands filled up with zeros, and the result cut to size."""
    rows, columns = left.shape[0], right.shape[0]
    if rows == 0 or columns == 0 or left.shape[1] == 0:
        return left.new_zeros((rows, columns), dtype=out_dtype)
    product = torch._scaled_mm(
        filled(left, 1, MULTIPLE),
        filled(right, MULTIPLE, MULTIPLE).t(),
        left_scale,
        right_scale,
        out_dtype=out_dtype,
        use_fast_accum=fast_accum,
    )
    missing = -columns % MULTIPLE
    return F.pad(product, (0, -missing)) if missing else product


@torch.library.custom_op("unitscale::scaled_mm", mutates_args=())
def scaled_mm(
    left: Tensor,
    right: Tensor,
    left_scale: Tensor,
    right_scale: Tensor,
    out_dtype: torch.dtype,
    fast_accum: bool,
) -> Tensor:
    """`(left * left_scale) @ (right * right_scale)^T` in FP8: [m, k], [n, k] -> [m, n].

    Any sizes: the contraction and the columns are filled up to multiples of 16. Under
    `torch.compile` it is one node.

    Args:
        left, right: E4M3FN or E5M2 (not both E5M2), in rows (the last stride 1).
        left_scale, right_scale: scalars in float32, on the device of the operands.
        out_dtype: float32, bfloat16 or float16.
        fast_accum: let the hardware sum with fewer bits (Hopper keeps about 14), as is usual for
            the output product and not for gradients.
    Raises:
        RuntimeError, ValueError: as `torch._scaled_mm`, for other layouts and dtypes.
    """
    return multiply(left, right, left_scale, right_scale, out_dtype, fast_accum)


# On tensors without data the kernel's own checks of layout and size run, those of CUDA too.
scaled_mm.register_fake(multiply)


def multiply_by(
    kernel: str,
    left: Tensor,
    right: Tensor,
    left_scale: Tensor,
    right_scale: Tensor,
    tensor_scales: list[Tensor],
    out_dtype: torch.dtype,
    fast_accum: bool,
) -> Tensor:
    """`torch.nn.functional.scaled_mm` with the arguments that a kernel asks for.

    FP4 data and the scales of blocks come as bytes, for which every compiler has code.
    """
    if kernel == "1x16":
        left, right = (x.view(torch.float4_e2m1fn_x2) for x in (left, right))
        levels = [ScalingType.BlockWise1x16, ScalingType.TensorWise]
        swizzles = [SwizzleType.SWIZZLE_32_4_4, SwizzleType.NO_SWIZZLE]
        scales = (x.view(torch.float8_e4m3fn) for x in (left_scale, right_scale))
        first, second = ([scale, outer] for scale, outer in zip(scales, tensor_scales, strict=True))
        return F.scaled_mm(
            left,
            right.t(),
            first,
            levels,
            second,
            levels,
            swizzle_a=swizzles,
            swizzle_b=swizzles,
            output_dtype=out_dtype,
        )
    swizzle = None
    if kernel == "1x32":
        left_scale, right_scale = (x.view(torch.float8_e8m0fnu) for x in (left_scale, right_scale))
        swizzle = SwizzleType.SWIZZLE_32_4_4
    by_left, by_right = SCALINGS[kernel]
    return F.scaled_mm(
        left,
        right.t(),
        left_scale,
        by_left,
        right_scale,
        by_right,
        swizzle_a=swizzle,
        swizzle_b=swizzle,
        output_dtype=out_dtype,
        use_fast_accum=fast_accum and kernel == "row",
    )


@torch.library.custom_op("unitscale::scaled_mm_by", mutates_args=())
def scaled_mm_by(
    kernel: str,
    left: Tensor,
    right: Tensor,
    left_scale: Tensor,
    right_scale: Tensor,
    tensor_scales: list[Tensor],
    out_dtype: torch.dtype,
    fast_accum: bool,
) -> Tensor:
    """`left @ right^T` with scales for rows or blocks: [m, k], [n, k] -> [m, n].

    Args:
        kernel: one of `capability.Kernel` but "tensor".
        left, right, left_scale, right_scale: as `layout.lay` lays them.
        tensor_scales: of NVFP4, one element each; else none.
        out_dtype: float32, bfloat16 or float16.
        fast_accum: as for `scaled_mm`; rows alone have it.
    Raises:
        RuntimeError, ValueError, NotImplementedError: as `torch.nn.functional.scaled_mm`.
    """
    return multiply_by(
        kernel, left, right, left_scale, right_scale, tensor_scales, out_dtype, fast_accum
    )


scaled_mm_by.register_fake(multiply_by)
