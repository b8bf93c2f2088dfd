"""Checkpoints in a graph that runs as it is, without a compiler."""

from typing import Any

from torch import fx
from torch.utils.checkpoint import checkpoint

from unitscale.graph.dynamo import checkpoint_context
from unitscale.graph.tensor import checkpointed

__all__ = ["checkpoint_options", "recomputing"]


def recomputing(module: fx.GraphModule) -> fx.GraphModule:
    """The module with its checkpoint calls, nested ones too, made those of eager PyTorch.

    Dynamo's own op leaves the random numbers of the recomputed body to a compiler. Run as it is, it
    draws new dropout masks in backward, and the gradients are those of another function.
    """
    for node in module.graph.nodes:
        body = checkpointed(node)
        if body is not None:
            recomputing(body)
            node.target = recomputed
    module.recompile()
    return module


def recomputed(body: fx.GraphModule, *args: Any, **options: Any) -> Any:
    """`torch.utils.checkpoint` with the options that the model's author gave."""
    return checkpoint(body, *args, **checkpoint_options(body, options))


def checkpoint_options(body: fx.GraphModule, options: dict[str, Any]) -> dict[str, Any]:
    """The options of a checkpoint call, for a body that is run again by eager PyTorch."""
    context = checkpoint_context(body)
    given = {} if context is None else {"context_fn": context}
    return options | given | {"use_reentrant": False}
