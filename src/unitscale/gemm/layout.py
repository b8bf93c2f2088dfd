"""How `torch.nn.functional.scaled_mm` wants operands and scales to lie in memory.

Both operands come here in rows with the contraction last, [m, k] and [n, k], with scales as a
`Codec` gives them. What leaves has the sizes filled up with zeros, which add nothing to a product,
and the scales where each kernel looks for them:

    kernel    m, n, k in multiples of   scales of [r, k]
    tensor    1, 16, 16                 one element
    row       1, 16, 16                 [m, 1] and [1, n]
    1x32      1, 16, 32                 E8M0 bytes, [r, k / 32] swizzled
    1x16      1, 16, 32                 E4M3FN bytes, [r, k / 16] swizzled; data two codes a byte
    1x128     1, 16, 128                [r, k / 128], the first stride 1
    128x128   128, 128, 128             [k / 128 filled up to 4, r / 128], the first stride 1

The last row is for the operand with tiles. torch's own check of sizes (its meta function) rounds
k / 128 down where the kernel rounds up, so k is filled up to 128 here and both agree.

Source: torch 2.13, ScaledBlas.cpp; the cuBLAS guide, "1D block scaling factors layout".
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from unitscale.formats import Encoded
from unitscale.gemm.capability import Kernel

__all__ = ["SIXTEEN", "Laid", "filled", "in_rows", "lay", "packed", "swizzled"]

SIXTEEN = 16
"""cuBLASLt wants the contraction and the columns of the result in multiples of this."""
ROWS_OF_A_TILE, SCALES_OF_A_TILE = 128, 4
"""Swizzled scales come in tiles of so many rows by so many scales: 512 bytes."""
BLOCK, TILES_TOGETHER = 128, 4


class Laid(NamedTuple):
    """One operand of a kernel: data, scales, and a scale of the whole tensor (NVFP4 alone)."""

    data: Tensor
    scale: Tensor
    tensor_scale: Tensor | None = None


def lay(x: Encoded, kernel: Kernel, is_left: bool) -> Laid:
    """An operand as a kernel wants it.

    Args:
        x: packed, in rows: data [r, k], or uint8 codes of NVFP4; the scale may be one element for
            "row", and one for each tile for "1x32" and "1x16".
    """
    if kernel == "row":
        return rows(x, is_left)
    if kernel in ("1x32", "1x16"):
        return blocks(x, kernel, is_left)
    return long_blocks(x, kernel, is_left)


def rows(x: Encoded, is_left: bool) -> Laid:
    """A scale for each row, or the one of the tensor for each."""
    data = in_rows(filled(x.data, 1 if is_left else SIXTEEN, SIXTEEN))
    one = data.new_ones((), dtype=torch.float32)
    scale = one if x.scale is None else x.scale
    scale = scale.reshape(-1, 1).expand(x.data.shape[0], 1)
    scale = in_rows(filled(scale, 1 if is_left else SIXTEEN, 1))
    return Laid(data, scale if is_left else scale.reshape(1, -1))


def blocks(x: Encoded, kernel: Kernel, is_left: bool) -> Laid:
    """Blocks of 32 (MX) or 16 (NVFP4) along the contraction; a tile is a block in each row."""
    size = 32 if kernel == "1x32" else 16
    assert x.scale is not None
    data = x.data
    scale = x.scale.view(torch.uint8)
    if scale.shape[0] != data.shape[0]:
        scale = scale.repeat_interleave(size, 0).narrow(0, 0, data.shape[0])
    data = in_rows(filled(data, 1 if is_left else SIXTEEN, 32))
    scale = filled(scale, 1 if is_left else SIXTEEN, 1)
    needed = data.shape[1] // size - scale.shape[1]
    scale = F.pad(scale, (0, needed)) if needed else scale
    is_packed = kernel == "1x16"
    return Laid(packed(data) if is_packed else data, swizzled(scale), x.tensor_scale)


def long_blocks(x: Encoded, kernel: Kernel, is_left: bool) -> Laid:
    """Blocks of 128 along the contraction, or tiles of 128 by 128; scales in columns."""
    assert x.scale is not None
    left, right = kernel.split(" @ ")
    is_tile = (left if is_left else right) == "128x128"
    multiple = BLOCK if is_tile else 1 if is_left else BLOCK if "128x128" in kernel else SIXTEEN
    data = in_rows(filled(x.data, multiple, BLOCK))
    if is_tile:
        return Laid(data, in_rows(filled(x.scale, 1, TILES_TOGETHER)).t())
    return Laid(data, in_rows(filled(x.scale, multiple, 1).t()).t())


def filled(x: Tensor, rows_multiple: int, columns_multiple: int) -> Tensor:
    """`x` with rows and columns of zeros up to multiples; as it lies where none are missing.

    Zero is the byte 0 in every format of eight bits.
    """
    missing = -x.shape[0] % rows_multiple, -x.shape[1] % columns_multiple
    if not any(missing):
        return x
    is_narrow = x.dtype.itemsize == 1
    full = F.pad(x.view(torch.uint8) if is_narrow else x, (0, missing[1], 0, missing[0]))
    return full.view(x.dtype) if is_narrow else full


def in_rows(x: Tensor) -> Tensor:
    """`x` with the strides of a matrix in rows: a copy only where it has others.

    A single row or column may count as contiguous with strides that no kernel takes: those of the
    transpose of [16, 1] are (1, 1), and CUDA wants (16, 1).
    """
    if x.stride() == (x.shape[1], 1):
        return x
    return x.clone(memory_format=torch.contiguous_format)


def packed(codes: Tensor) -> Tensor:
    """Codes of four bits, one a byte, two a byte: the first of a pair in the low half.

    [r, k] with even k -> uint8 [r, k / 2], the memory of torch's float4_e2m1fn_x2.
    """
    first, second = codes.unflatten(1, (-1, 2)).unbind(-1)
    return first | second << 4


def swizzled(scale: Tensor) -> Tensor:
    """Scales [r, c] in the order in which tensor cores of compute capability 10 read them, flat.

    Filled up to tiles of 128 rows by 4 scales. In a tile row r, scale c lies at byte
    `(r % 32) * 16 + (r // 32) * 4 + c`; tiles follow one another row by row. torch calls it
    SWIZZLE_32_4_4.
    """
    scale = filled(scale, ROWS_OF_A_TILE, SCALES_OF_A_TILE)
    down, across = scale.shape[0] // ROWS_OF_A_TILE, scale.shape[1] // SCALES_OF_A_TILE
    tiles = scale.reshape(down, 4, 32, across, 4)
    return tiles.permute(0, 3, 2, 1, 4).reshape(-1)
