"""The model of `transformers` in a model: servers load nothing else."""

import copy
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

__all__ = ["Exported", "exported_part", "is_pretrained", "unlike_stock"]


@dataclass(frozen=True)
class Exported:
    """The part of a model that is written, and its path in there ("": the whole)."""

    module: nn.Module
    path: str = ""

    def within(self, path: str) -> str:
        """A module's path in this part.

        Raises:
            ValueError: it is outside.
        """
        if not self.path:
            return path
        start = f"{self.path}."
        if not path.startswith(start):
            raise ValueError(
                f"export: {path!r} is rounded and is outside of {self.path!r}, the model of "
                "transformers; servers would not have it"
            )
        return path.removeprefix(start)

    def outside(self, path: str) -> str:
        """The inverse of `within`: the path in the whole model of one in this part."""
        return ".".join(name for name in (self.path, path) if name)

    @property
    def dtype(self) -> torch.dtype:
        """That of its parameters."""
        return next((p.dtype for p in self.module.parameters()), torch.float32)


def is_pretrained(module: nn.Module) -> bool:
    """Whether a module is a model of `transformers`, which need not be imported for that."""
    return any(
        kind.__name__ == "PreTrainedModel" and kind.__module__.startswith("transformers.")
        for kind in type(module).__mro__
    )


def exported_part(model: nn.Module, *, any_module: bool) -> Exported:
    """What is written of a model: the one of `transformers` in it, or the whole.

    Args:
        any_module: whether the format takes any module.
    Raises:
        ValueError: the format is for models of `transformers`, and there is none, or are several;
            or its parameters are spread over processes.
    """
    if any_module:
        found = Exported(model)
    else:
        outer = [
            (path, module)
            for path, module in model.named_modules()
            if is_pretrained(module) and not is_inside(model, path)
        ]
        if len(outer) != 1:
            count = f"{len(outer)} models" if outer else "no model"
            raise ValueError(
                f"export: this {type(model).__name__} has {count} of transformers inside; servers "
                "load one: format='safetensors' writes any module for unitscale.deploy.load"
            )
        found = Exported(outer[0][1], outer[0][0])
    if getattr(found.module, "hf_quantizer", None) is not None:
        raise ValueError(
            "export: the model was loaded from quantized files; export one with full weights"
        )
    if any(type(p).__name__ == "DTensor" for p in found.module.parameters()):
        raise ValueError(
            "export: the parameters are spread over processes; load a full checkpoint into one "
            "process, and export there"
        )
    return found


def is_inside(model: nn.Module, path: str) -> bool:
    """Whether a module around the one at a path is a model of `transformers`."""
    names = path.split(".") if path else []
    around = (".".join(names[:count]) for count in range(len(names)))
    return any(is_pretrained(model.get_submodule(outer)) for outer in around)


def unlike_stock(module: Any, but: Collection[str] = ()) -> Iterator[str]:
    """In what a model is another than the one that a loader makes of its configuration, in words.

    A class of one's own, or tensors that were added to or taken from a model: a loader takes the
    class that the configuration names, drops what that has no place for, and draws what is missing.

    Args:
        but: paths of modules that hold their tensors otherwise, as quantized layers do.
    """
    import transformers

    kind = type(module)
    has_code = bool(
        getattr(module.config, "auto_map", None)
    )  # written beside, for loaders that ask
    if getattr(transformers, kind.__name__, None) is not kind and not has_code:
        yield (
            f"{kind.__name__} is no class of transformers, so that loaders take another one; "
            "register_for_auto_class() has its code written beside"
        )
        return
    try:
        with torch.device("meta"):
            stock = kind(copy.deepcopy(module.config))
    except Exception:  # one that cannot be made so is not compared
        return
    own, expected = (
        {
            name: tuple(value.shape)
            for name, value in model.state_dict().items()
            if name.rpartition(".")[0] not in but
        }
        for model in (module, stock)
    )
    if unlike := sorted(set(own.items()) ^ set(expected.items())):
        name = unlike[0][0]
        here, there = own.get(name, "not there"), expected.get(name, "not there")
        yield (
            f"{name!r} is {here} in this model, and {there} in the one that loaders make of its "
            "configuration"
        )
