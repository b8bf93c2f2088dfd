"""The files of an export, read."""

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import safetensors
import torch
from torch import Tensor, nn

from unitscale.deploy.export import CONFIG, MARK, OWN, TENSORS
from unitscale.deploy.scheme import SCHEMES, Scheme

__all__ = ["Folder", "exponent_of", "is_own", "read_file", "read_object"]

INDEX = "model.safetensors.index.json"


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
            weight_map = read_object(self.path / INDEX).get("weight_map")
            if not isinstance(weight_map, dict):
                raise ValueError(f"{self.path / INDEX} has no weight_map")
            files = sorted(set(map(str, weight_map.values())))
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
        found = {
            name: value
            for name, value in self.tensors.items()
            if not name.endswith((".weight_scale", ".input_scale"))
        }
        for path in self.layers:
            weight, scale = (self.tensors[f"{path}.{n}"] for n in ("weight", "weight_scale"))
            found[f"{path}.weight"] = (weight.float() * scale).to(dtype)
        return found

    @property
    def dtype(self) -> torch.dtype:
        """That of the model."""
        name = self.config.get("dtype", self.config.get("torch_dtype", "float32"))
        found = getattr(torch, str(name), None)
        if not isinstance(found, torch.dtype):
            raise ValueError(f"{self.path / CONFIG}: dtype is {name!r}; expected one of torch's")
        return found

    def architecture(self) -> tuple[Any, Any]:
        """The class of the model, and its configuration without the quantization.

        Raises:
            ValueError: transformers is not installed, or does not know the architecture.
        """
        try:
            import transformers
        except ImportError:
            raise ValueError(
                "reading an export needs transformers; run: pip install 'unitscale[hf]'"
            ) from None
        names = self.config.get("architectures")
        name = names[0] if isinstance(names, list) and names else None
        found = getattr(transformers, str(name), None)
        if found is None:
            raise ValueError(
                f"{self.path / CONFIG}: transformers has no architecture {name!r} "
                f"(architectures={names!r})"
            )
        config = found.config_class.from_pretrained(self.path)
        del config.quantization_config
        return found, config

    def loaded(self) -> Any:
        """The model, with the values that a server computes with.

        Raises:
            ValueError: a tensor of the model is missing, or the model has no place for one; a
                loader would go on with random numbers, or without it.
        """
        kind, config = self.architecture()
        model, info = kind.from_pretrained(
            None,
            config=config,
            state_dict=self.values(self.dtype),
            dtype=self.dtype,
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

    def linears(self) -> list[str]:
        """The paths of the linear layers of the model, which is made without memory."""
        kind, config = self.architecture()
        with torch.device("meta"):
            model = kind(config)
        return [path for path, module in model.named_modules() if isinstance(module, nn.Linear)]


def read_object(file: Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        ValueError: it is missing, or holds something else.
    """
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{file} cannot be read: {error}") from None
    if not isinstance(found, dict):
        raise ValueError(f"{file} holds a {type(found).__name__}; expected an object")
    return found


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
        ValueError: it is missing, or is no power of two.
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
    return exponent - 1


def is_own(path: Path) -> bool:
    """Whether a folder is an export with format='safetensors'."""
    return (path / OWN).exists()
