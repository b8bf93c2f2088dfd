"""FSDP2's collectives in 8 bits: gradients by reduce-scatter, weights by all-gather.

FSDP2 hands over flat buffers and does not say which parameter lies where, so blocks of 128 elements
have scales of their own, powers of two, one byte each, which travel behind the payload:

    row of 300 elements for a rank:   300 payload bytes | 3 scale bytes
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule

from unitscale.distributed.agreement import agree
from unitscale.distributed.collective import whole_gather
from unitscale.formats import E4M3FN, E5M2, Codec, Encoded, FloatFormat, PerBlock, torch_dtype
from unitscale.formats.scale_rule import power_of_two_code, power_of_two_value
from unitscale.graph.engine import fsdp_mesh

__all__ = ["ShardReport", "ShardedWire", "fp8_all_gather", "fp8_reduce_scatter"]

BLOCK = 128


@dataclass(frozen=True, kw_only=True)
class ShardReport:
    """What collectives of sharded parameters have done so far, on this rank.

    modules: that `fully_shard` was called on, whose collectives are in 8 bits.
    flushed: elements other than zero that were sent as zero.
    """

    modules: int
    calls: int
    elements: int
    bytes_sent: int
    bf16_bytes: int
    flushed: int

    def __str__(self) -> str:
        if not self.calls:
            return f"nothing was sent in 8 bits: no collective of {self.modules} modules was made"
        return (
            f"{self.calls} collectives of {self.modules} modules: {self.bytes_sent:,} bytes sent "
            f"({self.bytes_sent / self.bf16_bytes:.1%} of BF16), "
            f"{self.flushed / self.elements:.2%} flushed to zero"
        )


class ShardedWire:
    """One kind of collective of a model, with what it counts; `fully_shard` calls it."""

    def __init__(self, format: FloatFormat, modules: int) -> None:
        self.format, self.modules = format, modules
        self.codec = Codec(format=format, granularity=PerBlock(BLOCK), power_of_two="rceil")
        self.calls = self.elements = self.bytes_sent = self.bf16_bytes = 0
        self.flushed: Tensor | int = 0

    def allocate(self, size: Sequence[int], *, dtype: torch.dtype, device: torch.device) -> Tensor:
        """Where FSDP2 puts what is to be sent, and finds what came."""
        return torch.empty(*size, dtype=dtype, device=device)

    def report(self) -> ShardReport:
        """What was sent and lost so far."""
        return ShardReport(
            modules=self.modules,
            calls=self.calls,
            elements=self.elements,
            bytes_sent=self.bytes_sent,
            bf16_bytes=self.bf16_bytes,
            flushed=int(self.flushed),
        )

    def encode(self, rows: Tensor) -> Tensor:
        """Bytes of a 2-dim tensor, row by row: the payload, then the scales of its blocks."""
        encoded = self.codec.encode(rows)
        assert encoded.scale is not None
        data = encoded.data.view(torch.uint8)
        is_zero = (data & 0x7F) == 0
        self.flushed = self.flushed + (is_zero & (rows != 0)).sum()
        return torch.cat([data, power_of_two_code(encoded.scale)], dim=1)

    def decode(self, message: Tensor, elements: int, dtype: torch.dtype) -> Tensor:
        """The float32 values of a row; finite ones within the range of `dtype`."""
        stored = torch_dtype(self.format)
        assert stored is not None
        data = message[None, :elements].view(stored)
        scale = power_of_two_value(message[None, elements:])
        limit = min(torch.finfo(dtype).max, torch.finfo(torch.float32).max)
        return self.codec.decode(Encoded(data, scale))[0].clamp_(-limit, limit)

    def count(self, elements: int, sent: int, ranks: int) -> None:
        """Add a collective to the report."""
        self.calls += 1
        self.elements += elements
        self.bytes_sent += (ranks - 1) * sent
        self.bf16_bytes += (ranks - 1) * 2 * (elements // ranks)


class ReduceScatter(ShardedWire):
    """The protocol of `FSDPModule.set_custom_reduce_scatter`."""

    @torch.no_grad()
    def __call__(
        self,
        output_tensor: Tensor,
        input_tensor: Tensor,
        group: Any,
        op: Any,
        async_op: bool = False,
    ) -> None:
        """Write this rank's shard of the mean or sum over ranks to `output_tensor`.

        Raises:
            ValueError: another reduction.
        """
        if op not in (dist.ReduceOp.AVG, dist.ReduceOp.SUM):
            raise ValueError(
                f"fp8_reduce_scatter: the reduction is {op}; expected AVG or SUM. Leave "
                "set_gradient_divide_factor at its default, or add "
                "set_force_sum_reduction_for_comms(True)"
            )
        ranks, shard = dist.get_world_size(group), output_tensor.numel()
        message = self.encode(input_tensor.view(ranks, shard))
        received = torch.empty_like(message)
        dist.all_to_all_single(received.view(-1), message.view(-1), group=group)
        total = torch.zeros(shard, dtype=torch.float32, device=output_tensor.device)
        for row in received:
            total += self.decode(row, shard, output_tensor.dtype)
        output_tensor.copy_(total / ranks if op == dist.ReduceOp.AVG else total)
        self.count(input_tensor.numel(), message.shape[1], ranks)


class AllGather(ShardedWire):
    """The protocol of `FSDPModule.set_custom_all_gather`."""

    @torch.no_grad()
    def __call__(
        self, output_tensor: Tensor, input_tensor: Tensor, group: Any, async_op: bool = False
    ) -> None:
        """Write the shards of all ranks, each rounded once, to `output_tensor`.

        A rank's own shard lies in `output_tensor` and is rounded as it is on the others.
        """
        ranks, shard = dist.get_world_size(group), input_tensor.numel()
        message = self.encode(input_tensor.view(1, shard))[0]
        received = message.new_empty(ranks * len(message))
        whole_gather()(received, message, group=group)
        for mine, row in zip(
            output_tensor.view(ranks, shard), received.view(ranks, -1), strict=True
        ):
            mine.copy_(self.decode(row, shard, output_tensor.dtype))
        self.count(output_tensor.numel(), len(message), ranks)


def fp8_reduce_scatter(model: nn.Module, *, format: FloatFormat = E4M3FN) -> ReduceScatter:
    """Scatter the gradients of an FSDP2 model in 8 bits, from its next backward pass on.

    Each rank rounds once, and sums are taken in float32, so the error is that of one rounding
    (0.0265 in E4M3FN on Gaussian gradients) whatever the number of ranks. Each rank sends
    `129 / 128 (N - 1) / N` bytes for each parameter, half of BF16. A NaN or an infinity arrives as
    a block of NaN. The all-reduce of HSDP stays as it is.

    Every rank has to call this, after the last `fully_shard`.

    Args:
        model: what `fully_shard` returned; modules that were sharded inside of it are served too.
        format: E4M3FN or E5M2.
    Returns:
        The collective; `report()` says what it did.
    Raises:
        TypeError: nothing in the model was sharded by `fully_shard`.
        ValueError: another format; ranks differ; torch refuses the collective.
    """
    modules = sharded_modules("fp8_reduce_scatter", model, format)
    comm = ReduceScatter(format, len(modules))
    for module in modules:
        module.set_custom_reduce_scatter(comm)  # type: ignore[arg-type]  # by its protocol
    return comm


def fp8_all_gather(model: nn.Module, *, format: FloatFormat = E4M3FN) -> AllGather:
    """Gather the weights of an FSDP2 model in 8 bits, before its next forward pass on.

    All ranks compute with the same weights, each rounded once in blocks of 128 (an error of 0.0265
    in E4M3FN on Gaussian weights); the shards that the optimizer updates stay exact. It changes
    every parameter in the graph, biases and norms too. A product that rounds its weight to the same
    format at a power of two, as under units, gets the same bits as without, where neither scale
    makes it subnormal or saturates it. Saves bytes on the wire, not in memory.

    Every rank has to call this, after the last `fully_shard`. Arguments and errors are those of
    `fp8_reduce_scatter`.
    """
    modules = sharded_modules("fp8_all_gather", model, format)
    comm = AllGather(format, len(modules))
    for module in modules:
        module.set_custom_all_gather(comm)  # type: ignore[arg-type]  # by its protocol
    return comm


def sharded_modules(caller: str, model: nn.Module, format: object) -> list[FSDPModule]:
    """The sharded modules of a model; torch sets a collective on each alone.

    Raises:
        TypeError: there is none.
        ValueError: another format, or ranks differ. All ranks raise.
    """
    modules: list[FSDPModule] = [
        module for module in model.modules() if isinstance(module, FSDPModule)
    ]
    mesh = fsdp_mesh(model)
    if mesh is None:
        raise TypeError(
            f"{caller}: nothing in this {type(model).__name__} was sharded by fully_shard; "
            "expected an FSDP2 model. Call fully_shard first"
        )
    fault = None
    if format not in (E4M3FN, E5M2):
        fault = f"format is {format}; expected E4M3FN or E5M2"
    options = {
        "format": str(format),
        "the version of torch": str(torch.__version__),
        "the number of sharded modules": str(len(modules)),
    }
    for group in mesh.get_all_groups():  # all of them, also after a fault, or some would wait
        try:
            agree(caller, options, fault, group)
        except ValueError as error:
            fault = fault or str(error).removeprefix(f"{caller}: ")
    if fault is not None:
        raise ValueError(f"{caller}: {fault}")
    return modules
