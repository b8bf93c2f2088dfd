"""Modules that get a graph of their own where the code around them is not captured.

A `Layer` stands beside every module that owns parameters. Where Dynamo captures the model it
passes by; where it gave up on the code around the module (a loop with a graph break, a neighbor
that it does not capture), the module's call is captured here.
"""

import weakref
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn.utils.rnn import PackedSequence

from unitscale.graph import engine
from unitscale.units.capturing import capturing, failing_as_plain, is_watched, with_own_code
from unitscale.units.session import Session

__all__ = ["Layer", "give_layer", "owners", "weighed"]

RECURRENT = (nn.RNN, nn.LSTM, nn.GRU)


def owners(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """The submodules that own a parameter themselves, by path; without the model itself."""
    return [
        (path, module)
        for path, module in model.named_modules()
        if module is not model and any(p is not None for p in module._parameters.values())
    ]


class Layer:
    """A module's call where the code around it is not captured.

    Args:
        replaced: what the module ran instead of its forward before, or None.
    """

    def __init__(self, module: nn.Module, path: str, session: Session) -> None:
        self.module, self.path, self.session = weakref.ref(module), path, session
        self.replaced = engine.compiled_call(module)
        self.renew()

    def renew(self) -> None:
        """Compile anew at the next call, see `ScaledForward.renew`."""
        self.hooks = engine.global_hooks()
        self.compiled: dict[bool, Callable[..., Any]] = {}

    def capture(self, module: nn.Module, *, whole: bool) -> Callable[..., Any]:
        """The module's call, or its forward alone, as a function that Dynamo captures."""

        def call(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
            return self._call_impl(*args, **kwargs)

        def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
            return type(self).forward(self, *args, **kwargs)

        if whole not in self.compiled:
            own = with_own_code(call if whole else forward, type(module).__name__)
            self.compiled[whole] = torch.compile(own, backend=self.session.backend())
        return partial(self.compiled[whole], module)

    def run(self, module: nn.Module, args: Any, kwargs: Any) -> Any:
        """The module's captured call.

        Dynamo does not capture some hooks: with such, the module's own call runs, around its
        captured forward.
        """
        if not engine.has_uncaptured_hooks(module):
            return self.capture(module, whole=True)(*args, **kwargs)
        before = module.__dict__.get("forward")
        module.__dict__["forward"] = self.capture(module, whole=False)
        try:
            return module._call_impl(*args, **kwargs)
        finally:
            module.__dict__.pop("forward")
            if before is not None:
                module.__dict__["forward"] = before

    @torch.compiler.disable(reason="a unit-scaled module is compiled by the session of its model")
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """One call of the module, in a graph of its own."""
        module, session = self.module(), self.session
        assert module is not None
        given = (*args, *kwargs.values())
        is_left_out = self.path in session.plain or session.suspended
        if is_left_out or is_watched(type(module).__name__):
            return module._call_impl(*args, **kwargs)
        if isinstance(module, RECURRENT) and not engine.captures_recurrent():
            session.leave_plain(
                self.path,
                f"torch.compile does not capture nn.{type(module).__name__}, which torch runs in "
                "one op; use its cells, or unitscale.nn",
                weighed(module, given),
            )
            return module._call_impl(*args, **kwargs)
        with session.terms.calling() as call:
            plain, before = partial(module._call_impl, *args, **kwargs), call.graphs
            with failing_as_plain(session, call, plain), capturing(session, module, self):
                result = self.run(module, args, kwargs)
            owned = {id(p) for p in module._parameters.values() if p is not None}
            if engine.has_uncaptured_hooks(module) and call.graphs > before:
                call.parameters |= owned  # FSDP2 gave the graph others, and took them back by now
            if not owned & (call.parameters | session.covered):
                why = f"the forward of {type(module).__name__} could not be captured"
                session.leave_plain(self.path, why, weighed(module, given))
            session.covered |= call.parameters
        if session.terms.call is None:  # called by itself, without its model
            session.warn_of_plain(type(module).__name__)
        return result


def weighed(module: nn.Module, args: tuple[Any, ...]) -> int:
    """Multiply-adds of a module that was not captured: its matrices times the rows of its input.

    Exact for linear and recurrent layers, an estimate for others.
    """
    given = (x.data if isinstance(x, PackedSequence) else x for x in args)
    first = next((x for x in given if isinstance(x, torch.Tensor) and x.is_floating_point()), None)
    if first is None or first.dim() == 0 or first.size(-1) == 0:
        return 0
    own = (p for p in module._parameters.values() if p is not None and p.dim() > 1)
    return sum(p.numel() for p in own) * (first.numel() // first.size(-1))


def give_layer(module: nn.Module, path: str, session: Session) -> None:
    """Put a `Layer` beside a module.

    Where Dynamo captures the call (of a module with hooks, inside a model's graph), it sees the
    module's own call; where it looks at this function first, it captures that call here.
    """
    layer, this = Layer(module, path, session), weakref.ref(module)

    def call(*args: Any, **kwargs: Any) -> Any:
        module: Any = this()
        if torch.compiler.is_compiling() and not engine.has_uncaptured_hooks(module):
            return module._call_impl(*args, **kwargs)
        return layer(*args, **kwargs)

    own: Any = with_own_code(call, type(module).__name__)
    own.layer = layer
    has_own_state = type(module).__getstate__ is not nn.Module.__getstate__
    engine.set_compiled_call(module, LayerCall(own) if has_own_state else own)


class LayerCall:
    """The function of `give_layer` for a class whose copies would take it along: they get None.

    `nn.Module.__getstate__` leaves it out; that of nn.LSTM and its like does not.
    """

    def __init__(self, own: Any) -> None:
        self.layer, self.own = own.layer, own

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """One call of the module."""
        return self.own(*args, **kwargs)

    def __deepcopy__(self, memo: dict[int, Any]) -> None:
        return None

    def __reduce__(self) -> Any:
        return type(None), ()
