"""What a model gives for a batch, in eval() and without its recipe."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any

from torch import Tensor, nn

from unitscale import units
from unitscale.units.forward import session_of

__all__ = ["called", "evaluating", "plain"]


def called(model: nn.Module, batch: Any, who: str) -> tuple[float | None, Tensor]:
    """The loss of a call, if the model gives one, and its output; `who` asks, for the error."""
    if isinstance(batch, Mapping):
        found = model(**batch)
    else:
        found = model(*batch) if isinstance(batch, tuple | list) else model(batch)
    loss = getattr(found, "loss", None)
    output = getattr(found, "logits", found)
    if not isinstance(output, Tensor):
        raise ValueError(
            f"{who}: the model returned a {type(found).__name__}; expected logits, or an object "
            "that has .logits"
        )
    return None if loss is None else loss.item(), output


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
    """A context without the recipe of a model, if it has one."""
    return nullcontext() if session_of(model) is None else units.full_precision(model)
