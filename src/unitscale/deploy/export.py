"""A scaled model as a folder that inference servers load, in the numerics of its evaluation."""

import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn

from unitscale import __version__
from unitscale.deploy.code import is_sound
from unitscale.deploy.description import (
    Format,
    check_format,
    compressed_tensors,
    modelopt,
    own,
)
from unitscale.deploy.layer import Plan, StoredLayer, plan_of, tensors_of
from unitscale.deploy.pretrained import Exported, exported_part, unlike_stock
from unitscale.deploy.quantized import quantized_layers
from unitscale.deploy.stored import described, plan_of_quantized
from unitscale.deploy.tokenizer import tokenizer_files
from unitscale.report.unfinished import unfinished_folder
from unitscale.units import recipe_of

__all__ = ["Export", "export"]

CONFIG, BESIDE, OWN, TENSORS = (
    "config.json",
    "hf_quant_config.json",
    "unitscale.json",
    "model.safetensors",
)
MARK = "unitscale_recipe"
"""In config.json of a quantized model: its recipe, whose scales are any numbers."""


@dataclass(frozen=True, kw_only=True)
class Export:
    """What was written.

    Args:
        folder: where.
        format: what the files are.
        layers: how many linear layers are stored in eight bits.
        ignored: the linear layers that are not, by path.
        differences: what a loader computes otherwise than the model's evaluation; none, unless
            they were asked for.
        bytes: of all files.
        recipe: what the layers are stored in: "FP8" at units, or the recipe of `quantize`.
    """

    folder: Path
    format: str
    layers: int
    ignored: tuple[str, ...]
    differences: tuple[str, ...]
    bytes: int
    recipe: str = "FP8"

    def __str__(self) -> str:
        lines = [
            f"{self.folder}: {self.format}, {self.layers} linear layers in {self.recipe}, "
            f"{len(self.ignored)} in full precision, {self.bytes:,} bytes"
        ]
        return "\n".join([*lines, *(f"  differs: {what}" for what in self.differences)])


def export(
    model: nn.Module,
    folder: str | Path,
    format: Format = "compressed-tensors",
    *,
    tokenizer: Any = None,
    differences: Literal["refuse", "report"] = "refuse",
    max_shard_size: str | int = "5GB",
) -> Export:
    """Write a scaled or quantized model as a folder that servers load: FP8 weights and scales.

    A stock loader computes the logits of the model's evaluation, on a CPU to the bit, in FP32 and
    in BF16: the scales in the file are the units, which are powers of two. Nothing is calibrated.
    The export is for serving: it has neither master weights nor an optimizer, and its weights are
    the rounded ones. Keep the training checkpoint and the units (`us.save_units`).

    Args:
        model: scaled, best by "fp8-serve" from the start of training, and evaluated at least once
            since; or quantized, see `quantize`. Of a wrapper the model of `transformers` in it is
            written.
        folder: new or empty.
        format: "compressed-tensors" for transformers, vLLM and SGLang; "modelopt" the same tensors
            as NVIDIA's tools name them; "safetensors" any module, for `load`.
        tokenizer: of transformers, or a folder that has its files; both are written as they are.
        differences: "report" writes what servers compute otherwise than the evaluation does, and
            lists it in the result.
        max_shard_size: of one file of a model of `transformers`.
    Returns:
        What was written.
    Raises:
        ValueError: the model cannot be served as it is evaluated, or the folder is not empty.
            Nothing was written. OSError: the folder cannot be written.
    Source: design, section 7 (`scale` recovers); the names are those of compressed-tensors 0.20.
    """
    target = Path(folder)
    check_format(format)
    check_folder(target)
    if differences not in ("refuse", "report"):
        raise ValueError(f"export: differences is {differences!r}; expected 'refuse' or 'report'")
    check_shard_size(max_shard_size)
    is_quantized = bool(quantized_layers(model))
    recipe = None if is_quantized else recipe_of(model, "export")
    exported = exported_part(model, any_module=format == "safetensors")
    if recipe is None:
        plan = plan_of_quantized(model, exported, format)
    else:
        plan = plan_of(model, recipe, exported)
    refuse_not_finite(exported)
    refuse_names(exported, plan, any_name=format == "safetensors")
    if recipe is not None or format != "safetensors":
        plan.differences += differences_of_dtype(exported)
    if format != "safetensors":
        plan.differences += unlike_stock(
            exported.module, {x.path for x in plan.layers if isinstance(x, StoredLayer)}
        )
    if plan.differences and differences == "refuse":
        found = "; ".join(plan.differences)
        raise ValueError(
            f"export: what is loaded from the folder would not compute what this model does: "
            f"{found}; "
            + "train with 'fp8-serve', or " * (not is_quantized)
            + "take differences='report' to export it all the same"
        )
    save_tokenizer = tokenizer_files(tokenizer)
    with new_folder(target) as temporary:
        if format == "safetensors":
            write_own(exported, plan, temporary)
        else:
            write_pretrained(exported.module, plan, format, temporary, max_shard_size)
        save_tokenizer(temporary)
    return Export(
        folder=target,
        format=format,
        layers=len(plan.layers),
        ignored=tuple(plan.ignored),
        differences=tuple(plan.differences),
        bytes=sum(file.stat().st_size for file in target.rglob("*") if file.is_file()),
        recipe="FP8" if plan.scheme is None else plan.scheme.name,
    )


def check_shard_size(size: str | int) -> None:
    """Refuse what is no size of a file.

    Raises:
        ValueError: it is none.
    """
    is_text = isinstance(size, str) and re.fullmatch(r"[1-9][0-9]*[KMGT]i?B", size, re.IGNORECASE)
    if not is_text and not (type(size) is int and size > 0):
        raise ValueError(
            f"export: max_shard_size is {size!r}; expected bytes, or a text such as '5GB'"
        )


def refuse_names(exported: Exported, plan: Plan, *, any_name: bool) -> None:
    """Refuse what a file of tensors cannot hold: other values, and names that are those of scales.

    Args:
        any_name: whether only the scales of this very model count, or all that look like one.
    Raises:
        ValueError: names the first.
    """
    scales = plan_tensors(plan)
    for name, value in exported.module.state_dict().items():
        if name in own_tensors(plan):
            continue
        if not isinstance(value, Tensor):
            raise ValueError(
                f"export: {name!r} in the model's state is a {type(value).__name__}; a file of "
                "tensors holds tensors alone: have get_extra_state() return one"
            )
        is_scale = name.rpartition(".")[2] in ("weight_scale", "input_scale")
        if is_scale and (name in scales or not any_name):
            raise ValueError(
                f"export: the model has {name!r} of its own, and a reader takes that name for the "
                "scale of a layer; rename it"
            )


def own_tensors(plan: Plan) -> set[str]:
    """The names of what quantized layers hold in the model's own state."""
    stored = (layer for layer in plan.layers if isinstance(layer, StoredLayer))
    return {f"{layer.path}.{name}" for layer in stored for name in layer.module.own_names}


def refuse_not_finite(exported: Exported) -> None:
    """Refuse tensors that hold NaN or infinity, those that are not rounded too.

    Raises:
        ValueError: names the first.
    """
    for name, value in exported.module.state_dict(keep_vars=True).items():
        is_buffer = not isinstance(value, nn.Parameter)
        if isinstance(value, Tensor) and not is_sound(value, may_be_infinite=is_buffer):
            raise ValueError(
                f"export: {name!r} holds NaN or infinity; restore an earlier checkpoint"
            )


def differences_of_dtype(exported: Exported) -> Iterator[str]:
    """What a dtype makes of a model that a loader does not make of it."""
    dtypes = {p.dtype for p in exported.module.parameters() if p.is_floating_point()}
    if len(dtypes) > 1:
        names = ", ".join(sorted(map(str, dtypes)))
        yield f"its parameters are in {names}, and a loader holds all of them in one dtype"
    elif exported.dtype not in (torch.float32, torch.bfloat16):
        why = ", where dividing by a unit is not exact near zero" * (
            exported.dtype == torch.float16
        )
        yield f"it is in {exported.dtype}{why}; export it in bfloat16 or float32"
    for name, buffer in exported.module.named_buffers():
        if name.endswith("inv_freq") and buffer.dtype in (torch.bfloat16, torch.float16):
            yield (
                f"{name!r} is {buffer.dtype}, and a loader computes it in float32; make the model "
                "in its dtype (dtype=torch.bfloat16) instead of converting it"
            )
            return


def write_own(exported: Exported, plan: Plan, folder: Path) -> None:
    """Any module: one file of tensors, and the units beside it."""
    module = exported.module
    if plan.scheme is not None:
        write_quantized(exported, plan, folder)
        return
    tensors = stored_tensors(module, plan)
    seen: dict[int, str] = {}
    kept = {name: tensors[name] for name in plan_tensors(plan)}
    for name, value in module.state_dict(keep_vars=True).items():
        if seen.setdefault(id(value), name) == name:
            kept[name] = tensors[name]  # of tied weights the first name is kept
    kept = {name: value.detach().cpu().contiguous().clone() for name, value in kept.items()}
    save_file(kept, folder / TENSORS, {"format": "pt"})
    write_json(folder / OWN, own(plan, exported.dtype, __version__))


def write_quantized(exported: Exported, plan: Plan, folder: Path) -> None:
    """A quantized module: its own state, and beside it what its layers are."""
    seen: dict[int, str] = {}
    kept = {
        name: value.detach().cpu().contiguous().clone()
        for name, value in exported.module.state_dict(keep_vars=True).items()
        if seen.setdefault(id(value), name) == name
    }
    save_file(kept, folder / TENSORS, {"format": "pt"})
    write_json(
        folder / OWN, own(plan, exported.dtype, __version__) | {"quantized": described(plan)}
    )


def plan_tensors(plan: Plan) -> set[str]:
    """The names of the tensors that stand for the layers."""
    return {name for layer in plan.layers for name in tensors_of(layer)}


def stored_tensors(module: nn.Module, plan: Plan) -> dict[str, Tensor]:
    """All tensors of a module, those of its layers as codes and scales."""
    tensors: dict[str, Tensor] = dict(module.state_dict())
    for name in own_tensors(plan):
        tensors.pop(name, None)
    for layer in plan.layers:
        tensors |= tensors_of(layer)
    return tensors


def write_pretrained(
    module: Any, plan: Plan, format: str, folder: Path, max_shard_size: str | int
) -> None:
    """A model of transformers: its own files, with codes, scales and a description of them.

    Its own `save_pretrained` gives experts their names on disk, leaves out tied weights, and
    splits files. The attributes that it sets on the model's configuration are put back.
    """
    from transformers.utils import logging

    config = module.config
    before = {name: config.__dict__[name] for name in CHANGED if name in config.__dict__}
    names = [name for name, _ in module.named_parameters()]
    beside = None
    if format == "modelopt":
        quantization, beside = modelopt(plan, names, __version__)
    else:
        quantization = compressed_tensors(plan, names)
    shows_progress = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        # Before a weight is written: without it a loader takes codes for weights.
        config.quantization_config = quantization
        if plan.scheme is not None:
            setattr(config, MARK, plan.scheme.name)
        module.save_pretrained(
            folder, state_dict=stored_tensors(module, plan), max_shard_size=max_shard_size
        )
    except (ValueError, TypeError) as error:  # of a configuration, or of one of generation
        reason = " ".join(str(error).split())
        raise ValueError(
            f"export: the save_pretrained of {type(module).__name__} fails: {reason[:300]}"
        ) from error
    finally:
        for name in CHANGED:
            config.__dict__.pop(name, None)
        config.__dict__.update(before)
        if shows_progress:
            logging.enable_progress_bar()
    if beside is not None:
        write_json(folder / BESIDE, beside)
    content = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    if content.get("quantization_config") != quantization:
        raise ValueError(
            f"export: the save_pretrained of {type(module).__name__} wrote no quantization_config; "
            "format='safetensors' writes any module"
        )


CHANGED = ("dtype", "architectures", "quantization_config", MARK)
"""What is set on the configuration of a model while it is saved."""


def write_json(path: Path, content: Any) -> None:
    """Write strict JSON."""
    path.write_text(json.dumps(content, indent=2, allow_nan=False) + "\n", encoding="utf-8")


def check_folder(folder: Path, who: str = "export") -> None:
    """Refuse a folder that holds something, or that cannot be made.

    Raises:
        ValueError: it, or one that it is to be in, is a file; it is not empty. PermissionError: its
            place cannot be written.
    """
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{who}: {folder} is a file; expected a new folder")
    if folder.is_dir() and any(folder.iterdir()):
        raise ValueError(f"{who}: {folder} is not empty; choose a new folder")
    place = next(outer for outer in folder.resolve().parents if outer.exists())
    if not place.is_dir():
        raise ValueError(f"{who}: {folder} is to be inside of {place}, which is a file")
    if not os.access(place, os.W_OK | os.X_OK):
        raise PermissionError(f"{who}: {place} cannot be written; choose another folder")


@contextmanager
def new_folder(folder: Path, who: str = "export") -> Iterator[Path]:
    """A temporary folder beside `folder`: renamed to it at the end, removed after an error.

    What a process that was killed has left of the same folder is removed, see `unfinished_folder`.

    Raises:
        ValueError: `folder` is a file, or is not empty. OSError: it cannot be written.
    """
    check_folder(folder, who)
    folder = folder.resolve()  # a link stays, and what it points to is written
    folder.parent.mkdir(parents=True, exist_ok=True)
    try:
        with unfinished_folder(folder) as temporary:
            yield temporary
            for file in temporary.rglob("*"):
                if file.is_file():
                    with file.open("rb") as opened:
                        os.fsync(opened.fileno())  # else a crash could leave names with no content
            temporary.chmod(0o777 & ~umask())  # a temporary folder is for its owner alone
            temporary.replace(folder)  # over an empty folder, if there is one
    except SafetensorError as error:  # a disk that is full is no OSError there
        raise OSError(f"{who}: {folder} cannot be written: {error}") from None


def umask() -> int:
    """The permissions that new files of this process lack."""
    mask = os.umask(0)
    os.umask(mask)
    return mask
