"""Numbers among the arguments of a captured call: known now, or only when the graph runs.

A number that changed between calls (a dropout rate, an epsilon, a count) is a node of the graph, as
are sizes that may change. Code that looks at arguments asks here instead of comparing them.
"""

from typing import Any

from torch import fx

__all__ = ["is_known", "may_be_true"]


def is_known(value: Any) -> bool:
    """Whether an argument is the same at every call of the graph: no node, nor a proxy of one."""
    return not isinstance(value, fx.Node | fx.Proxy)


def may_be_true(value: Any) -> bool:
    """Whether a number or flag can be other than 0 at some call of the graph."""
    return not is_known(value) or bool(value)
