"""An export checked by reading it: what a loader reports, at best, as a missing key.

Codes that a loader takes for values are 50 times too large, a lost scale makes NaN, and a head that
no one ignored is rounded; each loads without an error.
"""

import re
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import torch
from torch import nn

from unitscale.deploy.code import is_sound
from unitscale.deploy.description import file_format, operands
from unitscale.deploy.export import BESIDE, CONFIG
from unitscale.deploy.folder import SCALES, Folder, exponent_of, is_own, read_object
from unitscale.deploy.scheme import Scheme

__all__ = ["refuse_faults", "verify"]

OPERANDS = ("weights", "input_activations")
METHODS = ("compressed-tensors", "modelopt")


def verify(folder: str | Path) -> None:
    """Refuse an export that a stock loader would load wrongly.

    Raises:
        ValueError: names every fault: of the configuration, a scale, a layer that is neither
            quantized nor ignored, a tensor that holds NaN or infinity, or is of another dtype or
            shape than the configuration says; where there is none of these, the tensors that are
            missing. Also a folder that is no export, or one of format='safetensors'.
    """
    if is_own(Path(folder)):
        raise ValueError(
            f"verify: {folder} is of format 'safetensors', which no stock loader reads; "
            "unitscale.deploy.load(folder, model) checks it"
        )
    found = Folder(folder)
    refuse_faults(found)
    found.loaded()


def refuse_faults(folder: Folder) -> None:
    """`verify` of one that is read already."""
    if faults := list(faults_of(folder)):
        raise ValueError(f"{folder.path}: {'; '.join(faults)}")


def faults_of(folder: Folder) -> Iterator[str]:
    """What is wrong with an export, in words."""
    config = folder.quantization
    method = config.get("quant_method")
    if method not in METHODS:
        yield (
            f"quant_method is {method!r}; expected 'compressed-tensors' or 'modelopt': with "
            "another one a loader takes codes for weights"
        )
        return
    if method == "compressed-tensors":
        yield from faults_of_description(config, folder.scheme)
    else:
        yield from faults_beside(folder)
    if not folder.layers:
        yield "no layer has a weight_scale"
    for path in folder.layers:
        yield from faults_of_layer(folder, path)
    ignored = config.get("ignore", [])
    if wrong := unusable(ignored):
        yield wrong
        return
    linears = folder.linears()
    yield from faults_of_tensors(folder)
    for path in linears:
        is_ignored = any(matches(path, pattern) for pattern in ignored)
        if path in folder.layers and is_ignored:
            yield f"{path!r} has codes and is in 'ignore', so they would be taken for weights"
        if path not in folder.layers and not is_ignored:
            yield f"{path!r} has no scales and is not in 'ignore', so it would be rounded"
    for path in sorted(set(folder.layers) - set(linears)):
        yield f"{path!r} has scales and is no nn.Linear of the model"
    if folder.config.get("tie_word_embeddings") and "lm_head.weight" in folder.tensors:
        what = "codes" if "lm_head" in folder.layers else "a weight"
        yield f"'lm_head' has {what} of its own, and tie_word_embeddings is true"


def faults_beside(folder: Folder) -> Iterator[str]:
    """What is wrong with the file that servers read beside config.json, and with its words there.

    The loader of transformers does not know the method, so that only servers would notice.
    """
    if folder.quantization.get("quant_algo") != "FP8":
        yield f"quant_algo is {folder.quantization.get('quant_algo')!r}; expected 'FP8'"
    try:
        found = read_object(folder.path / BESIDE).get("quantization")
    except ValueError as error:
        yield str(error)
        return
    found = found if isinstance(found, dict) else {}
    for key, expected in (
        ("quant_algo", "FP8"),
        ("exclude_modules", folder.quantization.get("ignore")),
    ):
        if found.get(key) != expected:
            yield f"{BESIDE}: {key} is {found.get(key)!r}; expected {expected!r}"


def faults_of_tensors(folder: Folder) -> Iterator[str]:
    """What is wrong with tensors that are neither codes nor scales."""
    codes = {f"{path}.weight" for path in folder.layers}
    places = folder.skeleton.state_dict(keep_vars=True)
    kind: Any = type(folder.skeleton)
    # Modules that the class holds in float32 in any model, as norms of some architectures.
    wide = {
        *(getattr(kind, "_keep_in_fp32_modules", None) or ()),
        *(getattr(kind, "_keep_in_fp32_modules_strict", None) or ()),
    }
    for name, value in folder.tensors.items():
        place = places.get(name)
        if place is not None and place.shape != value.shape:
            shape, expected = tuple(value.shape), tuple(place.shape)
            yield f"{name} has the shape {shape}; expected {expected}, that in the model"
        if name in codes or name.endswith(SCALES):
            continue
        # A buffer has the dtype of its own, such as that of a position.
        is_buffer = place is not None and not isinstance(place, nn.Parameter)
        dtypes = {folder.dtype} | ({torch.float32} if any(w in name for w in wide) else set())
        if value.dtype not in dtypes and not is_buffer:
            yield f"{name} is in {value.dtype}; expected {folder.dtype}, as {CONFIG} says"
        elif not is_sound(value, may_be_infinite=is_buffer):
            yield f"{name} holds NaN or infinity"


def unusable(ignored: Any) -> str | None:
    """What is wrong with `ignore` itself."""
    if not isinstance(ignored, list) or not all(isinstance(entry, str) for entry in ignored):
        return f"'ignore' is {ignored!r}; expected a list of layers"
    for entry in ignored:
        try:
            re.compile(entry.removeprefix("re:") if entry.startswith("re:") else "")
        except re.error as error:
            return f"'ignore' has {entry!r}, which is no regular expression: {error}"
    if "Linear" in ignored:
        return "'ignore' has the class 'Linear', so all codes would be taken for weights"
    return None


def faults_of_description(config: dict[str, Any], scheme: Scheme | None) -> Iterator[str]:
    """What is wrong with the words of compressed-tensors."""
    status = config.get("quantization_status")
    if status != "compressed":
        yield (
            f"quantization_status is {status!r}; expected 'compressed', or the codes are rounded "
            "again as if they were weights"
        )
    if config.get("format") != file_format(scheme):
        yield f"format is {config.get('format')!r}; expected {file_format(scheme)!r}"
    groups = config.get("config_groups")
    if not isinstance(groups, dict) or not groups:
        yield f"config_groups is {groups!r}; expected one group for all linear layers"
        return
    for key, group in groups.items():
        if not isinstance(group, dict):
            yield f"config_groups: {key} is {group!r}; expected an object"
            continue
        if group.get("targets") != ["Linear"]:
            yield (
                f"config_groups: the targets of {key} are {group.get('targets')!r}; expected "
                "['Linear'], or layers with codes are loaded as they are"
            )
        for name, expected in zip(OPERANDS, operands(scheme), strict=True):
            found = group.get(name)
            if expected is None:
                continue
            if not isinstance(found, dict):
                yield f"{name} are {found!r}; expected an object"
                continue
            wrong = {key: found.get(key) for key in expected if found.get(key) != expected[key]}
            if wrong:
                yield f"{name} have {wrong}; expected { ({key: expected[key] for key in wrong}) }"


def faults_of_layer(folder: Folder, path: str) -> Iterator[str]:
    """What is wrong with the tensors of a layer."""
    weight, scheme = folder.tensors.get(f"{path}.weight"), folder.scheme
    is_integer = scheme is not None and scheme.weight.element.is_uniform
    dtype = torch.int8 if is_integer else torch.float8_e4m3fn
    if weight is None or weight.dtype != dtype:
        kind = "missing" if weight is None else f"in {weight.dtype}"
        yield f"{path}.weight is {kind}; expected {str(dtype).removeprefix('torch.')}"
    elif bool(torch.isnan(weight.float()).any()):
        yield f"{path}.weight holds NaN"
    if scheme is not None:
        yield from faults_of_scales(folder, path, scheme)
        return
    for name in ("weight_scale", "input_scale"):
        scale = folder.tensors.get(f"{path}.{name}")
        if scale is not None and (scale.dtype != torch.float32 or tuple(scale.shape) != (1,)):
            yield (
                f"{path}.{name} is {scale.dtype} of shape {tuple(scale.shape)}; expected float32 "
                "of shape (1,)"
            )
            continue
        try:
            exponent_of(f"{path}.{name}", scale)
        except ValueError as error:
            yield str(error)


def faults_of_scales(folder: Folder, path: str, scheme: Scheme) -> Iterator[str]:
    """What is wrong with the scales of a quantized layer, which are any positive numbers."""
    weight = folder.tensors.get(f"{path}.weight")
    is_whole = scheme.weight.groups.scale_shape((2, 2)) == ()
    rows = 0 if weight is None else weight.size(0)
    shapes: dict[str, tuple[int, ...]] = {"weight_scale": (1,) if is_whole else (rows, 1)}
    if scheme.is_static:
        shapes["input_scale"] = (1,)
    for name, shape in shapes.items():
        scale = folder.tensors.get(f"{path}.{name}")
        if scale is None:
            yield f"{path}.{name} is missing"
        elif scale.dtype != torch.float32 or tuple(scale.shape) != shape:
            yield (
                f"{path}.{name} is {scale.dtype} of shape {tuple(scale.shape)}; expected float32 "
                f"of shape {shape}"
            )
        elif not bool((torch.isfinite(scale) & (scale > 0)).all()):
            yield f"{path}.{name} has a scale that is not positive and finite"


def matches(path: str, pattern: str) -> bool:
    """Whether an entry of `ignore` is for a layer: a path, `re:` and an expression, or fnmatch."""
    if pattern.startswith("re:"):
        return re.match(pattern.removeprefix("re:"), path) is not None
    return fnmatchcase(path, pattern)
