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

from unitscale.graph import cells, multihead
from unitscale.graph.capture import checkpointed
from unitscale.graph.example import evaluate

Given = dict[str, Any]
"""The arguments of a call by name: nodes, or proxies while its replacement is written."""


@dataclass(frozen=True)
class Composite:
    """An op in ops of its own.

    Args:
        signature: how its arguments are called.
        fits: whether `write` does what this call of it does.
        write: from its arguments to its results.
    """

    signature: inspect.Signature
    fits: Callable[[fx.Node, Given], bool]
    write: Callable[[Given], Any]


COMPOSITES: dict[Any, Composite] = {
    F.multi_head_attention_forward: Composite(
        multihead.SIGNATURE, multihead.is_usual, multihead.attention
    ),
    torch.rnn_tanh_cell: Composite(
        cells.SIGNATURE, cells.is_plain, partial(cells.simple_cell, activation=torch.tanh)
    ),
    torch.rnn_relu_cell: Composite(
        cells.SIGNATURE, cells.is_plain, partial(cells.simple_cell, activation=torch.relu)
    ),
    torch.gru_cell: Composite(cells.SIGNATURE, cells.is_plain, cells.gru_cell),
    torch.lstm_cell: Composite(cells.SIGNATURE, cells.is_plain, cells.lstm_cell),
}


def expand(graph: fx.Graph, *, recomputed: bool = False) -> None:
    """Replace every call that a composite fits; the others stay one op, with no unit inside.

    So does one with dropout in a `recomputed` body of a checkpoint: it would draw other numbers.
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
        draws = recomputed and given.get("dropout_p") and given["training"]
        if composite.fits(node, given) and not draws and has_plain_users(node):
            replace(node, composite.write, given)


def has_plain_users(node: fx.Node) -> bool:
    """Whether a tuple is only taken apart."""
    is_tuple = isinstance(node.meta["example_value"], tuple)
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
        self.meta = replaced.meta

    def create_node(self, *args: Any, **kwargs: Any) -> fx.Node:
        """A node with its example value."""
        node = super().create_node(*args, **kwargs)
        node.meta = {key: x for key, x in self.meta.items() if key != "example_value"}
        node.meta["example_value"] = evaluate(node, self.meta["example_value"])
        return node
