"""An export read back into the evaluation that it came from."""

from dataclasses import replace
from glob import escape
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from unitscale.deploy.code import CODE, INPUT_LOG2, WEIGHT_LOG2, is_sound, unit_fault
from unitscale.deploy.description import VERSION
from unitscale.deploy.export import OWN, TENSORS
from unitscale.deploy.folder import Folder, exponent_of, is_own, read_file, read_object
from unitscale.deploy.stored import quantized_as_described, restored
from unitscale.deploy.verify import refuse_faults
from unitscale.recipes import RECIPES
from unitscale.report.version import upgrade
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
    if not path.is_dir():
        raise ValueError(f"load: {folder} is no folder; expected one that `export` wrote")
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
    content = read_object(folder / OWN)
    values = dict(read_file(folder / TENSORS))
    check_own_version(folder, content)
    if "quantized" in content:
        restored(model, content["quantized"], values, folder / OWN)
        own = model.state_dict(keep_vars=True)
        fill(model, folder, own, values)
        return model.eval()
    layers = own_layers(folder, content)
    own = model.state_dict(keep_vars=True)
    dtypes = {name: getattr(value, "dtype", None) for name, value in own.items()}
    for path, units in layers.items():
        name = f"{path}.weight"
        if name not in values or name not in own:
            raise ValueError(f"load: {folder} has no {name!r}, or the model has none")
        for scale, log2 in zip((f"{path}.{s}" for s in SCALE_NAMES), units, strict=True):
            found = values.pop(scale, None)
            if found is not None and exponent_of(f"{folder / TENSORS}: {scale}", found) != log2:
                raise ValueError(
                    f"{folder}: {scale!r} is {found.tolist()}, and {OWN} says 2^{log2}"
                )
        if values[name].dtype != CODE:
            raise ValueError(f"load: {folder}: {name!r} is in {values[name].dtype}; expected codes")
        values[name] = (values[name].float() * 2.0 ** units[0]).to(dtypes[name])
    check_dtypes(folder, content.get("dtype"), layers, dtypes, values)
    fill(model, folder, own, values)
    return evaluating(model, {f"{path}.weight": units for path, units in layers.items()})


def fill(model: nn.Module, folder: Path, own: dict[str, Any], values: dict[str, Tensor]) -> None:
    """Give a model the tensors of a file, which has each once.

    Args:
        own: the model's own tensors by name.
    Raises:
        ValueError: they are of another model, by name or shape, or hold NaN; it names some.
    """
    for name, value in values.items():
        if not is_sound(value, may_be_infinite=not isinstance(own.get(name), nn.Parameter)):
            raise ValueError(f"load: {folder}: {name!r} holds NaN or infinity")
    kept = {id(own[name]) for name in values if name in own}
    missing = [name for name, value in own.items() if id(value) not in kept]
    unknown = sorted(values.keys() - own.keys())
    wrong = [n for n in values if n in own and values[n].shape != getattr(own[n], "shape", None)]
    if missing or unknown or wrong:
        raise ValueError(
            f"load: {folder} is of another model: missing {missing[:3]}, unknown {unknown[:3]}, of "
            f"another shape {wrong[:3]}"
        )
    model.load_state_dict(values, strict=False)


def check_dtypes(
    folder: Path,
    dtype: Any,
    layers: dict[str, Any],
    dtypes: dict[str, Any],
    values: dict[str, Tensor],
) -> None:
    """Refuse a model in another dtype, which would compute something else.

    Args:
        dtype: of the model that was exported, by name, of which its codes say nothing.
    Raises:
        ValueError: names the first tensor that differs.
    """
    for name, value in values.items():
        stored = str(value.dtype).removeprefix("torch.")
        if name.removesuffix(".weight") in layers:
            stored = dtype
        here = str(dtypes[name]).removeprefix("torch.")
        if stored is not None and stored != here:
            raise ValueError(
                f"load: {name!r} is in {here}, and was exported in {stored}; make the model in the "
                f"dtype of the export, as model.to(torch.{stored})"
            )


def check_own_version(folder: Path, content: dict[str, Any]) -> None:
    """Refuse a unitscale.json of another version, which may mean something else.

    Raises:
        ValueError: it is one.
    """
    if content.get("version") != VERSION:
        raise ValueError(
            f"{folder / OWN} is of version {content.get('version')!r}; expected {VERSION}"
            f"{upgrade(content.get('version'), VERSION)}"
        )


def own_layers(folder: Path, content: dict[str, Any]) -> dict[str, tuple[int, int]]:
    """The units of the layers in unitscale.json.

    Raises:
        ValueError: it is damaged, or of another version.
    """
    check_own_version(folder, content)
    found = {}
    layers = content.get("layers")
    for path, units in layers.items() if isinstance(layers, dict) else ():
        pair = [units.get(key) if isinstance(units, dict) else None for key in UNITS]
        weight, x = (u if type(u) is int else None for u in pair)
        faults = (
            ()
            if weight is None or x is None
            else (unit_fault(weight, WEIGHT_LOG2), unit_fault(x, INPUT_LOG2))
        )
        if weight is None or x is None or any(faults):
            raise ValueError(
                f"{folder / OWN}: {path!r} has the units {units!r}; expected whole numbers "
                f"{UNITS[0]} from {WEIGHT_LOG2[0]} to {WEIGHT_LOG2[1]} and {UNITS[1]} from "
                f"{INPUT_LOG2[0]} to {INPUT_LOG2[1]}"
            )
        found[path] = (weight, x)
    if not found:
        raise ValueError(f"{folder / OWN} names no layers")
    return found


UNITS = ("weight_log2", "input_log2")
SCALE_NAMES = ("weight_scale", "input_scale")


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
