"""Layers of a model replaced by others, for good or for a while."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import nn

from unitscale.deploy.quantized import QuantizedLayer

__all__ = ["replace_layers", "swapped"]


@contextmanager
def swapped(
    model: nn.Module, layers: Mapping[str, nn.Module], made: Mapping[str, nn.Module]
) -> Iterator[None]:
    """A context in which a model has other layers."""
    before = [
        (parent, parent.use_nested_tensor)
        for parent in model.modules()
        if isinstance(parent, nn.TransformerEncoder)
    ]
    places = replace_layers(model, layers, made)
    try:
        yield
    finally:
        for parent, name, child in places:
            setattr(parent, name, child)
        for encoder, nested in before:
            encoder.use_nested_tensor = nested
        for parent in model.modules():
            hooks = parent._forward_pre_hooks
            for key in [key for key, hook in hooks.items() if hook is nothing]:
                del hooks[key]


def replace_layers(
    model: nn.Module, layers: Mapping[str, nn.Module], made: Mapping[str, nn.Module]
) -> list[tuple[nn.Module, str, nn.Module]]:
    """Put layers in the place of others, wherever a model has these; hooks are shared with them.

    Returns:
        Where each of the others was: parent, name and layer.
    """
    stands = {id(layers[path]): layer for path, layer in made.items()}
    for path, layer in made.items():
        for name in HOOKS:
            # The same dict, and no copy of it: the handle of a hook must remove it here too.
            setattr(layer, name, getattr(layers[path], name))
    places = [
        (parent, name, child)
        for parent in model.modules()
        for name, child in parent._modules.items()
        if child is not None and id(child) in stands
    ]
    for parent, name, child in places:
        setattr(parent, name, stands[id(child)])
    for parent in model.modules():
        if isinstance(parent, nn.TransformerEncoderLayer):
            keep_from_fast_path(parent)
        if isinstance(parent, nn.TransformerEncoder):
            parent.use_nested_tensor = False
    return places


HOOKS = (
    *("_forward_hooks", "_forward_hooks_with_kwargs", "_forward_hooks_always_called"),
    *("_forward_pre_hooks", "_forward_pre_hooks_with_kwargs"),
    *("_backward_hooks", "_backward_pre_hooks", "_is_full_backward_hook"),
)


def keep_from_fast_path(layer: nn.TransformerEncoderLayer) -> None:
    """Have an encoder layer call its parts: torch's fast path multiplies with weights itself.

    It is not taken where a module inside has a hook (torch 2.13, `why_not_sparsity_fast_path`).
    """
    if any(isinstance(part, QuantizedLayer) for part in layer.modules()) and not any(
        hook is nothing for hook in layer._forward_pre_hooks.values()
    ):
        layer.register_forward_pre_hook(nothing)


def nothing(module: nn.Module, args: Any) -> None:
    """A hook."""
