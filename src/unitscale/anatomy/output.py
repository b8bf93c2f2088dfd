"""What a model gives for a batch, in eval() and without its recipe."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from unitscale import units
from unitscale.anatomy.whole import unwrapped
from unitscale.deploy.calibration import arguments, taking, tensors_in
from unitscale.units.forward import session_of

__all__ = ["called", "evaluating", "plain", "uncompiled"]


def called(
    model: nn.Module,
    batch: Any,
    who: str,
    *,
    number: int | None = None,
    in_float32: bool = False,
) -> tuple[float | None, Tensor]:
    """The loss of a call, if the model gives one, and its output; `who` asks, for the error.

    Args:
        number: of the batch among several.
        in_float32: compute a model of fewer bits in float32, so that its rounding hides nothing.

    Raises:
        ValueError: the batch is empty, or one that the model does not take; names it, and says in
            a line what the model raised. Or the model returned no logits.
    """
    name = f"{who}: the batch" if number is None else f"{who}: batch {number}"
    for key, x in tensors_in(batch):
        if not x.numel():
            raise ValueError(f"{name} is empty in {key} {tuple(x.shape)}; expected samples")
    args, kwargs = arguments(batch)
    tensors = [*model.named_parameters(), *model.named_buffers()]
    with taking(batch, name):
        if in_float32 and any(is_short(value) for _, value in tensors):
            args, kwargs = tuple(map(widened, args)), {k: widened(v) for k, v in kwargs.items()}
            wide = {n: widened(value) for n, value in tensors}
            found = functional_call(model, wide, args, kwargs)
        else:
            found = model(*args, **kwargs)
    loss = getattr(found, "loss", None)
    output = getattr(found, "logits", found)
    if not isinstance(output, Tensor):
        raise ValueError(
            f"{who}: the model returned a {type(found).__name__}; expected logits, or an object "
            "that has .logits"
        )
    return None if loss is None else loss.item(), output


def is_short(value: Any) -> bool:
    """Whether a value is a tensor of numbers of fewer bits than float32."""
    return isinstance(value, Tensor) and value.is_floating_point() and value.itemsize < 4


def widened(value: Any) -> Any:
    """A value in float32, if it is short."""
    return value.float() if is_short(value) else value


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """A context in which a model is in eval(); then it is as it was, module by module."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


def plain(model: nn.Module) -> Any:
    """A context without the recipe of a model, if it has one; torch.compile may wrap it."""
    model = unwrapped(model)
    return nullcontext() if session_of(model) is None else units.full_precision(model)


def uncompiled(model: nn.Module) -> AbstractContextManager[Any]:
    """A context for hooks: what torch.compile captured of a plain model before does not run in it.

    Those graphs know nothing of hooks that came later, and torch does not check for them. A model
    under a recipe, or with a part under one, runs on in its own graphs, which do.
    """
    if any(session_of(module) is not None for module in model.modules()):
        return nullcontext()
    eager: AbstractContextManager[Any] = torch.compiler.set_stance("force_eager")
    return eager
