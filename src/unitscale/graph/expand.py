"""Write out an op that Dynamo captured whole, so that the products inside it can be seen.

`nn.MultiheadAttention` (and with it `nn.TransformerEncoder`) and the recurrent cells arrive as one
call each, whose products would neither have units nor be rounded. What replaces it calls the same
functions in the same order, so the result is the same to the bit.
"""

import inspect
import operator
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx
from torch.fx.proxy import GraphAppendingTracer, Proxy

from unitscale.graph import cells, dynamo, multihead
from unitscale.graph.example import evaluate
from unitscale.graph.number import may_be_true
from unitscale.graph.tensor import checkpointed

UNEXPANDED = "unitscale.unexpanded"
"""The key under which a node keeps why it stayed one op."""

Given = dict[str, Any]
"""The arguments of a call by name: nodes, or proxies while its replacement is written."""


@dataclass(frozen=True)
class Composite:
    """An op in ops of its own.

    Args:
        signature: how its arguments are called.
        refusal: why `write` does not do what this call of it does, or None if it does.
        write: from its arguments to its results.
    """

    signature: inspect.Signature
    refusal: Callable[[fx.Node, Given], str | None]
    write: Callable[[Given], Any]


COMPOSITES: dict[Any, Composite] = {
    F.multi_head_attention_forward: Composite(
        multihead.SIGNATURE, multihead.refusal, multihead.attention
    ),
    torch.rnn_tanh_cell: Composite(
        cells.SIGNATURE, cells.refusal, partial(cells.simple_cell, activation=torch.tanh)
    ),
    torch.rnn_relu_cell: Composite(
        cells.SIGNATURE, cells.refusal, partial(cells.simple_cell, activation=torch.relu)
    ),
    torch.gru_cell: Composite(cells.SIGNATURE, cells.refusal, cells.gru_cell),
    torch.lstm_cell: Composite(cells.SIGNATURE, cells.refusal, cells.lstm_cell),
}


def expand(graph: fx.Graph, *, recomputed: bool = False) -> None:
    """Replace every call that a composite does not refuse; the others stay one op.

    No tensor inside those has a unit. One with dropout in a `recomputed` body of a checkpoint is
    among them: it would draw other numbers.
    """
    for node in list(graph.nodes):
        body = checkpointed(node)
        if body is not None:
            expand(body.graph, recomputed=True)
            body.recompile()
        composite = COMPOSITES.get(node.target)
        if composite is None:
            continue
        bound = composite.signature.bind(*node.args, **node.kwargs)
        bound.apply_defaults()
        given = bound.arguments
        why = composite.refusal(node, given)
        if recomputed and may_be_true(given.get("dropout_p")) and may_be_true(given["training"]):
            why = "its dropout would draw other numbers in a checkpoint"
        elif not has_plain_users(node):
            why = "its results are used as a tuple"
        if why is None:
            replace(node, composite.write, given)
        else:
            node.meta[UNEXPANDED] = why


def unexpanded_reason(node: fx.Node) -> str | None:
    """Why a composite stayed one op after `expand`; None for any other node."""
    if node.target not in COMPOSITES:
        return None
    return str(node.meta.get(UNEXPANDED, "it was not written out"))


def has_plain_users(node: fx.Node) -> bool:
    """Whether a tuple is only taken apart."""
    is_tuple = isinstance(dynamo.example(node), tuple)
    return not is_tuple or all(user.target is operator.getitem for user in node.users)


def replace(node: fx.Node, write: Callable[[Given], Any], given: Given) -> None:
    """Put the ops of `write` where a call was."""
    tracer = Tracer(node)
    proxies = {x: Proxy(x, tracer) for x in node.all_input_nodes}
    with node.graph.inserting_before(node):
        # To fx an argument is a node; a proxy of one is as good for the calls of `write`.
        results = write(fx.node.map_arg(given, proxies.__getitem__))  # type: ignore[arg-type]
    if isinstance(results, Proxy):
        node.replace_all_uses_with(results.node)
    else:
        for user in list(node.users):
            user.replace_all_uses_with(results[user.args[1]].node)
            node.graph.erase_node(user)
    node.graph.erase_node(node)


class Tracer(GraphAppendingTracer):
    """Appends ops to a graph, with all that Dynamo notes on a node: taken over, or computed."""

    def __init__(self, replaced: fx.Node) -> None:
        super().__init__(replaced.graph)
        self.replaced = replaced

    def create_node(self, *args: Any, **kwargs: Any) -> fx.Node:
        """A node with its example value."""
        node = super().create_node(*args, **kwargs)
        node.meta = dict(self.replaced.meta)
        dynamo.set_example(node, evaluate(node, dynamo.example(self.replaced)))
        return node
