"""A model of another size beside the old one: made, and filled with values."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["copy_buffers", "fill", "is_tied", "rebuilt", "undrawn"]


def rebuilt(model: Any, config: Any) -> nn.Module:
    """A model of the class and device of another one, by its own configuration.

    It holds any values, and draws no random numbers of others. Its dtype is that of the other
    one's first parameter; `fill` and `copy_buffers` give each tensor the dtype of what it holds.
    """
    first = next(model.parameters())
    with undrawn():
        found: nn.Module = type(model)(config)
    found = found.to(device=first.device, dtype=first.dtype)
    if getattr(model, "generation_config", None) is not None:
        found.generation_config = copy.deepcopy(model.generation_config)
    return found


@contextmanager
def undrawn() -> Iterator[None]:
    """A context after which torch's generator of the CPU is where it was."""
    state = torch.get_rng_state()
    try:
        yield
    finally:
        torch.set_rng_state(state)


@torch.no_grad()
def fill(model: nn.Module, values: Iterator[tuple[str, Tensor]]) -> None:
    """Put values into all parameters of a model, in their dtypes; each has its shape."""
    missing = {name for name, _ in model.named_parameters()}
    for name, value in values:
        parameter = model.get_parameter(name)
        assert parameter.shape == value.shape, (name, parameter.shape, value.shape)
        parameter.data = parameter.data.to(value.dtype)
        parameter.copy_(value)
        missing.discard(name)
    assert not missing, missing


@torch.no_grad()
def copy_buffers(model: nn.Module, other: nn.Module) -> None:
    """Give another model the dtypes of this one's buffers, and those that have the same shape."""
    new = dict(other.named_buffers())
    for name, buffer in model.named_buffers():
        if name in new:
            new[name].data = new[name].data.to(buffer.dtype)
            if new[name].shape == buffer.shape:
                new[name].copy_(buffer)


def is_tied(model: Any) -> bool:
    """Whether the read-out of a model is its table of embeddings."""
    out = model.get_output_embeddings()
    return out is not None and out.weight is model.get_input_embeddings().weight
