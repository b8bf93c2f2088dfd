"""The example value that Dynamo leaves on each node of a graph, and how to compute another."""

from typing import Any

import torch
from torch import Tensor, fx

from unitscale.graph import dynamo
from unitscale.graph.dynamo import storage_id

__all__ = ["evaluate", "storage_id", "storages"]


def evaluate(node: fx.Node, like: Any) -> Any:
    """The value of a node for the example values of its arguments.

    `like` is an example value of the same graph: a fake tensor, or a tuple that holds one. Its mode
    knows the sizes that may change, and it says whether gradients are recorded there.
    """
    tensors = (x for x in (like if isinstance(like, tuple | list) else [like]) if is_tensor(x))
    first = next(tensors)
    with dynamo.running_fake(first), torch.set_grad_enabled(first.requires_grad):
        args, kwargs = fx.node.map_arg((node.args, node.kwargs), dynamo.example)
        if node.op == "call_method":
            return getattr(args[0], str(node.target))(*args[1:], **kwargs)
        return node.target(*args, **kwargs)  # type: ignore[operator]


def is_tensor(value: Any) -> bool:
    """Whether a value is a tensor."""
    return isinstance(value, Tensor)


def storages(value: Any) -> set[int]:
    """The memory of a tensor, or of those in a tuple or list."""
    if isinstance(value, Tensor):
        return {storage_id(value)}
    return {s for x in value for s in storages(x)} if isinstance(value, tuple | list) else set()
