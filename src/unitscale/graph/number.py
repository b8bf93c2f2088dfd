"""Numbers among the arguments of a captured call: known now, or only when the graph runs.

A number that changed between calls (a dropout rate, an epsilon, a count) is a node of the graph, as
are sizes that may change. Code that looks at arguments asks here instead of comparing them.
"""

from typing import Any

from torch import fx

from unitscale.graph import dynamo

__all__ = ["constant", "is_known", "may_be_true"]


def is_known(value: Any) -> bool:
    """Whether an argument is the same at every call of the graph.

    It is if it is no node, nor a proxy of one, or if torch keeps the graph for its value alone.
    """
    return not isinstance(constant(value), fx.Node | fx.Proxy)


def constant(value: Any) -> Any:
    """An argument; for a node whose number is the same at every call of the graph, that number."""
    node = value.node if isinstance(value, fx.Proxy) else value
    number = dynamo.known_number(node) if isinstance(node, fx.Node) else None
    return value if number is None else number


def may_be_true(value: Any) -> bool:
    """Whether a number or flag can be other than 0 at some call of the graph."""
    return not is_known(value) or bool(constant(value))
