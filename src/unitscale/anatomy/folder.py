"""Folders of models and of runs: read, and written whole or not at all."""

import json
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import nn

from unitscale.data import open_corpus
from unitscale.deploy.export import check_folder, new_folder
from unitscale.models.existing import BUILT_IN
from unitscale.report.version import upgrade
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
    "transformers_there",
]

WEIGHTS = (".safetensors", ".bin", ".pt", ".index.json")
LAYER = r"\.\d+\."
"""In the name of a weight: the number of its layer."""

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
    transformers_there(who)
    if not source.is_dir():
        raise ValueError(f"{source} is no folder; expected one of a model, or of a run")
    if write and out.exists() and not out.is_dir():
        raise ValueError(f"{out} is a file; expected a new or an empty folder")
    if write and out.is_dir() and any(out.iterdir()):
        raise ValueError(f"{out} holds something already; choose a new or an empty folder")
    if write:
        check_folder(out, who)  # before the work, and not after it
    if not (source / CONFIG).is_file():
        raise ValueError(f"{source} has no {CONFIG}: it holds neither a model nor a run")
    try:
        description = read_object(source / CONFIG)
    except CheckpointError as error:
        raise ValueError(str(error)) from None
    is_run = isinstance(description.get("config"), dict) and "fingerprint" in description
    return description, is_run


def transformers_there(who: str) -> None:
    """Refuse to go on without transformers.

    Raises:
        ValueError: it is not installed.
    """
    if find_spec("transformers") is None:
        raise ValueError(f"{who} needs transformers; run: pip install 'unitscale[hf]'")


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
        ValueError: its class is unknown, its weights are quantized, some are missing, or it cannot
            be read.
    """
    import transformers

    listed = description.get("architectures")
    name = listed[0] if isinstance(listed, list) and listed else None
    kind: Any = getattr(transformers, str(name), None)
    is_model = isinstance(kind, type) and issubclass(kind, transformers.PreTrainedModel)
    if not is_model:
        raise ValueError(
            f"{source / CONFIG} names the class {name!r}, which transformers does not have as a "
            "model; expected one of save_pretrained"
        )
    if "quantization_config" in description:
        raise ValueError(f"{source} holds quantized weights; use the model that it was made of")
    try:
        model, info = kind.from_pretrained(source, output_loading_info=True)
    except MemoryError:
        raise
    except Exception as error:  # of a damaged file, each reader raises another one
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ValueError(f"{source} cannot be loaded: {type(error).__name__}: {reason}") from error
    check_whole(source, str(name), info, list(model.state_dict()))
    found: nn.Module = model
    return found


def check_whole(source: Path, name: str, info: Mapping[str, Any], own: Sequence[str]) -> None:
    """Refuse weights that are not those of the configuration: transformers only warns.

    What it lacks would hold random numbers. What it drops may be another head or a buffer of an
    older version, but not a weight that layers of the model have under another number.

    Args:
        info: what `from_pretrained` tells of it; own: the names of the model's tensors.
    Raises:
        ValueError: names a tensor.
    """
    if missing := sorted(map(str, info["missing_keys"])):
        raise ValueError(
            f"{source} lacks {len(missing)} of the weights of its {name}, the first is "
            f"{missing[0]}; they would hold random numbers: expected what save_pretrained wrote"
        )
    known = {re.sub(LAYER, ".*.", key) for key in own if re.search(LAYER, key)}
    dropped = [key for key in sorted(map(str, info["unexpected_keys"])) if re.search(LAYER, key)]
    layers = [key for key in dropped if re.sub(LAYER, ".*.", key) in known or not known]
    if layers:
        raise ValueError(
            f"{source} has weights of layers that its {CONFIG} does not have, as {layers[0]}; they "
            "would be left out: expected what save_pretrained wrote"
        )


def read_run(source: Path, description: dict[str, Any], who: str) -> tuple[TrainState, TrainConfig]:
    """A run at its checkpoint, on the CPU.

    Raises:
        ValueError: of a model that is not known. CheckpointError: damaged, or not begun.
    """
    if description.get("version") != VERSION:
        raise CheckpointError(
            f"{source / CONFIG} is of version {description.get('version')!r} of a run's files; "
            f"expected {VERSION}{upgrade(description.get('version'), VERSION)}"
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


def into(out: Path, fill: Callable[[Path], object], who: str) -> None:
    """Let `fill` write a folder under a temporary name, then put it in place.

    Raises:
        OSError: it cannot be written; nothing is left.
    """
    with new_folder(out, who) as temporary:
        fill(temporary)
