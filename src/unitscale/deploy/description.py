"""What the files of an export say of its numbers, in the words of those who read them.

    compressed-tensors  `quantization_config` in config.json; read by transformers, vLLM and SGLang
    modelopt            `hf_quant_config.json` beside it, and the same in config.json; the tensors
                        have the names and shapes of the first
    safetensors         `unitscale.json`, for any module; read by `unitscale.deploy.load`

Sources: vllm-project/compressed-tensors, src/compressed_tensors/quantization/quant_config.py and
quant_args.py (0.20); NVIDIA/TensorRT-Model-Optimizer, modelopt/torch/export/convert_hf_config.py.
"""

from collections.abc import Sequence
from typing import Any, Literal, get_args

import torch

from unitscale.deploy.layer import Layer, Plan
from unitscale.deploy.scheme import Scheme

__all__ = ["FORMATS", "Format", "check_format", "compressed_tensors", "modelopt", "own"]

Format = Literal["compressed-tensors", "modelopt", "safetensors"]
FORMATS: tuple[str, ...] = get_args(Format)

VERSION = 1
"""Of `unitscale.json`."""

STATIC = {
    "num_bits": 8,
    "type": "float",
    "strategy": "tensor",
    "symmetric": True,
    "dynamic": False,
}
"""A tensor in E4M3FN with one scale that is in the file."""


def check_format(name: str) -> None:
    """Refuse an unknown format.

    Raises:
        ValueError: there is no such format.
    """
    if name not in FORMATS:
        raise ValueError(f"export: format is {name!r}; expected one of {', '.join(FORMATS)}")


def operands(scheme: Scheme | None) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """What is said of weights and inputs, of which weights alone may be rounded.

    Args:
        scheme: of a quantized model; None is static units.
    """
    if scheme is None:
        return dict(STATIC), dict(STATIC)
    kind = "int" if scheme.weight.element.is_uniform else "float"
    is_whole = scheme.weight.groups.scale_shape((2, 2)) == ()
    weights = STATIC | {"type": kind, "strategy": "tensor" if is_whole else "channel"}
    if scheme.input is None:
        return weights, None
    if scheme.is_static:
        return weights, STATIC | {"type": kind}
    return weights, STATIC | {"type": kind, "strategy": "token", "dynamic": True}


def file_format(scheme: Scheme | None) -> str:
    """What compressed-tensors calls files of such weights."""
    is_integer = scheme is not None and scheme.weight.element.is_uniform
    return "int-quantized" if is_integer else "float-quantized"


def groups(scheme: Scheme | None) -> dict[str, Any]:
    """All linear layers that are not ignored, inputs and weights."""
    weights, inputs = operands(scheme)
    group = {"targets": ["Linear"], "weights": weights}
    return {"group_0": group if inputs is None else group | {"input_activations": inputs}}


def ignored_by_servers(ignored: Sequence[str], names: Sequence[str]) -> list[str]:
    """The layers to leave alone, and those of experts, which have other names in a file.

    Args:
        names: of all parameters. Experts are one tensor here, and layers on disk and in servers.
    """
    experts = ["re:.*experts.*", "re:.*gate$"] if any(".experts." in n for n in names) else []
    return [*ignored, *experts]


def compressed_tensors(plan: Plan, names: Sequence[str]) -> dict[str, Any]:
    """`quantization_config` of config.json. Without its status the loader would round codes."""
    return {
        "quant_method": "compressed-tensors",
        "format": file_format(plan.scheme),
        "quantization_status": "compressed",
        "ignore": ignored_by_servers(plan.ignored, names),
        "config_groups": groups(plan.scheme),
    }


def modelopt(
    plan: Plan, names: Sequence[str], version: str
) -> tuple[dict[str, Any], dict[str, Any]]:
    """`quantization_config` of config.json, and hf_quant_config.json."""
    ignored = ignored_by_servers(plan.ignored, names)
    # These patterns are those of fnmatch there.
    patterns = [{"re:.*experts.*": "*experts*", "re:.*gate$": "*gate"}.get(n, n) for n in ignored]
    # Servers know the format by the name of the tool that it comes from.
    producer = {"name": "modelopt", "version": f"unitscale-{version}"}
    config = {
        "quant_method": "modelopt",
        "quant_algo": "FP8",
        "producer": producer,
        "ignore": patterns,
        "config_groups": groups(plan.scheme),
    }
    beside = {
        "producer": producer,
        "quantization": {
            "quant_algo": "FP8",
            "kv_cache_quant_algo": None,
            "exclude_modules": patterns,
        },
    }
    return config, beside


def own(plan: Plan, dtype: torch.dtype, version: str) -> dict[str, Any]:
    """unitscale.json: the units of every layer as exponents, and the dtype of the model."""
    return {
        "version": VERSION,
        "unitscale": version,
        "dtype": str(dtype).removeprefix("torch."),
        "element": "E4M3FN",
        "layers": {
            layer.path: {"weight_log2": layer.weight_log2, "input_log2": layer.input_log2}
            for layer in plan.layers
            if isinstance(layer, Layer)
        },
    }
