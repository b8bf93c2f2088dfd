"""Gradients between ranks in 8 bits: half of what BF16 sends, at an error that ranks do not add to.

`fp8_hook` is for `torch.nn.parallel.DistributedDataParallel`, `fp8_reduce_scatter` and
`fp8_all_gather` are for FSDP2. `partition_states` spreads the states of an optimizer over ranks.
See `docs/distributed.md`.
"""

from unitscale.distributed.fsdp import ShardReport, fp8_all_gather, fp8_reduce_scatter
from unitscale.distributed.hook import fp8_hook
from unitscale.distributed.ownership import PartitionReport, partition
from unitscale.distributed.scale import (
    AutomaticScale,
    CurrentScale,
    GradientScale,
    RootScale,
    UnitScale,
)
from unitscale.distributed.wire import GradientWire, WireReport
from unitscale.distributed.zero import PartitionedStates, partition_states

__all__ = [
    "AutomaticScale",
    "CurrentScale",
    "GradientScale",
    "GradientWire",
    "PartitionReport",
    "PartitionedStates",
    "RootScale",
    "ShardReport",
    "UnitScale",
    "WireReport",
    "fp8_all_gather",
    "fp8_hook",
    "fp8_reduce_scatter",
    "partition",
    "partition_states",
]
