"""Run a call under Dynamo in such a way that a recipe is never left out in silence."""

import warnings
import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FunctionType
from typing import Any, Protocol

import torch
from torch import nn

from unitscale.graph import engine
from unitscale.units.call import Call
from unitscale.units.session import Session

__all__ = ["capturing", "copies_of_a_layer", "failing_as_plain", "is_watched", "with_own_code"]

LEAST_LIMIT = 64
"""Compilations of one frame that are no fault: torch's 8 are few for layers with graph breaks."""


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


class Captured(Protocol):
    """What is captured: compiled anew by `renew`, with the hooks on all modules that there are."""

    hooks: tuple[int, ...]

    def renew(self) -> None:
        """Compile anew: Dynamo never again captures code that it once gave up on."""


@contextmanager
def capturing(
    session: Session, module: nn.Module, captured: Captured, *, copies: int = 0
) -> Iterator[None]:
    """Let Dynamo capture and run a call; RuntimeError where it would run it without its recipe.

    Args:
        captured: renewed where an exception passes that came from capturing, not from a graph,
            and where hooks on all modules came or went.
        copies: of one layer, see `copies_of_a_layer`.
    """
    if engine.compiler_is_disabled():
        raise RuntimeError(
            f"torch.compile is disabled (TORCH_COMPILE_DISABLE=1 or torch._dynamo.config.disable), "
            f"so {type(module).__name__} cannot run under recipe {session.recipe.name!r}; enable "
            "it, or call us.unscale(model)."
        )
    terms = session.terms
    limit = max(LEAST_LIMIT, engine.recompile_limit()) + copies
    if captured.hooks != engine.global_hooks():
        captured.renew()
    terms.inside_graph, before = False, engine.break_reasons()
    try:
        with engine.strict_compilation(limit), without_fused_encoders(session.recipe.rounds):
            yield
    except engine.FailOnRecompileLimitHit as error:
        raise RuntimeError(
            f"torch.compile has compiled {type(module).__name__} {limit} times "
            "and would run it from now on without its recipe; call torch.compiler.reset() "
            "before you build the next model, or raise torch._dynamo.config.recompile_limit."
        ) from error
    except BaseException:
        if not terms.inside_graph:
            captured.renew()
        raise
    finally:
        now = engine.break_reasons()
        found = dict.fromkeys(why for why in now if now[why] > before.get(why, 0))
        session.reasons |= found
        session.breaks |= found


@contextmanager
def failing_as_plain(session: Session, call: Call, plain: Callable[[], Any]) -> Iterator[None]:
    """Where an op cannot be captured because it fails, let it fail as in the plain model.

    Dynamo tries ops without computing them: random numbers drawn before the one that fails, and
    what the forward wrote to its attributes, would be missing, and the error is of another class.
    """
    before = call.graphs
    try:
        yield
    except engine.TorchRuntimeError:
        if call.graphs > before:  # a part of it has run
            raise
        try:
            with session.aside():
                plain()
        except Exception as error:
            raise error from None
        raise


@contextmanager
def without_fused_encoders(rounds: bool) -> Iterator[None]:
    """Let `nn.TransformerEncoderLayer` and `nn.MultiheadAttention` compute by their parts.

    In evaluation torch has one op for all of them, in which no product could be rounded: the same
    call would then have other numerics in evaluation than in training. Where a recipe rounds
    nothing, torch's op is left, whose bits those of the plain model are.
    """
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(before and not rounds)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


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
        why = f"a dispatch mode ({type(active[-1]).__name__}) is active: it sees"
    elif engine.in_transform() or engine.in_forward_mode():
        why = "a function transform (torch.func.grad or jvp, say) is active: it takes"
    else:
        return False
    warnings.warn(
        f"{name} runs without its recipe in this call, because {why} the plain operations.",
        stacklevel=3,
    )
    return True
