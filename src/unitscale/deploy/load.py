"""An export read back into the evaluation that it came from."""

from dataclasses import replace
from glob import escape
from pathlib import Path

import torch
from torch import Tensor, nn

from unitscale.deploy.description import VERSION
from unitscale.deploy.export import OWN, TENSORS
from unitscale.deploy.folder import Folder, is_own, read_file, read_object
from unitscale.deploy.stored import quantized_as_described, restored
from unitscale.deploy.verify import refuse_faults
from unitscale.recipes import RECIPES
from unitscale.units import give_units, unit_scale

__all__ = ["load"]


def load(folder: str | Path, model: nn.Module | None = None) -> nn.Module:
    """The model of an export, evaluated here as it was where it was exported.

    Its weights are what the codes are worth, its layers round at the scales of the file, and
    nothing is ever measured: it is for evaluation, and has no master weights to train.

    Args:
        folder: that `export` wrote, in any format.
        model: a plain one of the architecture, for format='safetensors', which does not name it;
            it is changed in place. Of the other formats leave it out.
    Returns:
        The model, in eval().
    Raises:
        ValueError: it is no export, or has a fault (see `verify`); the model does not fit.
    """
    path = Path(folder)
    if is_own(path):
        return load_own(path, model)
    if model is not None:
        raise ValueError(f"load: {folder} names its own architecture; leave model= out")
    opened = Folder(path)
    refuse_faults(opened)
    if opened.scheme is not None:
        return quantized_as_described(opened.loaded(), opened.scheme, opened.tensors, opened.layers)
    return evaluating(opened.loaded(), opened.units())


def load_own(folder: Path, model: nn.Module | None) -> nn.Module:
    """A model whose export says nothing of its architecture."""
    if model is None:
        raise ValueError(
            f"load: {folder} is of format 'safetensors', which does not say what the model is; "
            "pass a plain one of its architecture: load(folder, model)"
        )
    if "quantized" in (content := read_object(folder / OWN)):
        restored(model, content["quantized"], folder / OWN)
        filled(model, dict(read_file(folder / TENSORS)), folder)
        return model.eval()
    layers = own_layers(folder)
    tensors = dict(read_file(folder / TENSORS))
    values = {n: x for n, x in tensors.items() if not n.endswith((".weight_scale", ".input_scale"))}
    own = model.state_dict(keep_vars=True)
    for path, (weight_log2, _) in layers.items():
        name = f"{path}.weight"
        if name not in values or name not in own:
            raise ValueError(f"load: {folder} has no {name!r}, or the model has none")
        values[name] = (values[name].float() * 2.0**weight_log2).to(own[name].dtype)
    filled(model, values, folder)
    return evaluating(model, {f"{path}.weight": units for path, units in layers.items()})


def filled(model: nn.Module, values: dict[str, Tensor], folder: Path) -> None:
    """Give a model the tensors of a file, which has each once.

    Raises:
        ValueError: they are of another model.
    """
    own = model.state_dict(keep_vars=True)
    kept = {id(own[name]) for name in values if name in own}
    missing = [name for name, value in own.items() if id(value) not in kept]
    unknown = sorted(values.keys() - own.keys())
    wrong = [n for n in values if n in own and values[n].shape != own[n].shape]
    if missing or unknown or wrong:
        raise ValueError(
            f"load: {folder} is of another model: missing {missing[:3]}, unknown {unknown[:3]}, of "
            f"another shape {wrong[:3]}"
        )
    model.load_state_dict(values, strict=False)


def own_layers(folder: Path) -> dict[str, tuple[int, int]]:
    """The units of the layers in unitscale.json.

    Raises:
        ValueError: it is damaged, or of another version.
    """
    content = read_object(folder / OWN)
    if content.get("version") != VERSION:
        raise ValueError(
            f"{folder / OWN} is of version {content.get('version')!r}; expected {VERSION}"
        )
    found = {}
    layers = content.get("layers")
    for path, units in layers.items() if isinstance(layers, dict) else ():
        pair = [units.get(key) if isinstance(units, dict) else None for key in UNITS]
        weight, x = (u if type(u) is int and abs(u) <= LARGEST else None for u in pair)
        if weight is None or x is None:
            raise ValueError(
                f"{folder / OWN}: {path!r} has the units {units!r}; expected whole numbers "
                f"{UNITS[0]} and {UNITS[1]} from -{LARGEST} to {LARGEST}"
            )
        found[path] = (weight, x)
    if not found:
        raise ValueError(f"{folder / OWN} names no layers")
    return found


UNITS = ("weight_log2", "input_log2")
LARGEST = 126


def evaluating(model: nn.Module, units: dict[str, tuple[int, int]]) -> nn.Module:
    """A plain model that rounds its layers at given units, and measures nothing."""
    others = [
        escape(path)
        for path, module in model.named_modules()
        if isinstance(module, nn.Linear) and f"{path}.weight" not in units
    ]
    recipe = replace(RECIPES["fp8-serve"], spare=(), skip=tuple(others))
    unit_scale(model.eval(), recipe, remeasure="never")
    with torch.no_grad():
        give_units(model, units)
    return model
