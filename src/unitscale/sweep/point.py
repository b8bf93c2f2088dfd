"""One point of a sweep: a configuration with a name, and the command line that makes its run.

Two points are the same if their runs are: a value that is the default counts as left out. Imports
no torch.
"""

import hashlib
import json
import math
import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from unitscale.models import CharLMConfig
from unitscale.models.existing import BUILT_IN
from unitscale.train.config import FOLLOWING, HEADS, WIDTH, TrainConfig

LONGEST_NAME = 60
"""Characters of the part of a name that is for people."""

CHAR_LM = {field.name: field.default for field in fields(CharLMConfig)}
BUILT_IN_OPTIONS = {"width": WIDTH, "depth": 4, "heads": HEADS}
ALWAYS_GIVEN = {True: ("layer", "norm", "residual", "width", "depth"), False: ("width", "depth")}
"""Options of the model that the command line always fills in, for a `CharLM` and for the built-in
existing ones: a run's configuration holds them, so a point holds them too."""

FLAGS = {
    "recipe": "--recipe",
    "steps": "--steps",
    "lr": "--lr",
    "seed": "--seed",
    "batch_size": "--batch-size",
    "sequence_length": "--sequence-length",
    "inner": "--inner",
    "device": "--device",
    "dtype": "--dtype",
}
"""Fields with an option of their own in `unitscale train`; the others go by `--set`."""

ALWAYS_SHOWN = ("recipe", "steps", "seed", "device")
"""Fields that a command line shows even where they are the defaults of today."""


@dataclass(frozen=True)
class Point:
    """One configuration of a sweep, in the form that the command line gives it.

    Make one with `of`: it fills in what the command line would, so that a run made by its
    `command` and one made by the sweep have equal configurations.
    """

    config: TrainConfig

    @classmethod
    def of(cls, config: TrainConfig) -> "Point":
        """The point of a configuration."""
        model = dict(config.model)
        if config.existing is None:
            filled = {name: CHAR_LM[name] for name in ALWAYS_GIVEN[True]}
        elif config.existing in BUILT_IN:
            filled = {name: BUILT_IN_OPTIONS[name] for name in ALWAYS_GIVEN[False]}
        else:
            filled = {}
        return cls(replace(config, model=filled | model))

    @cached_property
    def options(self) -> dict[str, Any]:
        """Every option of the model that can be chosen, defaults included."""
        config = self.config
        if config.existing is None:
            return {k: v for k, v in config.model_options.items() if k not in FOLLOWING}
        known = BUILT_IN_OPTIONS if config.existing in BUILT_IN else {}
        return known | dict(config.model)

    @cached_property
    def values(self) -> dict[str, Any]:
        """All that decides the run, flat: fields, and options of the model as `model.NAME`.

        The learning rate is the one in force, whether it was given or not.
        """
        found = self.config.to_json() | {"lr": self.config.peak_lr}
        del found["model"]
        return found | {f"model.{name}": value for name, value in sorted(self.options.items())}

    @cached_property
    def identity(self) -> str:
        """What two points share exactly if their runs are the same run.

        Only what differs from the defaults counts, so that a field which a later version adds
        leaves the names of older runs as they are.
        """
        is_ours = self.config.existing is None or self.config.existing in BUILT_IN
        known = {k: v for k, v in DEFAULTS.items() if is_ours or not k.startswith("model.")}
        found = {
            key: value
            for key, value in self.values.items()
            if key in ("recipe", "lr", "seed") or known.get(key, MISSING) != value
        }
        return json.dumps(found, sort_keys=True)

    @property
    def digest(self) -> str:
        """Eight hexadecimal digits that stand for the identity."""
        return hashlib.sha256(self.identity.encode()).hexdigest()[:8]

    @cached_property
    def name(self) -> str:
        """The name of its folder: what people look for first, then the digest."""
        model = self.config.existing or self.options["layer"]
        size = "".join(
            f"-{letter}{self.options[name]}"
            for name, letter in (("width", "w"), ("depth", "d"))
            if name in self.options
        )
        text = f"{self.config.recipe}-{model}{size}-lr{self.config.peak_lr:.4g}"
        text = f"{text}-seed{self.config.seed}"
        readable = re.sub(r"[^A-Za-z0-9.+-]+", "_", text)[:LONGEST_NAME]
        return f"{readable}-{self.digest}"

    def folder(self, out: Path) -> Path:
        """Where a sweep in `out` keeps its run."""
        return out / "runs" / self.name

    def command(self, out: Path, *, data: Path | None, threads: int) -> str:
        """The shell command that makes exactly this run, in exactly this folder.

        Args:
            out: the folder of the sweep. data: the text; None is the built-in one.
            threads: of the CPU, on which the last bits of a run depend.
        """
        words = ["unitscale", "train"]
        config, defaults = self.config, TrainConfig()
        for name, flag in FLAGS.items():
            value = getattr(config, name)
            if value is not None and (name in ALWAYS_SHOWN or value != getattr(defaults, name)):
                words += [flag, repr(value) if isinstance(value, float) else str(value)]
        model = dict(config.model)
        words += ["--model", config.existing or model.pop("layer")]
        if config.existing is None or config.existing in BUILT_IN:
            for name in ALWAYS_GIVEN[config.existing is None]:
                if name in model:
                    words += [f"--{name}", str(model.pop(name))]
        for name, value in config.to_json().items():
            is_set = name not in FLAGS and name not in ("model", "existing")
            if is_set and getattr(config, name) != getattr(defaults, name):
                words += ["--set", f"{name}={json.dumps(value)}"]
        for name, value in model.items():
            words += ["--set", f"model.{name}={json.dumps(value)}"]
        if data is not None:
            words += ["--data", str(data)]
        words += ["--threads", str(threads), "--out", str(self.folder(out)), "--resume"]
        return shlex.join(words)


MISSING = object()
DEFAULTS = Point(TrainConfig()).values


def typed(config: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a configuration with whole numbers as floats where the field is a float.

    `lr = 1` and `lr = 1.0` are one rate, and their runs are one run.
    """
    model = config.get("model", {})
    found = {name: as_float(value) if name in FLOATS else value for name, value in config.items()}
    if isinstance(found.get("betas"), list):
        found["betas"] = [as_float(value) for value in found["betas"]]
    if config.get("existing") is None and isinstance(model, Mapping):
        found["model"] = {
            name: as_float(value) if name in MODEL_FLOATS else value
            for name, value in model.items()
        }
    return found


def as_float(value: Any) -> Any:
    """A whole number as a float; what is no number, or too large for one, as it is."""
    is_whole = isinstance(value, int) and not isinstance(value, bool)
    return float(value) if is_whole and math.log2(abs(value) or 1) < 1023 else value


FLOATS = frozenset(field.name for field in fields(TrainConfig) if "float" in str(field.type))
MODEL_FLOATS = frozenset(field.name for field in fields(CharLMConfig) if "float" in str(field.type))
