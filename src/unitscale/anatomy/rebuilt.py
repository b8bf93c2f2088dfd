"""A model of another size beside the old one: made, and filled with values."""

import copy
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["is_tied", "remade", "undrawn"]


def remade(
    model: nn.Module,
    config: Any,
    names: Iterable[str],
    value: Callable[[str], Tensor],
    origin: Callable[[str], str],
    who: str,
) -> nn.Module:
    """A model by another configuration, of given values; the old one stays as it is.

    It has the class, dtypes, device, mode and `requires_grad` of the old one.

    Args:
        names: of its parameters.
        value: of a name: what the parameter holds, of its shape and dtype.
        origin: of a name: the old parameter that it comes from.
        who: asks, for the errors.
    Raises:
        ValueError: weights are shared in a way that no configuration says.
    """
    found = rebuilt(model, config)
    own = dict(found.named_parameters())
    if strange := sorted(own.keys() ^ set(names)):
        raise ValueError(
            f"{who}: {strange[0]!r} is {'not ' if strange[0] in own else ''}a weight of its own in "
            f"this {type(model).__name__}, unlike in one of its configuration; share weights as "
            "transformers does (tie_word_embeddings), or none"
        )
    for name, parameter in own.items():
        fill(parameter, value(name), name)
        parameter.requires_grad_(model.get_parameter(origin(name)).requires_grad)
    copy_buffers(model, found)
    found.train(model.training)
    return found


def rebuilt(model: Any, config: Any) -> nn.Module:
    """A model of the class and device of another one, by its own configuration.

    It holds any values, and draws no random numbers of others. Its dtype is that of the other
    one's first parameter; `fill` and `copy_buffers` give each tensor the dtype of what it holds.
    """
    first, reads = next(model.parameters()), getattr(model, "get_output_embeddings", None)
    if reads is not None and reads() is not None:
        config.tie_word_embeddings = is_tied(model)  # which may have been changed by hand
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
def fill(parameter: nn.Parameter, value: Tensor, name: str) -> None:
    """Put a value into a parameter, in its dtype."""
    assert parameter.shape == value.shape, (name, parameter.shape, value.shape)
    parameter.data = parameter.data.to(value.dtype)
    parameter.copy_(value)


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
