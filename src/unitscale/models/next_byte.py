"""Any causal language model as `model(ids, targets) -> loss` over bytes."""

from collections.abc import Mapping
from inspect import Parameter, signature
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from unitscale.models.existing import find_factory
from unitscale.models.language import BYTES

INSIDE = "model."
"""What the names of a model's parts begin with inside of `NextByte`."""


class NextByte(nn.Module):
    """A model of logits as a model of the loss, by cross-entropy with the targets.

    The same number as `transformers` computes from `labels`, whose shift the targets have already.

    Args:
        model: gives logits [batch, time, at least 256], or an object that has `.logits`, for ids
            [batch, time].
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, ids: Tensor, targets: Tensor) -> Tensor:
        """Mean cross-entropy in nats a byte.

        Raises:
            TypeError: the model returned neither logits nor an object that has them.
        """
        output = self.model(ids)
        logits = getattr(output, "logits", output)
        if not isinstance(logits, Tensor):
            raise TypeError(
                f"the model returned a {type(output).__name__}; expected logits, or an object with "
                ".logits"
            )
        return F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten())


def own_model(model: nn.Module) -> nn.Module:
    """The model that a person wrote: within `NextByte`, or this one."""
    return model.model if isinstance(model, NextByte) else model


def own_path(model: nn.Module, path: str) -> str:
    """The path of a part of `model` in the model that a person wrote."""
    return path.removeprefix(INSIDE) if isinstance(model, NextByte) else path


def build(name: str, options: Mapping[str, Any]) -> nn.Module:
    """The model of that name, called as `model(ids, targets)`.

    Raises:
        ValueError: as `find_factory`; or the factory returned something else than a model.
    """
    return as_loss(find_factory(name, options)(**options), name)


def as_loss(model: Any, name: str) -> nn.Module:
    """`model` itself if its forward needs or takes targets, else within `NextByte`.

    A forward whose second argument is called `targets` takes them; so does one that cannot be
    called without its second argument. The models of `transformers` are neither.

    Raises:
        ValueError: not a module, or one of fewer than 256 symbols.
    """
    if not isinstance(model, nn.Module):
        raise ValueError(f"{name} returned a {type(model).__name__}; expected a torch.nn.Module")
    symbols = getattr(getattr(model, "config", None), "vocab_size", BYTES)
    if isinstance(symbols, int) and symbols < BYTES:
        raise ValueError(f"{name} has {symbols} symbols; expected one for each of 256 bytes")
    parameters = list(signature(model.forward).parameters.values())
    second = parameters[1] if len(parameters) > 1 else None
    needs_targets = second is not None and (
        second.name == "targets"
        or (second.default is Parameter.empty and second.kind is Parameter.POSITIONAL_OR_KEYWORD)
    )
    return model if needs_targets else NextByte(model)
