"""The files of an export, read."""

import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import safetensors
import torch
from torch import Tensor, nn

from unitscale.deploy.code import INPUT_LOG2, WEIGHT_LOG2, unit_fault
from unitscale.deploy.export import CONFIG, MARK, OWN, TENSORS
from unitscale.deploy.scheme import SCHEMES, Scheme

__all__ = ["Folder", "exponent_of", "is_own", "read_file", "read_object"]

INDEX = "model.safetensors.index.json"
SCALES = (".weight_scale", ".input_scale")
"""How the names of scales end."""


class Folder:
    """An export on disk: its configuration and its tensors.

    Args:
        path: of the folder.
    Raises:
        ValueError: it is no export of a model of transformers, or a file of it is damaged.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        if not self.path.is_dir():
            raise ValueError(
                f"{path} is no folder; expected one that unitscale.deploy.export wrote"
            )
        self.config = read_object(self.path / CONFIG)
        found = self.config.get("quantization_config")
        if not isinstance(found, dict):
            raise ValueError(f"{path}: {CONFIG} has no quantization_config, so it is no FP8 export")
        self.quantization: dict[str, Any] = found
        self.tensors = dict(self.read_tensors())
        self.layers = sorted(
            name.removesuffix(".weight_scale")
            for name in self.tensors
            if name.endswith(".weight_scale")
        )

    def read_tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Every tensor of its files, by name."""
        files = [TENSORS]
        if (self.path / INDEX).exists():
            files = sorted(set(weight_map_of(self.path / INDEX).values()))
        for name in files:
            yield from read_file(self.path / name)

    def units(self) -> dict[str, tuple[int, int]]:
        """By the name of a weight, log2 of its scale and of that of the input.

        Raises:
            ValueError: a scale is missing, or is no power of two.
        """
        return {
            f"{path}.weight": (
                exponent_of(f"{path}.weight_scale", self.tensors.get(f"{path}.weight_scale")),
                exponent_of(f"{path}.input_scale", self.tensors.get(f"{path}.input_scale")),
            )
            for path in self.layers
        }

    @property
    def scheme(self) -> Scheme | None:
        """How a quantized model was quantized; None of one with units."""
        name = self.config.get(MARK)
        return None if name is None else SCHEMES.get(str(name))

    def values(self, dtype: torch.dtype) -> dict[str, Tensor]:
        """The tensors of the plain model: each layer's weight is what its codes are worth."""
        found = {n: value for n, value in self.tensors.items() if not n.endswith(SCALES)}
        for path in self.layers:
            weight, scale = (self.tensors[f"{path}.{n}"] for n in ("weight", "weight_scale"))
            found[f"{path}.weight"] = (weight.float() * scale).to(dtype)
        return found

    @property
    def dtype(self) -> torch.dtype:
        """That of the model."""
        name = self.config.get("dtype", self.config.get("torch_dtype", "float32"))
        if name not in DTYPES:
            raise ValueError(
                f"{self.path / CONFIG}: dtype is {name!r}; expected one of {', '.join(DTYPES)}"
            )
        found: torch.dtype = getattr(torch, name)
        return found

    def architecture(self) -> tuple[Any, Any]:
        """The class of the model, and its configuration without the quantization.

        Raises:
            ValueError: transformers is not installed, or does not know the architecture, or
                refuses the configuration.
        """
        try:
            import transformers
        except ImportError:
            raise ValueError(
                "reading an export needs transformers; run: pip install 'unitscale[hf]'"
            ) from None
        names = self.config.get("architectures")
        name = names[0] if isinstance(names, list) and names else None
        with self.reading("find the architecture"):
            found = getattr(transformers, str(name), None)
        known = isinstance(found, type) and issubclass(found, transformers.PreTrainedModel)
        kind: Any = found if known else None
        if getattr(kind, "config_class", None) is None:
            raise ValueError(
                f"{self.path / CONFIG}: transformers has no architecture {name!r} "
                f"(architectures={names!r}); expected one of its own, as LlamaForCausalLM"
            )
        if self.config.get("model_type") != kind.config_class.model_type:
            raise ValueError(
                f"{self.path / CONFIG}: model_type is {self.config.get('model_type')!r}; expected "
                f"{kind.config_class.model_type!r}, that of {name}"
            )
        with self.reading("read the configuration"):
            config = kind.config_class.from_pretrained(self.path)
        del config.quantization_config
        return kind, config

    @contextmanager
    def reading(self, doing: str) -> Iterator[None]:
        """Turn whatever transformers raises at a configuration into one line.

        Raises:
            ValueError: see above.
        """
        try:
            yield
        except Exception as error:  # a number of a configuration can end in any of them
            text = " ".join(str(error).split())
            raise ValueError(
                f"{self.path / CONFIG}: transformers cannot {doing}: "
                f"{type(error).__name__}: {text[:300]}"
            ) from None

    def loaded(self) -> Any:
        """The model, with the values that a server computes with.

        Raises:
            ValueError: a tensor of the model is missing, or the model has no place for one; a
                loader would go on with random numbers, or without it.
        """
        kind, config = self.architecture()
        dtype = self.dtype
        with self.reading("load the model"):
            model, info = kind.from_pretrained(
                None,
                config=config,
                state_dict=self.values(dtype),
                dtype=dtype,
                output_loading_info=True,
            )
        faults = [
            f"{words} {', '.join(sorted(map(str, info[key]))[:3])} ({len(info[key])} in all)"
            for key, words in (
                ("missing_keys", "tensors are missing:"),
                ("unexpected_keys", "tensors have no place in the model:"),
                ("mismatched_keys", "tensors have another shape than in the model:"),
            )
            if info.get(key)
        ]
        if faults:
            raise ValueError(f"{self.path}: {'; '.join(faults)}")
        return model

    @cached_property
    def skeleton(self) -> nn.Module:
        """The model of the configuration, made without memory.

        Raises:
            ValueError: as `architecture`; the files have fewer tensors than the model has layers.
        """
        kind, config = self.architecture()
        for name, count in self.config.items():
            # Before they are made: a thousand million layers without memory take days.
            if name in LAYER_COUNTS and isinstance(count, int) and count > len(self.tensors):
                raise ValueError(
                    f"{self.path / CONFIG}: {name} is {count}, and the files have "
                    f"{len(self.tensors)} tensors"
                )
        with self.reading(f"make a {kind.__name__} of it"), torch.device("meta"):
            model: nn.Module = kind(config)
        return model

    def linears(self) -> list[str]:
        """The paths of the linear layers of the model."""
        modules = self.skeleton.named_modules()
        return [path for path, module in modules if isinstance(module, nn.Linear)]


LAYER_COUNTS = (
    *("num_hidden_layers", "num_layers", "n_layer", "n_layers"),
    *("encoder_layers", "decoder_layers", "num_decoder_layers"),
)
"""Each of these layers has a tensor of its own."""

DTYPES = ("float32", "bfloat16", "float16", "float64")


def weight_map_of(index: Path) -> dict[str, str]:
    """Which file of an export each tensor is in.

    Raises:
        ValueError: it says something else.
    """
    found = read_object(index).get("weight_map")
    if not isinstance(found, dict) or not found:
        raise ValueError(f"{index} has no weight_map")
    for name, file in found.items():
        if not isinstance(file, str) or Path(file).name != file:
            raise ValueError(f"{index}: {name!r} is in {file!r}; expected a file beside it")
    return found


def read_object(file: Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        ValueError: it is missing, or holds something else.
    """
    try:
        found = json.loads(file.read_text(encoding="utf-8"), parse_constant=refuse_constant)
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{file} cannot be read: {error}") from None
    if not isinstance(found, dict):
        raise ValueError(f"{file} holds a {type(found).__name__}; expected an object")
    return found


def refuse_constant(name: str) -> None:
    """NaN and the infinities, which Python's JSON has and no other."""
    raise ValueError(f"{name} is no number of JSON")


def read_file(file: Path) -> Iterator[tuple[str, Tensor]]:
    """The tensors of a safetensors file.

    Raises:
        ValueError: it is missing or damaged.
    """
    try:
        with safetensors.safe_open(file, framework="pt") as opened:
            yield from ((name, opened.get_tensor(name)) for name in opened.keys())  # noqa: SIM118
    except (OSError, safetensors.SafetensorError) as error:
        raise ValueError(f"{file} cannot be read: {error}") from None


def exponent_of(name: str, scale: Tensor | None) -> int:
    """log2 of a scale of one element.

    Raises:
        ValueError: it is missing, is no power of two, or is beyond what an export writes.
    """
    if scale is None:
        raise ValueError(f"{name} is missing")
    value = float(scale.reshape(-1)[0]) if scale.numel() == 1 else math.nan
    mantissa, exponent = math.frexp(value) if math.isfinite(value) else (0.0, 0)
    if mantissa != 0.5:
        raise ValueError(
            f"{name} is {scale.tolist()}; expected one power of two, as units are (the loader of "
            "transformers takes others)"
        )
    limits = INPUT_LOG2 if name.endswith(".input_scale") else WEIGHT_LOG2
    if fault := unit_fault(exponent - 1, limits):
        raise ValueError(f"{name} is {fault}")
    return exponent - 1


def is_own(path: Path) -> bool:
    """Whether a folder is an export with format='safetensors'."""
    return (path / OWN).exists()
