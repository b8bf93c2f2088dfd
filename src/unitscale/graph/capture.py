"""The captured graph, as the rooms above see it: its tensors, their names, and what was idle."""

from unitscale.graph.dynamo import body_name
from unitscale.graph.idle import drop_idle_calls
from unitscale.graph.name import input_name, is_parameter, module_path, op_name
from unitscale.graph.tensor import (
    BOUNDARY,
    EXPOSED,
    MUTATED,
    REPEATED,
    SHARED,
    STRIDED,
    SUBCLASS,
    TRANSFORMED,
    TensorNode,
    checkpointed,
    is_real_float,
    tensor_nodes,
    transformed,
)

__all__ = [
    "BOUNDARY",
    "EXPOSED",
    "MUTATED",
    "REPEATED",
    "SHARED",
    "STRIDED",
    "SUBCLASS",
    "TRANSFORMED",
    "TensorNode",
    "body_name",
    "checkpointed",
    "drop_idle_calls",
    "input_name",
    "is_parameter",
    "is_real_float",
    "module_path",
    "op_name",
    "tensor_nodes",
    "transformed",
]
