"""Which layers of a model are quantized, and why the others are not."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import ParametrizationList, is_parametrized

from unitscale.deploy.quantized import quantized_layers, why_not
from unitscale.deploy.scheme import Scheme
from unitscale.units.forward import session_of

__all__ = ["Plan", "plan_of"]


@dataclass(frozen=True)
class Plan:
    """What is to be quantized.

    Args:
        layers: by path.
        kept: why other modules with a matrix keep full precision, by path.
    """

    layers: dict[str, nn.Module]
    kept: dict[str, str]


def plan_of(
    model: nn.Module, scheme: Scheme, skip: Sequence[str], spare: Sequence[str] | None
) -> Plan:
    """The layers to quantize.

    Raises:
        TypeError: no module, or patterns that are none. ValueError: the model is quantized already;
            a pattern matches nothing; no layer is left; a weight holds NaN.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"quantize: got {type(model).__name__}; expected a torch.nn.Module")
    skip = patterns_of("skip", skip)
    spare = scheme.spare if spare is None else patterns_of("spare", spare)
    if quantized_layers(model):
        raise ValueError(
            "quantize: the model is quantized already; quantize the one that it was made of"
        )
    layers: dict[str, nn.Module] = {}
    kept: dict[str, str] = {}
    used: set[str] = set()
    for path, module in model.named_modules():
        if module is not model and session_of(module) is not None:
            raise ValueError(f"quantize: {path!r} is scaled alone; call us.unscale on it first")
        if isinstance(module, ParametrizationList):
            continue  # a part of the layer around it
        owned = (p for p in module._parameters.values() if p is not None)
        is_made = is_parametrized(module)
        if isinstance(module, nn.Embedding) or not (is_made or any(p.dim() >= 2 for p in owned)):
            continue
        hits = {pattern for pattern in (*skip, *scheme.skip) if is_inside(path, pattern)}
        used |= hits
        pattern = next((p for p in spare if is_inside(path, p)), None)
        if hits:
            kept[path] = f"skip={min(hits)!r}"
        elif pattern is not None:
            kept[path] = f"spare: {pattern!r}"
        elif is_of_attention(model, path):
            kept[path] = "nn.MultiheadAttention multiplies with its weights itself"
        elif reason := why_not(module, scheme):
            kept[path] = reason
        elif path == "":
            raise ValueError(
                "quantize: the model is itself the layer, which cannot be replaced in place; put "
                "it into nn.Sequential"
            )
        elif path.rpartition(".")[2] == "_orig_mod":
            raise ValueError(
                f"quantize: {path!r} is wrapped alone by torch.compile, which would go on calling "
                "it in full precision; put the layer itself back, or compile it in place: "
                "module.compile()"
            )
        else:
            layers[path] = module
    if unused := [pattern for pattern in skip if pattern not in used]:
        raise ValueError(
            f"quantize: skip={unused[0]!r} matches no layer; the layers are "
            f"{', '.join([*layers, *kept][:4])} and so on"
        )
    if not layers:
        found = "; ".join(f"{path}: {why}" for path, why in list(kept.items())[:3])
        raise ValueError(
            f"quantize: this {type(model).__name__} has no layer to quantize: "
            f"{found or 'no module of it has a matrix'}"
        )
    for path, module in layers.items():
        weight = module.weight
        assert isinstance(weight, Tensor)
        if type(weight).__name__ == "DTensor" or weight.is_meta:
            where = "has no memory yet" if weight.is_meta else "is spread over processes"
            raise ValueError(
                f"quantize: the weight of {path!r} {where}; load a full checkpoint into one "
                "process, and quantize there"
            )
        if not bool(torch.isfinite(weight).all()):
            raise ValueError(
                f"quantize: the weight of {path!r} holds NaN or infinity; restore an earlier "
                "checkpoint"
            )
    return Plan(layers, kept)


def patterns_of(name: str, given: Any) -> tuple[str, ...]:
    """Patterns of module paths; a single one may stand for itself.

    Raises:
        TypeError: it is no text, or holds something else.
    """
    found = (given,) if isinstance(given, str) or not isinstance(given, Iterable) else tuple(given)
    if wrong := [pattern for pattern in found if not isinstance(pattern, str)]:
        raise TypeError(
            f"quantize: {name} has {wrong[0]!r}; expected patterns of paths, as '*.down_proj'"
        )
    return found


def is_inside(path: str, pattern: str) -> bool:
    """Whether a pattern matches a module or one around it."""
    names = path.split(".")
    return any(fnmatchcase(".".join(names[:count]), pattern) for count in range(1, len(names) + 1))


def is_of_attention(model: nn.Module, path: str) -> bool:
    """Whether a module is inside of an nn.MultiheadAttention, or is one."""
    names = path.split(".")
    around = (".".join(names[:count]) for count in range(len(names) + 1))
    return any(isinstance(model.get_submodule(outer), nn.MultiheadAttention) for outer in around)
