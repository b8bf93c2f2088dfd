"""Growth from a folder to a folder: of `transformers`, or a run of `unitscale train`."""

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import nn

from unitscale.growth.apply import apply, undrawn
from unitscale.growth.carry import grown_state
from unitscale.growth.plan import Plan, plan
from unitscale.growth.state import grow_optimizer
from unitscale.growth.verify import Proof, verify
from unitscale.models.existing import BUILT_IN
from unitscale.models.next_byte import NextByte
from unitscale.train.checkpoint import TrainState, load_checkpoint, save_checkpoint
from unitscale.train.config import TrainConfig
from unitscale.train.initial import build_optimizer, initial_state
from unitscale.train.run_folder import (
    CHECKPOINT,
    CONFIG,
    VERSION,
    CheckpointError,
    identity_of,
    read_object,
    write_json,
)
from unitscale.train.units import apply_numerics

__all__ = ["Written", "grow_folder"]

LINEAGE = "growth.json"
"""Beside a grown model: the plan, the proof, and what it came from."""

WEIGHTS = (".safetensors", ".bin", ".pt", ".index.json")
START = "model."
"""What the names in a run's model have in front: it stands in a `NextByte`."""


@dataclass(frozen=True, kw_only=True)
class Written:
    """What growth did to a folder.

    Attributes:
        folder: where the grown model is; None where it was only planned.
        proof: None likewise.
        command: that trains on, of a run.
    """

    plan: Plan
    folder: Path | None = None
    proof: Proof | None = None
    command: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """As JSON has it."""
        made = {k: v for k, v in asdict(self.plan).items() if k != "shapes"}
        proof = None if self.proof is None else asdict(self.proof)
        folder = None if self.folder is None else str(self.folder)
        return {"folder": folder, "plan": made, "proof": proof, "command": list(self.command)}


def grow_folder(
    source: Path,
    out: Path,
    *,
    steps: int | None = None,
    run_seed: int | None = None,
    write: bool = True,
    **asked: Any,
) -> Written:
    """Grow the model in a folder and write it to another one.

    A folder of `transformers` gives one that `from_pretrained` loads. A run gives a run at its
    first step, with optimizer and units grown along, which `unitscale train --resume` trains.

    Args:
        source: a folder of `save_pretrained`, or of `unitscale train --model gpt2` or llama.
        out: new, or empty. It is written whole or not at all.
        steps: of the grown run; None is as many as before.
        run_seed: of the grown run, which chooses its text; None is the next one, so that it sees
            another text than it has.
        write: false only plans.
        asked: of `plan`.

    Raises:
        ValueError: no such folder, an `out` that holds something, what `plan` refuses, a size that
            a run cannot have, a function that was to be kept and was not.
        CheckpointError: a file of the run is damaged.
    """
    if find_spec("transformers") is None:
        raise ValueError("growth needs transformers; run: pip install 'unitscale[hf]'")
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
    if not is_run:
        for name, value in (("steps", steps), ("run_seed", run_seed)):
            if value is not None:
                raise ValueError(
                    f"{name} is {value!r}, and {source} is no run of `unitscale train`"
                )
        return grow_pretrained(source, out, description, write=write, **asked)
    with undrawn():
        return grow_run(
            source, out, description, steps=steps, run_seed=run_seed, write=write, **asked
        )


def grow_pretrained(
    source: Path, out: Path, description: dict[str, Any], *, write: bool, **asked: Any
) -> Written:
    """`grow_folder` of a model of `transformers`."""
    model = loaded(source, description)
    made = plan(model, **asked)
    if made.target.experts > 1:
        raise ValueError(
            "growth: a folder of transformers has no place for experts; grow in Python"
        )
    if not write:
        return Written(plan=made)
    grown = apply(model, made)
    proof = checked(model, grown, made)
    done = Written(plan=made, folder=out, proof=proof)

    def fill(folder: Path) -> None:
        grown.save_pretrained(folder)  # type: ignore[operator]
        for file in sorted(source.iterdir()):
            is_other = file.is_file() and not file.name.endswith(WEIGHTS)
            if is_other and not (folder / file.name).exists():
                shutil.copy(file, folder / file.name)
        write_json(folder / LINEAGE, lineage(source, done))

    into(out, fill)
    return done


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
        raise ValueError(f"{source} holds quantized weights; grow the model that it was made of")
    try:
        model: nn.Module = kind.from_pretrained(source)
    except (OSError, ValueError, RuntimeError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(f"{source} cannot be loaded: {reason}") from error
    return model


def grow_run(
    source: Path,
    out: Path,
    description: dict[str, Any],
    *,
    steps: int | None,
    run_seed: int | None,
    write: bool,
    **asked: Any,
) -> Written:
    """`grow_folder` of a run."""
    old, config = read_run(source, description)
    assert isinstance(old.model, NextByte)
    small = old.model.model
    made = plan(small, **asked)
    check_run(made, config)
    target = made.target
    model = {**config.model, "width": target.width, "depth": target.depth, "heads": target.heads}
    next_seed = config.seed + 1 if run_seed is None else run_seed
    new = replace(config, model=model, steps=steps or config.steps, seed=next_seed)
    if not write:
        return Written(plan=made)
    grown = apply(small, made)
    proof = checked(small, grown, made)
    state = TrainState(NextByte(grown), torch.optim.SGD(grown.parameters(), 0.0), old.loss_scale)
    state.optimizer = build_optimizer(new, state.model)
    grow_optimizer(old.optimizer, state.optimizer, small=small, grown=grown, plan=made)
    if old.units is not None:
        parameters = dict(small.named_parameters()), dict(grown.named_parameters())
        state.units = grown_state(old.units, made, *parameters, START)
    apply_numerics(replace(new, device="cpu", inner="eager"), state.model, state.units)
    described = {**description, "config": new.to_json()}
    state.run = identity_of(described)
    done = Written(plan=made, folder=out, proof=proof, command=command_of(new, out))

    def fill(folder: Path) -> None:
        write_json(folder / CONFIG, described)
        save_checkpoint(state, folder / CHECKPOINT)
        write_json(folder / LINEAGE, {**lineage(source, done), "step": old.step})

    into(out, fill)
    return done


def read_run(source: Path, description: dict[str, Any]) -> tuple[TrainState, TrainConfig]:
    """A run at its checkpoint, on the CPU.

    Raises:
        ValueError: of another model than growth knows. CheckpointError: damaged, or not begun.
    """
    if description.get("version") != VERSION:
        raise CheckpointError(
            f"{source / CONFIG} is of version {description.get('version')!r} of a run's files; "
            f"expected {VERSION}"
        )
    config = TrainConfig.from_json(description["config"])
    if config.existing not in BUILT_IN:
        raise ValueError(
            f"{source} is a run of {config.model_name}; growth knows those of --model "
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


def check_run(made: Plan, config: TrainConfig) -> None:
    """Refuse a shape that the models of `unitscale train` cannot have.

    Raises:
        ValueError: says which size.
    """
    small, target = made.small, made.target
    if target.experts > 1 or target.kv_heads != target.heads:
        raise ValueError("growth: a run has neither experts nor groups of heads; grow in Python")
    for name in ("ffn", "heads"):
        if getattr(target, name) * small.width != getattr(small, name) * target.width:
            raise ValueError(
                f"growth: in a run {name} grows as the width does; leave it out, or grow a folder"
            )
    if target.width % small.width:
        raise ValueError(
            f"growth: width is {target.width}; a run of {config.existing} cannot be padded, since "
            f"the epsilon of its norms is fixed: expected a multiple of {small.width}"
        )


def checked(small: nn.Module, grown: nn.Module, made: Plan) -> Proof:
    """The proof on random input.

    Raises:
        ValueError: the function was to be kept, and was not.
    """
    proof = verify(small, grown, random_batch(small.config))
    if made.preserves and not proof.preserved:
        raise ValueError(
            f"growth: {proof}; nothing was written: the model is not what growth knows"
        )
    return proof


def random_batch(config: Any) -> dict[str, torch.Tensor]:
    """Input for a model: two texts, or two pictures."""
    generator = torch.Generator().manual_seed(0)
    if config.model_type == "vit":
        size = (2, config.num_channels, config.image_size, config.image_size)
        return {"pixel_values": torch.randn(size, generator=generator)}
    length = min(32, config.max_position_embeddings)
    ids = torch.randint(config.vocab_size, (2, length), generator=generator)
    return {"input_ids": ids}


def command_of(config: TrainConfig, out: Path) -> tuple[str, ...]:
    """The command that trains a run on; `--data` is left to who knows the file."""
    own, default = config.to_json(), TrainConfig().to_json()
    named = ("recipe", "steps", "lr", "seed", "batch_size", "sequence_length", "inner", "dtype")
    words = ["unitscale", "train", "--resume", "--out", str(out), "--model", str(config.existing)]
    words += ["--width", str(config.model["width"]), "--depth", str(config.model["depth"])]
    words += ["--set", f"model.heads={config.model['heads']}", "--device", config.device]
    for name in (*named, "states"):
        if own.get(name) != default.get(name):
            words += [f"--{name.replace('_', '-')}", str(own[name])]
    rest = own.keys() - {*named, "states", "existing", "model", "device"}
    for name in sorted(rest):
        if own[name] != default[name]:
            words += ["--set", f"{name}={json.dumps(own[name])}"]
    return tuple(words)


def lineage(source: Path, done: Written) -> dict[str, Any]:
    """What growth.json holds."""
    found = done.to_json()
    return {"from": source.resolve().name, "plan": found["plan"], "proof": found["proof"]}


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
