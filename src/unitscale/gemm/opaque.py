"""Operands of rows and blocks as one node each of a graph for a CPU: what eager code runs, whole.

The formulas of one such operand are a hundred nodes. For a CPU, Inductor fuses those of many
operands into loops that take minutes to write and compile: a Llama of two layers under "nvfp4" was
not done in four. An opaque node costs what any call costs, and its bits are those of eager code.
For a GPU the formulas stay in the graph, where fusing them with their neighbors saves passes.
"""

import torch
from torch import Tensor
from torch._subclasses import FakeTensor
from torch._subclasses.functional_tensor import FunctionalTensor

from unitscale.formats import E8M0FNU, BlockFormat, Codec, Encoded, torch_dtype
from unitscale.formats.hashing import draw_seed
from unitscale.gemm.grid import Use, codec_of, decoded, grid, wide
from unitscale.recipes import Current, Operand, PerAxis, PerTensor

__all__ = ["decode", "encode", "pack", "serves"]


def serves(x: Tensor, operand: Operand) -> bool:
    """Whether an operand is to be one node: in a graph for a CPU, with a scale for a row or block.

    Of a tensor that has one scale the formulas are few, and their fusion is worth having.
    """
    if x.device.type != "cpu" or not (
        torch.compiler.is_compiling() or isinstance(x, FakeTensor | FunctionalTensor)
    ):
        return False
    has_own = isinstance(operand.scale, Current) and not isinstance(operand.granularity, PerTensor)
    return isinstance(operand.format, BlockFormat) or has_own


def encode(x: Tensor, use: Use) -> Encoded:
    """`grid.grid(x, use)` as one node; a seed is drawn outside of it, so it gives what it gave."""
    assert use.text is not None
    seed = draw_seed(x.device) if use.operand.rounding == "stochastic" else None
    return Encoded(*encoded_node(x.detach(), use.text, use.along, seed))


def pack(encoded: Encoded, text: str) -> Encoded:
    """`Codec.pack` as one node; a scale that stays in float32 does not pass through it."""
    data, *scale = packed_node(encoded.data, encoded.scale, text)
    return encoded._replace(data=data, scale=scale[0] if scale else encoded.scale)


def decode(encoded: Encoded, text: str, dtype: torch.dtype) -> Tensor:
    """`grid.decoded` as one node."""
    found: Tensor = decoded_node(encoded.data, encoded.scale, encoded.tensor_scale, text, dtype)
    return found


@torch.library.custom_op("unitscale::encode", mutates_args=())
def encoded_node(x: Tensor, text: str, along: int, seed: Tensor | None) -> list[Tensor]:
    """The parts of an `Encoded`: data, scale, and of a format with two levels the tensor scale."""
    found = grid(x, Use(text, along), seed=seed)
    lying = encoded_like(torch.empty_like(x, device="meta"), text, along)
    return [laid(y, like) for y, like in zip(present(found), lying, strict=True)]


@encoded_node.register_fake
def encoded_fake(x: Tensor, text: str, along: int, seed: Tensor | None) -> list[Tensor]:
    """What it gives, without data."""
    return encoded_like(x, text, along)


def encoded_like(x: Tensor, text: str, along: int) -> list[Tensor]:
    """Empty tensors beside x, of the shapes and strides of its parts."""
    use, codec = Use(text, along), codec_of(text)
    x = x.mT if use.is_turned else x
    shape, transform = [*x.shape], use.operand.transform
    if transform is not None:
        shape[-1] += -shape[-1] % transform.size
    keeps = transform is None and keeps_strides(codec)
    work = wide(x.dtype)
    data = torch.empty_like(x, dtype=work) if keeps else x.new_empty(shape, dtype=work)
    parts = [data, x.new_empty(codec.groups.scale_shape(tuple(shape)), dtype=torch.float32)]
    if isinstance(codec.format, BlockFormat) and codec.format.has_tensor_scale:
        parts.append(x.new_empty((), dtype=torch.float32))
    return parts


@torch.library.custom_op("unitscale::pack", mutates_args=())
def packed_node(data: Tensor, scale: Tensor, text: str) -> list[Tensor]:
    """Data in few bits, and in a block format its scales."""
    found = present(codec_of(text).pack(Encoded(data, scale)))
    lying = packed_like(data, scale, text)
    return [laid(y, like) for y, like in zip(found, lying, strict=False)]


@packed_node.register_fake
def packed_like(data: Tensor, scale: Tensor, text: str) -> list[Tensor]:
    """Empty tensors of its shapes."""
    codec = codec_of(text)
    dtype = torch_dtype(codec.element) or (torch.uint8 if codec.element.bits <= 8 else data.dtype)
    packed = torch.empty_like(data, dtype=dtype)
    if not isinstance(codec.format, BlockFormat):
        return [packed]
    is_power = codec.format.scale == E8M0FNU
    kind = torch.float8_e8m0fnu if is_power else torch.float8_e4m3fn
    return [packed, torch.empty_like(scale, dtype=kind)]


@torch.library.custom_op("unitscale::decode", mutates_args=())
def decoded_node(
    data: Tensor, scale: Tensor, tensor_scale: Tensor | None, text: str, dtype: torch.dtype
) -> Tensor:
    """The values of data and scales, packed or not."""
    found = decoded(Encoded(data, scale, tensor_scale), text, dtype)
    return laid(found, decoded_like(data, scale, tensor_scale, text, dtype))


@decoded_node.register_fake
def decoded_like(
    data: Tensor, scale: Tensor, tensor_scale: Tensor | None, text: str, dtype: torch.dtype
) -> Tensor:
    """An empty tensor of its shape."""
    if keeps_strides(codec_of(text)):
        return torch.empty_like(data, dtype=dtype)
    return data.new_empty(data.shape, dtype=dtype)


def present(encoded: Encoded) -> list[Tensor]:
    """The parts that there are."""
    return [part for part in encoded if part is not None]


def keeps_strides(codec: Codec) -> bool:
    """Whether values lie in memory as what they are made of: where none is cut into blocks."""
    return isinstance(codec.groups, PerAxis)


def laid(x: Tensor, like: Tensor) -> Tensor:
    """`x` with the strides that a graph was promised: a copy only where it has others."""
    if x.stride() == like.stride():
        return x
    return torch.empty_strided(like.shape, like.stride(), dtype=x.dtype).copy_(x)
