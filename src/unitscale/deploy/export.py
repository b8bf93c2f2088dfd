"""A scaled model as a folder that inference servers load, in the numerics of its evaluation."""

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from unitscale import __version__
from unitscale.deploy.description import (
    Format,
    check_format,
    compressed_tensors,
    modelopt,
    own,
)
from unitscale.deploy.layer import Plan, StoredLayer, plan_of, tensors_of
from unitscale.deploy.pretrained import Exported, exported_part
from unitscale.deploy.quantized import quantized_layers
from unitscale.deploy.stored import described, plan_of_quantized
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

TOKENIZER_FILES = (
    "tokenizer*.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.*",
    "merges.txt",
    "*.model",
    "chat_template.*",
)


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
    """

    folder: Path
    format: str
    layers: int
    ignored: tuple[str, ...]
    differences: tuple[str, ...]
    bytes: int

    def __str__(self) -> str:
        lines = [
            f"{self.folder}: {self.format}, {self.layers} linear layers in FP8, "
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
    is_quantized = bool(quantized_layers(model))
    recipe = None if is_quantized else recipe_of(model, "export")
    exported = exported_part(model, any_module=format == "safetensors")
    if recipe is None:
        plan = plan_of_quantized(model, exported, format)
    else:
        plan = plan_of(model, recipe, exported)
    refuse_not_finite(exported)
    if recipe is not None or format != "safetensors":
        plan.differences += differences_of_dtype(exported)
    if plan.differences and differences == "refuse":
        found = "; ".join(plan.differences)
        raise ValueError(
            f"export: a server would not compute what this model does: {found}; "
            + "train with 'fp8-serve', or " * (not is_quantized)
            + "take differences='report' to export it all the same"
        )
    save_tokenizer = tokenizer_files(tokenizer)
    with new_folder(target) as temporary:
        if format == "safetensors":
            write_own(exported.module, plan, temporary)
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
    )


def refuse_not_finite(exported: Exported) -> None:
    """Refuse parameters that hold NaN or infinity, those that are not rounded too.

    Raises:
        ValueError: names the first.
    """
    for name, value in exported.module.named_parameters():
        if value.is_floating_point() and not bool(torch.isfinite(value).all()):
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


def write_own(module: nn.Module, plan: Plan, folder: Path) -> None:
    """Any module: one file of tensors, and the units beside it."""
    if plan.scheme is not None:
        write_quantized(module, plan, folder)
        return
    tensors = stored_tensors(module, plan)
    seen: dict[int, str] = {}
    kept = {}
    for name, value in module.state_dict(keep_vars=True).items():
        if seen.setdefault(id(value), name) == name or name in plan_tensors(plan):
            kept[name] = tensors.pop(name)  # of tied weights the first name is kept
    scales = {name for name in tensors if name.endswith(("weight_scale", "input_scale"))}
    kept |= {name: tensors[name] for name in scales & plan_tensors(plan)}
    kept = {name: value.detach().cpu().contiguous().clone() for name, value in kept.items()}
    save_file(kept, folder / TENSORS, {"format": "pt"})
    write_json(folder / OWN, own(plan, __version__))


def write_quantized(module: nn.Module, plan: Plan, folder: Path) -> None:
    """A quantized module: its own state, and beside it what its layers are."""
    seen: dict[int, str] = {}
    kept = {
        name: value.detach().cpu().contiguous().clone()
        for name, value in module.state_dict(keep_vars=True).items()
        if seen.setdefault(id(value), name) == name
    }
    save_file(kept, folder / TENSORS, {"format": "pt"})
    write_json(folder / OWN, own(plan, __version__) | {"quantized": described(plan)})


def plan_tensors(plan: Plan) -> set[str]:
    """The names of the tensors that stand for the layers."""
    return {name for layer in plan.layers for name in tensors_of(layer)}


def stored_tensors(module: nn.Module, plan: Plan) -> dict[str, Tensor]:
    """All tensors of a module, those of its layers as codes and scales."""
    tensors: dict[str, Tensor] = dict(module.state_dict())
    for layer in plan.layers:
        if isinstance(layer, StoredLayer):
            for name in layer.module._buffers:
                tensors.pop(f"{layer.path}.{name}", None)
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
    before = {name: getattr(config, name, None) for name in ("dtype", "architectures")}
    shows_progress = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        module.save_pretrained(
            folder, state_dict=stored_tensors(module, plan), max_shard_size=max_shard_size
        )
    finally:
        for name, value in before.items():
            setattr(config, name, value)
        if shows_progress:
            logging.enable_progress_bar()
    content = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    names = [name for name, _ in module.named_parameters()]
    if plan.scheme is not None:
        content[MARK] = plan.scheme.name
    if format == "modelopt":
        content["quantization_config"], beside = modelopt(plan, names, __version__)
        write_json(folder / BESIDE, beside)
    else:
        content["quantization_config"] = compressed_tensors(plan, names)
    write_json(folder / CONFIG, content)


def write_json(path: Path, content: Any) -> None:
    """Write strict JSON."""
    path.write_text(json.dumps(content, indent=2, allow_nan=False) + "\n", encoding="utf-8")


def tokenizer_files(tokenizer: Any) -> Callable[[Path], object]:
    """What writes the files of a tokenizer into a folder.

    Raises:
        ValueError: a folder without any. TypeError: neither a tokenizer nor a folder.
    """
    if tokenizer is None:
        return lambda folder: None
    if callable(save := getattr(tokenizer, "save_pretrained", None)):
        return lambda folder: save(folder)
    if not isinstance(tokenizer, str | Path):
        raise TypeError(
            f"export: tokenizer is a {type(tokenizer).__name__}; expected one of transformers, or "
            "a folder with its files"
        )
    source = Path(tokenizer)
    files = [file for pattern in TOKENIZER_FILES for file in sorted(source.glob(pattern))]
    if not files:
        raise ValueError(f"export: {source} has no files of a tokenizer, as tokenizer.json")
    return lambda folder: [shutil.copy(file, folder) for file in files]


def check_folder(folder: Path) -> None:
    """Refuse a folder that holds something.

    Raises:
        ValueError: it is a file, or is not empty.
    """
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"export: {folder} is a file; expected a new folder")
    if folder.is_dir() and any(folder.iterdir()):
        raise ValueError(f"export: {folder} is not empty; choose a new folder")


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """A temporary folder beside `folder`: renamed to it at the end, removed after an error.

    Raises:
        ValueError: `folder` is a file, or is not empty. OSError: it cannot be written.
    """
    check_folder(folder)
    folder = folder.absolute()
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        yield temporary
        for file in temporary.rglob("*"):
            if file.is_file():
                with file.open("rb") as opened:
                    os.fsync(opened.fileno())  # else a crash could leave names with no content
        temporary.chmod(0o777 & ~umask())  # a temporary folder is for its owner alone
        temporary.replace(folder)  # over an empty folder, if there is one
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def umask() -> int:
    """The permissions that new files of this process lack."""
    mask = os.umask(0)
    os.umask(mask)
    return mask
