"""Run a captured graph node by node and show each tensor to an observer."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils.hooks import RemovableHandle

from unitscale.graph import dynamo
from unitscale.graph.tensor import TensorNode, checkpointed

Observer = Callable[[TensorNode, Tensor], None]


def on_gradient(value: Tensor, observe: Callable[[Tensor], None]) -> RemovableHandle:
    """`value.register_hook(observe)`, but for a backward written by hand that returns None.

    A gradient of zeros without memory, as `torch.sgn` sends, is shown as ordinary zeros.
    """

    def hook(grad: Tensor | None) -> None:
        if grad is not None:
            observe(grad.clone() if dynamo.is_zero_tensor(grad) else grad)

    return value.register_hook(hook)


class ObservingInterpreter(fx.Interpreter):
    """Runs a captured graph as it is; the result is that of the plain model, bit for bit.

    Args:
        tensors: the nodes to show, see `capture.tensor_nodes`.
        observe: gets each of them with its value, under `no_grad`; it must not change or keep it,
            and may ask for its gradient (`on_gradient`).
    """

    def __init__(
        self, module: fx.GraphModule, tensors: Mapping[fx.Node, TensorNode], observe: Observer
    ) -> None:
        super().__init__(module)
        self.tensors, self.observe = tensors, observe

    def run_node(self, n: fx.Node) -> Any:
        """Run one node and show its value; a checkpointed body is run in place, once."""
        body = checkpointed(n)
        if body is None:
            value = super().run_node(n)
        else:
            inputs = self.fetch_args_kwargs_from_env(n)[0][1:]
            value = ObservingInterpreter(body, self.tensors, self.observe).run(*inputs)
        if n in self.tensors and self.tensors[n].is_visible and isinstance(value, Tensor):
            with torch.no_grad():
                self.observe(self.tensors[n], value)
        return value
