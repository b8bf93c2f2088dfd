"""What runs in place of a scaled model's forward, and of its modules where that cannot be captured.

A `ScaledForward` stands in the instance's `forward`. So `model(x)` runs the model's own hooks, then
this; Dynamo, where it captures something around the model, breaks its graph here; and a copy of the
model has a copy of it. A `Layer` stands beside every module that owns parameters. Where Dynamo
captures the model it passes by; where it gave up on the code around the module (a loop with a graph
break, a neighbor that it does not capture), the module's call gets a graph of its own.
"""

import copy
import inspect
import warnings
import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FunctionType
from typing import Any

import torch
from torch import nn

from unitscale.graph import engine
from unitscale.units.call import Call
from unitscale.units.session import Session

__all__ = ["RecipeLine", "ScaledForward", "attach", "detach", "forward_of"]

ATTRIBUTE = "unitscale_session"
"""Where a model keeps its session; not a parameter, buffer or module, so no checkpoint sees it."""

LEAST_LIMIT = 64
"""Compilations of one frame that are no fault: torch's 8 are few for layers with graph breaks."""

RECURRENT = (nn.RNN, nn.LSTM, nn.GRU)


def attach(model: nn.Module, session: Session) -> None:
    """Let a model run under a session, in place."""
    model.__dict__[ATTRIBUTE] = session
    model.__dict__["forward"] = ScaledForward(model, session, model.__dict__.get("forward"))
    model.__dict__["extra_repr"] = RecipeLine(model, session)


def detach(model: nn.Module) -> None:
    """Undo `attach`: the model is plain again, its parameters as they are."""
    forward = forward_of(model)
    if forward is None:
        return
    for _, module in owners(model):
        layer = engine.compiled_call(module)
        if isinstance(getattr(layer, "layer", None), Layer):
            engine.set_compiled_call(module, layer.layer.replaced)
    for name in (ATTRIBUTE, "extra_repr", "forward"):
        model.__dict__.pop(name, None)
    if forward.own is not None:
        model.__dict__["forward"] = forward.own


def forward_of(model: nn.Module) -> "ScaledForward | None":
    """What `attach` left in a model, or None."""
    found = model.__dict__.get("forward")
    return found if isinstance(found, ScaledForward) else None


def owners(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """The submodules that own a parameter themselves, by path; without the model itself."""
    return [
        (path, module)
        for path, module in model.named_modules()
        if module is not model and any(p is not None for p in module._parameters.values())
    ]


class ScaledForward:
    """A model's forward under a session.

    Args:
        own: a forward that the instance had before, by another library, say; None is the class's.
    """

    __name__ = "forward"

    def __init__(
        self, model: nn.Module, session: Session, own: Callable[..., Any] | None = None
    ) -> None:
        self.model = weakref.ref(model)
        self.session, self.own = session, own
        self.has_layers = False
        self.layers: dict[str, Any] = {}
        self.renew()

    def renew(self) -> None:
        """Compile anew: Dynamo never again captures code that it once gave up on."""
        self.compiled = torch.compile(self.entry(), backend=self.session.backend())

    def entry(self) -> Callable[..., Any]:
        """The model's forward, with code of its own, so that Dynamo counts it apart."""
        model = self.target()
        if self.own is not None:
            own = self.own

            def given(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
                return own(*args, **kwargs)

            return with_own_code(given, type(model).__name__)

        def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
            return type(self).forward(self, *args, **kwargs)

        return with_own_code(forward, type(model).__name__)

    def target(self) -> nn.Module:
        """The model."""
        model = self.model()
        if model is None:
            raise ReferenceError("the model of this forward is gone")
        return model

    @property
    def __wrapped__(self) -> Callable[..., Any]:
        """The plain forward, whose signature this has."""
        model = self.target()
        bound: Callable[..., Any] = self.own or type(model).forward.__get__(model)
        return bound

    @property
    def __signature__(self) -> inspect.Signature:
        return inspect.signature(self.__wrapped__)

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        """A forward for the copy of the model, with a session of its own."""
        model = self.model()
        copied = memo.get(id(model))
        if model is None or copied is None:
            return self
        own = None if self.own is None else copy.deepcopy(self.own, memo)
        return ScaledForward(copied, copy.deepcopy(self.session, memo), own)

    def __reduce__(self) -> Any:
        """The plain forward: a pickle of the model can be loaded without this library."""
        model = self.target()
        warnings.warn(
            f"this {type(model).__name__} is pickled without its recipe "
            f"{self.session.recipe.name!r}: what is loaded is a plain model. Save its state_dict "
            "and us.save_units, and call us.unit_scale on the loaded model.",
            stacklevel=2,
        )
        return getattr, (model, "forward")

    @torch.compiler.disable(reason="a unit-scaled model is compiled by its own session")
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """One call of the model under its recipe."""
        model, session = self.target(), self.session
        if session.suspended or is_watched(type(model).__name__):
            with session.aside():  # or each of its modules would say the same
                return self.__wrapped__(*args, **kwargs)
        if not self.has_layers:
            self.has_layers = True
            for path, module in owners(model):
                give_layer(module, path, session)
        with session.terms.calling() as call:
            with capturing(session, model, self.renew):
                result = self.compiled(model, *args, **kwargs)
            self.notice(model, call, (*args, *kwargs.values()))
        return result

    @contextmanager
    def standing_in(self) -> Iterator[None]:
        """Let the model run under the session inside of the context alone."""
        model = self.target()
        calls = {path: (m, engine.compiled_call(m)) for path, m in owners(model)}
        model.__dict__["forward"], before = self, model.__dict__.get("forward")
        for path, layer in self.layers.items():
            if path in calls:
                engine.set_compiled_call(calls[path][0], layer)
        try:
            yield
        finally:
            self.layers = {path: engine.compiled_call(m) for path, (m, _) in calls.items()}
            for module, call in calls.values():
                engine.set_compiled_call(module, call)
            model.__dict__.pop("forward")
            if before is not None:
                model.__dict__["forward"] = before

    def notice(self, model: nn.Module, call: Call, args: tuple[Any, ...]) -> None:
        """Warn, once each, of modules that ran without a graph of the session."""
        session = self.session
        owned = {id(p) for p in model._parameters.values() if p is not None}
        # Without a reason of Dynamo's, all was captured: those are parameters that nothing used.
        if session.reasons and owned - session.covered - call.parameters:
            why = f"the forward of {type(model).__name__} could not be captured"
            session.leave_plain("", why, weighed(model, args))
        if call.graphs == 0 and next(model.parameters(), None) is not None:
            session.leave_plain("", "no graph of it was captured in a call", 0)
        session.covered |= call.parameters
        session.warn_of_plain(type(model).__name__)


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
        """Compile anew, see `ScaledForward.renew`."""
        module = self.module()

        def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
            return self._call_impl(*args, **kwargs)

        own = with_own_code(forward, type(module).__name__)
        self.compiled = torch.compile(own, backend=self.session.backend())

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
                f"torch.compile does not capture nn.{type(module).__name__}; set "
                "torch._dynamo.config.allow_rnn = True before, or use its cells or unitscale.nn",
                weighed(module, given),
            )
            return module._call_impl(*args, **kwargs)
        with session.terms.calling() as call:
            with capturing(session, module, self.renew):
                result = self.compiled(module, *args, **kwargs)
            owned = {id(p) for p in module._parameters.values() if p is not None}
            if not owned & (call.parameters | session.covered):
                why = f"the forward of {type(module).__name__} could not be captured"
                session.leave_plain(self.path, why, weighed(module, given))
        if session.terms.call is None:  # called by itself, without its model
            session.warn_of_plain(type(module).__name__)
        return result


def weighed(module: nn.Module, args: tuple[Any, ...]) -> int:
    """multiply-adds of a module that was not captured: its matrices times the rows of its input.

    Exact for linear and recurrent layers, an estimate for others.
    """
    first = next((x for x in args if isinstance(x, torch.Tensor) and x.is_floating_point()), None)
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
        if torch.compiler.is_compiling():
            return this()._call_impl(*args, **kwargs)  # type: ignore[union-attr]
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


def with_own_code(function: Callable[..., Any], name: str) -> Callable[..., Any]:
    """A function with code and globals of its own.

    Dynamo counts compilations, and gives up, by code objects. What it compiled hangs on the code
    and on the function's globals, and would stay after the model is gone.
    """
    assert isinstance(function, FunctionType)
    code = function.__code__.replace(co_name=name)
    own = FunctionType(code, dict(function.__globals__), name, None, function.__closure__)
    weakref.finalize(own, engine.forget, code)
    return own


@contextmanager
def capturing(session: Session, module: nn.Module, renew: Callable[[], None]) -> Iterator[None]:
    """Let Dynamo capture and run a call; RuntimeError where it would run it without its recipe."""
    if engine.compiler_is_disabled():
        raise RuntimeError(
            f"torch.compile is disabled (TORCH_COMPILE_DISABLE=1 or torch._dynamo.config.disable), "
            f"so {type(module).__name__} cannot run under recipe {session.recipe.name!r}; enable "
            "it, or call us.unscale(model)."
        )
    terms = session.terms
    limit = max(LEAST_LIMIT, engine.recompile_limit()) + copies_of_a_layer(module)
    terms.inside_graph, before = False, engine.break_reasons()
    try:
        with engine.strict_compilation(limit):
            yield
    except engine.FailOnRecompileLimitHit as error:
        raise RuntimeError(
            f"torch.compile has compiled {type(module).__name__} {limit} times "
            "and would run it from now on without its recipe; call torch.compiler.reset() "
            "before you build the next model, or raise torch._dynamo.config.recompile_limit."
        ) from error
    except BaseException:
        if not terms.inside_graph:
            renew()
        raise
    finally:
        now = engine.break_reasons()
        session.reasons |= dict.fromkeys(why for why in now if now[why] > before.get(why, 0))


def copies_of_a_layer(model: nn.Module) -> int:
    """The largest number of submodules of one class of the model's own.

    A layer that breaks the graph is compiled once for each, if it reads a number of its own, such
    as its index.
    """
    own = (type(m) for m in model.modules() if not type(m).__module__.startswith("torch.nn."))
    return max(Counter(own).values(), default=0)


def is_watched(name: str) -> bool:
    """Whether something watches the model's operations by other means, and gets the plain ones.

    Raises:
        RuntimeError: it is exported.
    """
    if torch.compiler.is_exporting():
        raise RuntimeError(
            f"{name} is scaled, and torch.export would record its plain operations without the "
            "recipe; export a plain model: call us.unscale(model) first."
        )
    active = engine.modes()
    if active:
        # Dynamo captures nothing under a mode, and would skip the same code for ever after.
        warnings.warn(
            f"{name} runs without its recipe in this call, because a dispatch mode "
            f"({type(active[-1]).__name__}) is active: it sees the plain operations.",
            stacklevel=3,
        )
    return bool(active)


class RecipeLine:
    """The `extra_repr` of a scaled model: its own, and a line that says the recipe."""

    def __init__(self, model: nn.Module, session: Session) -> None:
        self.model, self.session = weakref.ref(model), session

    def __call__(self) -> str:
        """The text between the parentheses of `print(model)`."""
        model = self.model()
        assert model is not None
        own = type(model).extra_repr(model)
        return "\n".join(filter(None, (own, self.session.line())))

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        copied = memo.get(id(self.model()))
        return self if copied is None else RecipeLine(copied, copy.deepcopy(self.session, memo))

    def __reduce__(self) -> Any:
        return getattr, (self.model(), "extra_repr")
