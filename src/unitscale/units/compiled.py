"""Compile a model in place so that nothing of it can be left out in silence.

`Module.compile()` alone would leave out two things. It captures nothing of a model whose own class
is one of torch.nn's (an nn.Sequential, say). And Dynamo compiles a function for some situations at
most, counted over all models of a class; from then on it runs the function as it is, and logs.
"""

from collections import Counter
from collections.abc import Callable
from types import FunctionType
from typing import Any

import torch
from torch import nn
from torch._dynamo import config
from torch._dynamo.exc import FailOnRecompileLimitHit

LEAST_LIMIT = 64
"""Compilations of one frame that are no fault: torch's 8 are few for layers with graph breaks."""


def compile_in_place(
    model: nn.Module, backend: Callable[..., Any], begin_call: Callable[[], None]
) -> None:
    """`model.compile(backend=backend)`; RuntimeError at calls that Dynamo would not compile.

    `begin_call` is called at the start of every call of the model.
    """
    model.compile(backend=backend)  # sets what makes copies and pickles of a model plain
    compiled = torch.compile(entry(model), backend=backend)
    layers = copies_of_a_layer(model)

    def call(*args: Any, **kwargs: Any) -> Any:
        begin_call()
        limit = max(LEAST_LIMIT, config.recompile_limit) + layers
        try:
            with config.patch(fail_on_recompile_limit_hit=True, recompile_limit=limit):
                return compiled(*args, **kwargs)
        except FailOnRecompileLimitHit as error:
            raise RuntimeError(
                f"torch.compile has compiled {type(model).__name__} {limit} times "
                "and would run it from now on without its recipe; call torch.compiler.reset() "
                "before you build the next model, or raise torch._dynamo.config.recompile_limit."
            ) from error

    model._compiled_call_impl = call


def copies_of_a_layer(model: nn.Module) -> int:
    """The largest number of submodules of one class of the model's own.

    A layer that breaks the graph is compiled once for each, if it reads a number of its own, such
    as its index.
    """
    own = (type(m) for m in model.modules() if not type(m).__module__.startswith("torch.nn."))
    return max(Counter(own).values(), default=0)


def entry(self: nn.Module) -> Callable[..., Any]:
    """A function that calls a model, with code of its own, so that Dynamo counts it apart."""

    def call(*args: Any, **kwargs: Any) -> Any:
        return self._call_impl(*args, **kwargs)

    own = call.__code__.replace(co_name=type(self).__name__)
    return FunctionType(own, call.__globals__, own.co_name, None, call.__closure__)
