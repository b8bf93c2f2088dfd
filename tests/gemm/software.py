"""`torch.nn.functional.scaled_mm` in software: what the kernels of hardware compute.

Written from the cuBLAS guide ("1D block scaling factors layout") and ScaledBlas.cpp of torch, not
from the code under test: it reads the arguments where hardware would.
"""

import torch
from torch import Tensor
from torch.nn.functional import ScalingType, SwizzleType

E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)


def scaled_mm(
    mat_a: Tensor,
    mat_b: Tensor,
    scale_a,
    scale_recipe_a,
    scale_b,
    scale_recipe_b,
    swizzle_a=None,
    swizzle_b=None,
    bias=None,
    output_dtype=torch.bfloat16,
    contraction_dim=(),
    use_fast_accum=False,
) -> Tensor:
    """The product in float64 of the values that hardware reads, in the dtype asked for."""
    left = values(mat_a, scale_a, scale_recipe_a, swizzle_a, is_left=True)
    right = values(mat_b.t(), scale_b, scale_recipe_b, swizzle_b, is_left=False)
    return (left @ right.t()).to(output_dtype)


def values(x: Tensor, scale, recipe, swizzle, *, is_left: bool) -> Tensor:
    """What an operand in rows [r, k] is worth, in float64."""
    if isinstance(recipe, list):
        assert recipe == [ScalingType.BlockWise1x16, ScalingType.TensorWise]
        assert swizzle == [SwizzleType.SWIZZLE_32_4_4, SwizzleType.NO_SWIZZLE]
        data = unpacked(x)
        inner = unswizzled(scale[0], data.shape[0], data.shape[1] // 16).double()
        return data * inner.repeat_interleave(16, 1) * scale[1].double()
    data = x.double()
    rows, depth = data.shape
    if recipe == ScalingType.RowWise:
        assert swizzle is None
        assert scale.shape == ((rows, 1) if is_left else (1, rows))
        return data * scale.reshape(-1, 1).double()
    if recipe == ScalingType.BlockWise1x32:
        assert scale.dtype == torch.float8_e8m0fnu
        assert swizzle == SwizzleType.SWIZZLE_32_4_4
        return data * unswizzled(scale, rows, depth // 32).double().repeat_interleave(32, 1)
    if recipe == ScalingType.BlockWise1x128:
        assert scale.stride(0) == 1
        return data * scale.double().repeat_interleave(128, 1)
    assert recipe == ScalingType.BlockWise128x128
    tiles = scale.t()[:, : depth // 128].double()
    return data * tiles.repeat_interleave(128, 0).repeat_interleave(128, 1)


def unpacked(x: Tensor) -> Tensor:
    """float4_e2m1fn_x2 [r, k / 2] -> float64 [r, k]: the low half of a byte is the first of two."""
    codes = x.view(torch.uint8).long()
    codes = torch.stack([codes & 15, codes >> 4], -1).flatten(1)
    magnitude = torch.tensor(E2M1, dtype=torch.float64)[codes & 7]
    return torch.where(codes >= 8, -magnitude, magnitude)


def unswizzled(flat: Tensor, rows: int, count: int) -> Tensor:
    """The scales [rows, count] of the flat bytes that hardware reads."""
    across = -(-count // 4)
    assert flat.numel() == -(-rows // 128) * 128 * across * 4
    r, c = torch.meshgrid(torch.arange(rows), torch.arange(count), indexing="ij")
    tile = (r // 128) * across + c // 4
    place = tile * 512 + (r % 32) * 16 + (r % 128) // 32 * 4 + c % 4
    return flat.view(torch.uint8)[place].view(flat.dtype).float()
