"""How many multiply-adds the ops of a captured graph take, on the inputs it was captured with."""

import torch
from torch import Tensor, fx
from torch.utils.flop_counter import FlopCounterMode

from unitscale.graph.dynamo import example
from unitscale.graph.example import evaluate
from unitscale.graph.name import op_name
from unitscale.graph.tensor import lanes
from unitscale.units.ops import body_of, operands, rule_of

__all__ = ["multiply_adds"]

RECURRENT = frozenset({"lstm", "gru", "rnn_tanh", "rnn_relu"})
OUTER = frozenset({"outer", "ger", "addr", "kron", "einsum"})
"""Products with one multiply-add for each element of the result: they sum over nothing.

An einsum that sums over something is counted by torch.
"""


def multiply_adds(node: fx.Node) -> int:
    """Multiply-adds of a node on its example values.

    By torch's own counter, or where that knows none from the sizes of the operands: it does not
    know recurrent layers, products with a vector and fused attention on a CPU, and sees nothing
    under vmap. 0 for an op that is no product.
    """
    return counted(node) or estimated(node)


def counted(node: fx.Node) -> int:
    """What torch's counter finds; 0 of an op that does not run again on example values."""
    counter = FlopCounterMode(display=False)
    try:
        with torch.no_grad(), counter:
            evaluate(node, example(node))
        return int(counter.get_total_flops()) // 2
    except Exception:  # of a lane of vmap, say, whose example values are gone
        return 0


def estimated(node: fx.Node) -> int:
    """What the sizes of its operands say; for one that runs a graph of its own, of all in there."""
    body = body_of(node)
    if body is not None:
        inside = filter(lambda x: x.op.startswith("call_"), body.graph.nodes)
        return sum(map(multiply_adds, inside))
    if op_name(node) in RECURRENT:
        return recurrent(node)
    rule, value = rule_of(node), example(node)
    if not rule.product or not isinstance(value, Tensor):
        return 0
    first, second, *_ = (example(x) for x in operands(node, rule) * 2)
    if rule.kind == "attention":  # every query times every key, and its weights times every value
        return int((first.numel() + value.numel()) * second.size(-2) * lanes(node))
    if first.dim() == 0 or op_name(node) in OUTER:
        summed = 1
    elif op_name(node) == "bilinear":
        summed = first.size(-1) * second.size(-1)
    elif "conv" in op_name(node):
        summed = second[0].numel()
    else:
        summed = first.size(-1)
    return int(value.numel() * summed * lanes(node))


def recurrent(node: fx.Node) -> int:
    """Every matrix of a recurrent layer times every vector of its input."""
    first, *others = map(example, node.all_input_nodes)
    sizes = (x.numel() for x in others if isinstance(x, Tensor) and x.dim() == 2)
    return int(sum(sizes) * (first.numel() // max(first.size(-1), 1)))
