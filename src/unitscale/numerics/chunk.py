"""A large tensor in chunks, so that what looks at it needs the memory of one chunk and no more.

A statistic in float64 of a float32 tensor would otherwise copy it at twice its size.
"""

from collections.abc import Iterator

from torch import Tensor

CHUNK = 2**18
"""Elements of a chunk on a CPU: 2 MiB in float64, about what stays in a core's cache."""

ELSEWHERE = 4
"""On other devices chunks are this much larger, since each costs the start of a few kernels."""


def chunks(x: Tensor, size: int | None = None) -> Iterator[Tensor]:
    """Views of `x`, of at most `size` elements each, that hold every element exactly once.

    The order is that of memory, so the views of a dense tensor are contiguous, transposed or not.
    An empty tensor has none.

    Args:
        x: any shape and strides.
        size: elements of a chunk, at least 1; if it is None, what suits the device.
    """
    return (part for (part,) in chunks_of(x, size=size))


def chunks_of(*tensors: Tensor, size: int | None = None) -> Iterator[tuple[Tensor, ...]]:
    """The `chunks` of several tensors of one shape, in step: the same elements of each.

    The order is that of the first tensor's memory.
    """
    x = tensors[0]
    if size is None:
        size = CHUNK if x.is_cpu else ELSEWHERE * CHUNK
    if x.numel() == 0:
        return
    order = sorted(range(x.dim()), key=lambda axis: x.stride(axis), reverse=True)
    tensors = tuple(tensor.permute(order) for tensor in tensors)
    x = tensors[0]
    if all(tensor.is_contiguous() for tensor in tensors):
        yield from zip(*(tensor.view(-1).split(size) for tensor in tensors), strict=True)
    elif x.numel() <= size:
        yield tensors
    else:
        row = x.numel() // len(x)
        count = max(size // row, 1)
        for rows in zip(*(tensor.split(count) for tensor in tensors), strict=True):
            if row > size:
                yield from chunks_of(*(part[0] for part in rows), size=size)
            else:
                yield rows
