"""Where a captured graph records gradients: `no_grad` and `enable_grad` are calls within it."""

from torch import _C, fx

from unitscale.graph.dynamo import gradient_mode

__all__ = ["record_results", "records_anywhere"]


def modes(graph: fx.Graph) -> list[bool]:
    """What a graph sets the recording of gradients to, one after the other."""
    found = map(gradient_mode, graph.nodes)
    return [mode for mode in found if mode is not None]


def records_anywhere(graph: fx.Graph, *, at_start: bool) -> bool:
    """Whether a graph that starts in this mode records gradients in some part of it."""
    return at_start or any(modes(graph))


def record_results(graph: fx.Graph) -> bool | None:
    """Let what is done to a graph's results at its end be recorded, whatever mode it ends in.

    A result of `enable_grad` inside of a caller's `no_grad` has a history, and each result gets a
    factor at the end of the graph, which must not cut it off. To a result without a history this
    changes nothing.

    Returns:
        The mode that the graph ended in, which its caller has to set now; None: it is as before.
    """
    found = modes(graph)
    if not found or found[-1]:
        return None
    *_, output = graph.nodes
    with graph.inserting_before(output):
        graph.call_function(_C._set_grad_enabled, (True,))
    return False
