"""Notices gradients that were not exchanged: a hook that is never called says nothing by itself.

A model that is called without its wrapper (`ddp.module(x)`) is one case: DDP then averages nothing,
in any number of bits, and every rank trains a model of its own.
"""

import warnings
import weakref
from typing import Any

from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

__all__ = ["NO_COPY", "watch"]


NO_COPY = (
    "fp8_hook: a DistributedDataParallel model with its hook is not copied or pickled, or the copy "
    "would exchange in full precision; copy its `module`, or save its state_dict() and the hook's"
)


def watch(model: DistributedDataParallel, wire: Any) -> None:
    """Warn, once, if a gradient was computed and not exchanged, `no_sync` apart.

    A gradient is noticed when the next one is computed, or the one after: until then its bucket may
    be yet to come. Neither the model nor the wire is kept alive.

    Args:
        wire: counts in `begun` the backward passes that it exchanged.
    """
    first = next(parameter for parameter in model.parameters() if parameter.requires_grad)
    name = next(name for name, parameter in model.module.named_parameters() if parameter is first)
    seen = Seen(name, weakref.ref(model), weakref.ref(wire))
    model.register_forward_pre_hook(seen.forward)
    first.register_post_accumulate_grad_hook(seen.accumulated)  # type: ignore[no-untyped-call]


class Seen:
    """What a parameter has seen."""

    def __init__(self, name: str, model: Any, wire: Any) -> None:
        self.name, self.model, self.wire = name, model, wire
        self.expected = 0
        """Gradients of this parameter since the hook was registered that were to be exchanged."""
        self.is_local = False
        """Whether the last call of the wrapper was made under `no_sync`."""
        self.has_warned = False

    def __reduce__(self) -> Any:
        raise TypeError(NO_COPY)

    def forward(self, model: nn.Module, args: Any) -> None:
        """Before each call of the wrapper."""
        self.is_local = not getattr(model, "require_backward_grad_sync", True)

    def accumulated(self, parameter: Tensor) -> None:
        """After each gradient of the parameter."""
        model, wire = self.model(), self.wire()
        if model is None or wire is None or self.has_warned:
            return
        if self.expected > wire.begun:
            self.has_warned = True
            warnings.warn(
                f"fp8_hook: gradients of {self.name!r} were computed outside of no_sync and not "
                "exchanged between ranks; call the "
                "DistributedDataParallel model itself, not its `module`",
                stacklevel=2,
            )
        if not self.is_local and model.require_backward_grad_sync:
            # This very pass may have begun or not; passes without this parameter count, too.
            self.expected = max(self.expected + 1, wire.begun)
