"""The mean of a gradient over ranks, in bytes: all-to-all, a sum in float32, all-gather.

Each rank adds up one shard. Every payload is rounded once by its owner and the mean once more, so
the error does not grow with the number of ranks; a ring that adds in 8 bits rounds at every hop.
The sum is that of the payloads: all ranks cast at the same scale, which is applied at the end.

gloo and NCCL move uint8 and do not add 8-bit floats, so payloads travel as bytes. (NCCL 2.24 adds
float8 on newer GPUs, but in 8 bits.)
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from unitscale.distributed.payload import Layout, Seed, rounded, values
from unitscale.formats import FloatFormat

__all__ = ["finite_amaxes", "gather", "largest", "ring_bytes", "scatter_mean"]


def scatter_mean(
    payload: Tensor,
    layout: Layout,
    fmt: FloatFormat,
    mean_format: FloatFormat,
    group: Any,
    seed: Seed | None = None,
) -> tuple[Tensor, int]:
    """This rank's shard of the mean payload, in bytes, and how many bytes this rank sent.

    The sum runs over ranks in their order, element by element, so it has the same bits whatever
    the layout. A NaN of any rank is a NaN of the mean.
    """
    received = payload
    if layout.ranks > 1:
        received = torch.empty_like(payload)
        dist.all_to_all_single(received, payload, group=group)
    total = torch.zeros(layout.shard, dtype=torch.float32, device=payload.device)
    for row in received.view(layout.ranks, layout.shard):  # one by one: 4 bytes an element, not 4 N
        total += values(row, fmt)
    mean = total.div_(layout.ranks)
    return rounded(mean, mean_format, seed, 0).view(torch.uint8), (layout.ranks - 1) * layout.shard


def gather(
    shard: Tensor, trailer: Tensor, layout: Layout, group: Any
) -> tuple[Tensor, Tensor, int]:
    """All shards as one payload, the trailers of all ranks, and how many bytes this rank sent.

    Args:
        trailer: int32, 1-dim, of one length on all ranks; travels behind the shard.
    """
    message = torch.cat([shard, trailer.view(torch.uint8)])
    gathered = message
    if layout.ranks > 1:
        gathered = message.new_empty(layout.ranks * len(message))
        whole_gather()(gathered, message, group=group)
    rows = gathered.view(layout.ranks, len(message))
    tails = rows[:, len(shard) :].clone(memory_format=torch.contiguous_format)  # aligned to int32
    trailers = tails.view(torch.int32)
    sent = (layout.ranks - 1) * len(message)
    return rows[:, : len(shard)].reshape(-1), trailers, sent


def largest(numbers: Tensor, layout: Layout, group: Any) -> int:
    """Replace numbers by their largest over ranks; how many bytes this rank sent in a ring."""
    if layout.ranks == 1:
        return 0
    dist.all_reduce(numbers, op=dist.ReduceOp.MAX, group=group)
    return ring_bytes(numbers.numel() * numbers.element_size(), layout.ranks)


def ring_bytes(size: int, ranks: int) -> int:
    """What each rank sends in a ring all-reduce of `size` bytes: `2 (N - 1) / N` of them."""
    return -(-2 * (ranks - 1) * size // ranks)


def finite_amaxes(buffer: Tensor, numels: Sequence[int]) -> Tensor:
    """The largest finite magnitude of each parameter of a bucket; float32, 0 if there is none."""
    found = [
        part.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0).abs().max().float()
        if len(part)
        else buffer.new_zeros((), dtype=torch.float32)
        for part in torch.split(buffer, list(numels))
    ]
    # A float64 beyond float32 saturates at every scale.
    return torch.stack(found).clamp(max=torch.finfo(torch.float32).max)


def whole_gather() -> Callable[..., Any]:
    """`all_gather_single`, which torch before 2.13 calls `all_gather_into_tensor`."""
    return getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
