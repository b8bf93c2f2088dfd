"""`scaled_mm`: the product of FP8 hardware, for operands of any size.

Hardware takes the left operand row by row and the right one column by column, so every product is
written `left @ right^T` with both in rows; for a linear layer's three products

    output      = x    @ weight^T     both as they are saved
    grad_input  = g    @ weight       weight in columns
    grad_weight = g^T  @ x            both in columns

The copies into columns (one byte a value) are left to the caller's graph, where a compiler fuses
them with the cast; here is the kernel alone.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["MULTIPLE", "scaled_mm"]

MULTIPLE = 16
"""cuBLASLt wants the contraction and the columns of the result in multiples of this."""


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
    depth_missing, columns_missing = -left.shape[1] % MULTIPLE, -columns % MULTIPLE
    if rows == 0 or columns == 0 or left.shape[1] == 0:
        return left.new_zeros((rows, columns), dtype=out_dtype)
    left = filled(left, 0, depth_missing)
    right = filled(right, columns_missing, depth_missing)
    product = torch._scaled_mm(
        left,
        right.t(),
        left_scale,
        right_scale,
        out_dtype=out_dtype,
        use_fast_accum=fast_accum,
    )
    return F.pad(product, (0, -columns_missing)) if columns_missing else product


def filled(x: Tensor, rows: int, columns: int) -> Tensor:
    """`x` with so many rows and columns of zeros more; zero is the byte 0 in every FP8 format."""
    if not rows and not columns:
        return x
    return F.pad(x.view(torch.uint8), (0, columns, 0, rows)).view(x.dtype)


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
