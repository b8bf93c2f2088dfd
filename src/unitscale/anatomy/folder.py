"""Folders of models and of runs: read, and written whole or not at all."""

import json
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import nn

from unitscale.data import open_corpus
from unitscale.models.existing import BUILT_IN
from unitscale.train.checkpoint import TrainState, load_checkpoint
from unitscale.train.config import TrainConfig
from unitscale.train.initial import initial_state
from unitscale.train.run_folder import (
    CHECKPOINT,
    CONFIG,
    VERSION,
    CheckpointError,
    identity_of,
    read_object,
)

__all__ = [
    "START",
    "command_of",
    "described",
    "into",
    "loaded",
    "random_batch",
    "read_run",
    "save_beside",
    "text_of",
]

WEIGHTS = (".safetensors", ".bin", ".pt", ".index.json")
START = "model."
"""What the names in a run's model have in front: it stands in a `NextByte`."""

STANDARD_LIBRARY = r"Python [0-9.]+ standard library"
"""The name of the text of runs without `--data`."""

State = dict[str, Any]


def described(source: Path, out: Path, who: str, *, write: bool = True) -> tuple[State, bool]:
    """The config.json of a folder, and whether that is of a run.

    Args:
        out: where to write: new, or empty.
        who: asks, for the errors.
    Raises:
        ValueError: no such folder, an `out` that holds something, no transformers.
    """
    if find_spec("transformers") is None:
        raise ValueError(f"{who} needs transformers; run: pip install 'unitscale[hf]'")
    if not source.is_dir():
        raise ValueError(f"{source} is no folder; expected one of a model, or of a run")
    if write and out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"{out} holds something already; choose a new or an empty folder")
    if not (source / CONFIG).is_file():
        raise ValueError(f"{source} has no {CONFIG}: it holds neither a model nor a run")
    try:
        description = read_object(source / CONFIG)
    except CheckpointError as error:
        raise ValueError(str(error)) from None
    is_run = isinstance(description.get("config"), dict) and "fingerprint" in description
    return description, is_run


def save_beside(model: Any, source: Path, folder: Path) -> None:
    """Write a model of `transformers`, and what else is in the folder that it came from."""
    model.save_pretrained(folder)
    for file in sorted(source.iterdir()):
        is_other = file.is_file() and not file.name.endswith(WEIGHTS)
        if is_other and not (folder / file.name).exists():
            shutil.copy(file, folder / file.name)


def loaded(source: Path, description: dict[str, Any]) -> nn.Module:
    """The model of `transformers` in a folder.

    Raises:
        ValueError: its class is unknown, its weights are quantized, or it cannot be read.
    """
    import transformers

    names = description.get("architectures") or [None]
    kind = getattr(transformers, str(names[0]), None)
    if kind is None:
        raise ValueError(
            f"{source / CONFIG} names the class {names[0]!r}, which transformers does not have; "
            "expected one of save_pretrained"
        )
    if "quantization_config" in description:
        raise ValueError(f"{source} holds quantized weights; use the model that it was made of")
    try:
        model: nn.Module = kind.from_pretrained(source)
    except (OSError, ValueError, RuntimeError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(f"{source} cannot be loaded: {reason}") from error
    return model


def read_run(source: Path, description: dict[str, Any], who: str) -> tuple[TrainState, TrainConfig]:
    """A run at its checkpoint, on the CPU.

    Raises:
        ValueError: of a model that is not known. CheckpointError: damaged, or not begun.
    """
    if description.get("version") != VERSION:
        raise CheckpointError(
            f"{source / CONFIG} is of version {description.get('version')!r} of a run's files; "
            f"expected {VERSION}"
        )
    config = TrainConfig.from_json(description["config"])
    if config.existing not in BUILT_IN:
        raise ValueError(
            f"{source} is a run of {config.model_name}; {who} knows those of --model "
            f"{' and '.join(BUILT_IN)}"
        )
    if not (source / CHECKPOINT).is_file():
        raise CheckpointError(
            f"{source} has no {CHECKPOINT} of one process; train some steps first"
        )
    state = initial_state(replace(config, device="cpu", inner="eager"))
    state.run = identity_of(description)
    load_checkpoint(state, source / CHECKPOINT)
    return state, config


def random_batch(config: Any) -> dict[str, torch.Tensor]:
    """Input for a model: two texts, or two pictures."""
    generator = torch.Generator().manual_seed(0)
    if config.model_type == "vit":
        size = (2, config.num_channels, config.image_size, config.image_size)
        return {"pixel_values": torch.randn(size, generator=generator)}
    length = min(32, config.max_position_embeddings)
    ids = torch.randint(config.vocab_size, (2, length), generator=generator)
    return {"input_ids": ids}


def command_of(config: TrainConfig, out: Path, text: Path | None) -> tuple[str, ...]:
    """The command that trains a run on.

    Args:
        text: that of the run, see `text_of`; None is the standard library's source.
    """
    own, default = config.to_json(), TrainConfig().to_json()
    named = ("recipe", "steps", "lr", "seed", "batch_size", "sequence_length", "inner", "dtype")
    words = ["unitscale", "train", "--resume", "--out", str(out), "--model", str(config.existing)]
    words += [] if text is None else ["--data", str(text)]
    for name in (*named, "states"):
        if own.get(name) != default.get(name):
            words += [f"--{name.replace('_', '-')}", str(own[name])]
    words += ["--device", config.device]
    options = dict(config.model)
    for name in ("width", "depth"):
        words += [f"--{name}", str(options.pop(name))]
    rest = {f"model.{name}": value for name, value in options.items()}
    rest |= {
        name: own[name]
        for name in sorted(own.keys() - {*named, "states", "existing", "model", "device"})
        if own[name] != default.get(name)
    }
    for name, value in rest.items():
        words += ["--set", f"{name}={json.dumps(value)}"]
    return tuple(words)


def text_of(description: dict[str, Any], *near: Path) -> Path | None:
    """The text file of a run, which knows its name and its fingerprint; None without a file.

    It is looked for in the working directory, then at each path of `near`: a file, or a folder
    that holds it. Where none has the fingerprint, the name alone is returned.
    """
    name = str(description["data"])
    if re.fullmatch(STANDARD_LIBRARY, name):
        return None
    places = [Path(name), *(path / name if path.is_dir() else path for path in near)]
    for path in places:
        is_text = path.is_file() and path.stat().st_size
        if is_text and open_corpus(path).fingerprint == description["fingerprint"]:
            return path
    return Path(name)


def into(out: Path, fill: Callable[[Path], object]) -> None:
    """Let `fill` write a folder under a temporary name, then put it in place.

    Raises:
        OSError: it cannot be written; nothing is left.
    """
    with beside(out) as temporary:
        fill(temporary)
        temporary.replace(out)  # an empty folder gives way


@contextmanager
def beside(out: Path) -> Iterator[Path]:
    """A new folder next to another one, which is gone afterwards if it is still there."""
    temporary = out.with_name(out.name + ".tmp")
    out.parent.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
        yield temporary
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
