"""What runs in place of a scaled model's forward.

A `ScaledForward` stands in the instance's `forward`. So `model(x)` runs the model's own hooks, then
this; Dynamo, where it captures something around the model, breaks its graph here; and a copy of the
model has a copy of it. What Dynamo does not capture of the model: see `layer`.

Frameworks put functions of their own around an instance's `forward` (Accelerate does, for
autocast and for its hooks). So the model keeps its `ScaledForward` in an attribute of ours too, and
is found scaled by that, whatever its `forward` is.
"""

import copy
import inspect
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import nn

from unitscale.graph import engine
from unitscale.units.call import Call
from unitscale.units.capturing import (
    capturing,
    copies_of_a_layer,
    failing_as_plain,
    is_watched,
    with_own_code,
)
from unitscale.units.layer import Layer, give_layer, owners, weighed
from unitscale.units.part import give_parts, take_parts, warn_of_pickle
from unitscale.units.session import Session
from unitscale.units.unused import warn_of_unused_rules
from unitscale.units.wrapped import Stand, is_method_of, reaches

__all__ = ["RecipeLine", "ScaledForward", "attach", "detach", "forward_of"]

ATTRIBUTE = "unitscale_session"
"""Where a model keeps its session; not a parameter, buffer or module, so no checkpoint sees it."""


FORWARD = "unitscale_forward"
"""Where a model keeps the `Stand` of its forward, which no other library replaces."""


def attach(model: nn.Module, session: Session) -> None:
    """Let a model run under a session, in place."""
    model.__dict__[ATTRIBUTE] = session
    around, given_back = model.__dict__.get("forward"), last_of(model)
    if given_back is not None and around is not None and reaches(around, given_back):
        # What wraps it stays: its place in there is taken again.
        given_back.__class__ = ScaledForward
        forward = given_back
        ScaledForward.__init__(forward, model, session, forward.own)
    else:
        forward = ScaledForward(model, session, around)
        model.__dict__["forward"] = forward
    forward.give_layers(model)  # its modules may be called before it is, or without it
    model.__dict__[FORWARD] = Stand(forward)
    model.__dict__["extra_repr"] = RecipeLine(model, session)
    give_parts(model, session.recipe.name)


def detach(model: nn.Module) -> None:
    """Undo `attach`: the model is plain again, its parameters as they are.

    What another library put around its forward in the meantime stays, around the plain one.
    """
    forward = forward_of(model)
    if forward is None:
        return
    if forward.model() is not model:  # a shallow copy that has not run
        forward = forward.of_copy(model)
    if not forward.is_view:  # what it shares with another model stays
        for _, module in owners(model):
            layer = engine.compiled_call(module)
            if isinstance(getattr(layer, "layer", None), Layer):
                engine.set_compiled_call(module, layer.layer.replaced)
        take_parts(model)
    for name in (ATTRIBUTE, "extra_repr"):
        model.__dict__.pop(name, None)
    found = model.__dict__.get("forward")
    if found is forward or is_method_of(found, forward):
        for name in (FORWARD, "forward"):
            model.__dict__.pop(name)
        if forward.own is not None:
            model.__dict__["forward"] = forward.own
    forward.give_back()


def last_of(model: nn.Module) -> "ScaledForward | None":
    """What `attach` last left in a model, given back since or not, or None."""
    stand = model.__dict__.get(FORWARD)
    return stand.forward if isinstance(stand, Stand) else None


def forward_of(model: nn.Module) -> "ScaledForward | None":
    """What `attach` left in a model, or None."""
    found = last_of(model)
    return None if isinstance(found, GivenBack) else found


def session_of(model: nn.Module) -> Session | None:
    """The session of a scaled model, or None."""
    forward = forward_of(model)
    return None if forward is None else forward.session


def require_session(model: nn.Module, caller: str) -> Session:
    """The session of a scaled model.

    Raises:
        ValueError: the model has none.
    """
    session = session_of(model)
    if session is None:
        name = type(model).__name__
        inner = [path for path, m in model.named_modules() if m is not model and session_of(m)]
        if inner:
            raise ValueError(
                f"{caller}: this {name} has no units of its own, but its {inner[0]!r} has; call "
                f"{caller} on that: model.get_submodule({inner[0]!r})"
                + (f" (and on {', '.join(map(repr, inner[1:3]))})" if inner[1:] else "")
            )
        raise ValueError(
            f"{caller}: this {name} has no units; call us.unit_scale(model) or "
            "us.apply_recipe(model, recipe) first (a pickle of a scaled model is a plain model)."
        )
    return session


class ScaledForward:
    """A model's forward under a session.

    Args:
        own: a forward that the instance had before, by another library, say; None is the class's.
        family: what the forwards of a model and of its copies have in common.

    Attributes:
        is_view: whether the model is a shallow copy, which shares its modules with another.
    """

    __name__ = "forward"
    is_view = False

    def __init__(
        self,
        model: nn.Module,
        session: Session,
        own: Callable[..., Any] | None = None,
        family: object = None,
    ) -> None:
        self.model, self.family = weakref.ref(model), family or getattr(self, "family", object())
        self.session, self.own = session, own
        self.has_layers, self.copies = False, 0
        self.layers: dict[str, Any] = {}
        self.listened: dict[int, Any] | None = None
        self.renew()

    def renew(self) -> None:
        """Compile anew: Dynamo never again captures code that it once gave up on."""
        self.hooks = engine.global_hooks()
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

    def give_layers(self, model: nn.Module) -> None:
        """Put a `Layer` beside each module that owns parameters, once."""
        if not self.has_layers:
            self.has_layers = True
            self.copies = copies_of_a_layer(model)
            for path, module in owners(model):
                give_layer(module, path, self.session)

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

    @property
    def __code__(self) -> Any:
        """That of the plain forward, which torch.export looks at."""
        return self.__wrapped__.__code__

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        """A forward for the copy of the model, with a session of its own."""
        model = self.model()
        copied = memo.get(id(model))
        if model is None or copied is None:
            return self
        own = None if self.own is None else copy.deepcopy(self.own, memo)
        return ScaledForward(copied, self.session.copied_for(copied, memo), own, self.family)

    def __reduce__(self) -> Any:
        """The plain forward: a pickle of the model can be loaded without this library."""
        model = self.target()
        warn_of_pickle(type(model).__name__, self.session.recipe.name)
        return getattr, (model, "forward")

    @torch.compiler.disable(reason="a unit-scaled model is compiled by its own session")
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """One call of the model under its recipe."""
        copied = self.copy_that_calls()
        if copied is not None:
            return copied(*args, **kwargs)
        model, session = self.target(), self.session
        args = self.without_model(args)
        session.take(model)
        if session.suspended or is_watched(type(model).__name__):
            with session.aside():  # or each of its modules would say the same
                return self.__wrapped__(*args, **kwargs)
        self.give_layers(model)
        with session.terms.calling() as call:
            plain = partial(self.__wrapped__, *args, **kwargs)
            with (
                failing_as_plain(session, call, plain),
                capturing(session, model, self, copies=self.copies),
            ):
                result = self.compiled(model, *args, **kwargs)
            self.notice(model, call, (*args, *kwargs.values()))
        return result

    def copy_that_calls(self) -> "ScaledForward | None":
        """The forward of the model that is running, if that is a copy of this forward's.

        A function around a forward is not copied with the model: it goes on to call this one.
        """
        caller = engine.calling_module()
        if caller is None or caller is self.model():
            return None
        theirs = last_of(caller)
        if theirs is self and not isinstance(self, GivenBack):
            return self.of_copy(caller)
        is_kin = theirs is not None and theirs is not self and theirs.family is self.family
        return theirs if is_kin else None

    def without_model(self, args: tuple[Any, ...]) -> tuple[Any, ...]:
        """Arguments of a call: who binds this to the model anew passes the model as the first."""
        theirs = last_of(args[0]) if args and isinstance(args[0], nn.Module) else None
        return args if theirs is None or theirs.family is not self.family else args[1:]

    def give_back(self) -> None:
        """Be the plain forward from now on, for what still calls this."""
        for name in ("session", "compiled"):
            self.__dict__.pop(name, None)
        self.__class__ = GivenBack

    def of_copy(self, copied: nn.Module) -> "ScaledForward":
        """A forward for a shallow copy of the model, under the same session.

        `copy.copy` gives it the original's, which does not see the attributes of the copy. One that
        has other parameters by now, a deep copy of a shallow one, gets a session of its own.
        """
        original = self.model()
        own = {id(p) for p in copied.parameters()}
        if original is not None and own and own.isdisjoint(map(id, original.parameters())):
            session = self.session.copied_for(copied, {})
            forward = ScaledForward(copied, session, family=self.family)
            forward.give_layers(copied)
            give_parts(copied, session.recipe.name)
            copied.__dict__[ATTRIBUTE] = session
        else:
            forward = ScaledForward(copied, self.session, self.own, self.family)
            forward.is_view = forward.has_layers = True
            forward.copies = self.copies
        copied.__dict__[FORWARD] = Stand(forward)
        if copied.__dict__.get("forward") is self:
            copied.__dict__["forward"] = forward
        copied.__dict__["extra_repr"] = RecipeLine(copied, forward.session)
        return forward

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
        if not call.parameters <= session.covered or self.listened is None:
            session.covered |= call.parameters
            self.listen_beside(model, args)
        session.warn_of_plain(type(model).__name__)
        warn_of_unused_rules(session, type(model).__name__)
        session.warn_of_nothing_held(type(model).__name__)

    def listen_beside(self, model: nn.Module, args: tuple[Any, ...]) -> None:
        """Have each parameter that no graph took say so if a gradient reaches it all the same.

        Code after a graph break uses it then, in full precision; the next call warns of it. One
        that nothing uses, such as that of an expert that was not picked, gets no gradient.
        """
        session, heard = self.session, self.listened or {}
        self.listened = heard
        for path, module in model.named_modules():
            for p in module._parameters.values():
                if p is None or not p.requires_grad or id(p) in heard:
                    continue
                if id(p) not in session.covered and session.reasons:
                    why = "a parameter of it is used outside of every graph"
                    told = partial(session.leave_beside, id(p), path, why, weighed(module, args))
                    heard[id(p)] = p.register_hook(told)
        for known in heard.keys() & session.covered:
            heard.pop(known).remove()


class GivenBack(ScaledForward):
    """A forward after `detach`, in what another library put around it: the plain forward."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """One call of the plain model."""
        copied = self.copy_that_calls()
        if copied is not None:
            return copied(*args, **kwargs)
        return self.__wrapped__(*self.without_model(args), **kwargs)

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        """For the copy of the model."""
        copied = memo.get(id(self.model()))
        if copied is None:
            return self
        given_back = memo[id(self)] = object.__new__(GivenBack)
        given_back.model, given_back.family = weakref.ref(copied), self.family
        given_back.own = None if self.own is None else copy.deepcopy(self.own, memo)
        return given_back

    def __reduce__(self) -> Any:
        return getattr, (self.target(), "forward")


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
        return self if copied is None else RecipeLine(copied, self.session.copied_for(copied, memo))

    def __reduce__(self) -> Any:
        return getattr, (self.model(), "extra_repr")
