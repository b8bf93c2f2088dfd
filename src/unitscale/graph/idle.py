"""Calls that return their own input, such as `x.float()` of a float32 tensor, leave the graph."""

import inspect

import torch.nn.functional as F
from torch import fx

from unitscale.graph import dynamo
from unitscale.graph.effect import MAY_DO_NOTHING
from unitscale.graph.name import op_name
from unitscale.graph.number import may_be_true
from unitscale.graph.tensor import checkpointed

__all__ = ["drop_idle_calls", "is_idle"]


def drop_idle_calls(graph: fx.Graph) -> None:
    """Remove calls that returned their own input, such as `x.float()` of a float32 tensor.

    Left in, the tensor would be two tensors to the rewrite, and where it has three consumers
    autograd would sum their gradients in another order than in the plain model: a difference in
    the last bit.
    """
    for node in list(graph.nodes):
        body = checkpointed(node)
        if body is not None:
            drop_idle_calls(body.graph)
        base = next(iter(node.all_input_nodes), None)
        if base is not None and is_idle(node, base):
            node.replace_all_uses_with(base)
            graph.erase_node(node)


def is_idle(node: fx.Node, base: fx.Node) -> bool:
    """Whether a call returns its first tensor itself, and leaves it as it is.

    Dropout that drops nothing does; the example value of `F.dropout` is another tensor all the
    same. In place it returns its input when it drops, too.
    """
    if not node.op.startswith("call_") or op_name(node) not in MAY_DO_NOTHING:
        return False
    if getattr(node.target, "__module__", "") == F.__name__:
        given = inspect.signature(node.target).bind(*node.args, **node.kwargs)  # type: ignore[arg-type]
        given.apply_defaults()
        drops = may_be_true(given.arguments["training"]) and may_be_true(given.arguments["p"])
        if drops or node.target is F.dropout:
            return not drops
    value = dynamo.example(node)
    return value is not None and value is dynamo.example(base)
