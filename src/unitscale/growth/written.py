"""Growth from a folder to a folder: of `transformers`, or a run of `unitscale train`."""

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from unitscale.anatomy.folder import (
    START,
    command_of,
    described,
    into,
    loaded,
    random_batch,
    read_run,
    save_beside,
    text_of,
)
from unitscale.anatomy.rebuilt import undrawn
from unitscale.growth.apply import apply
from unitscale.growth.carry import grown_state
from unitscale.growth.plan import Plan, plan
from unitscale.growth.state import grow_optimizer
from unitscale.growth.verify import Proof, verify
from unitscale.models.next_byte import NextByte
from unitscale.train.checkpoint import TrainState, save_checkpoint
from unitscale.train.config import TrainConfig
from unitscale.train.initial import build_optimizer
from unitscale.train.run_folder import (
    CHECKPOINT,
    CONFIG,
    identity_of,
    write_json,
)
from unitscale.train.units import apply_numerics

__all__ = ["Written", "grow_folder"]

LINEAGE = "growth.json"
"""Beside a grown model: the plan, the proof, and what it came from."""


@dataclass(frozen=True, kw_only=True)
class Written:
    """What growth did to a folder.

    Attributes:
        folder: where the grown model is; None where it was only planned.
        proof: None likewise.
        command: that trains on, of a run.
        text: the file that the command reads; None is the standard library's source.
    """

    plan: Plan
    folder: Path | None = None
    proof: Proof | None = None
    command: tuple[str, ...] = ()
    text: Path | None = None

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
    description, is_run = described(source, out, "growth", write=write)
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
        save_beside(grown, source, folder)
        write_json(folder / LINEAGE, lineage(source, done))

    into(out, fill, "growth")
    return done


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
    old, config = read_run(source, description, "growth")
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
    renewed = {**description, "config": new.to_json()}
    state.run = identity_of(renewed)
    text = text_of(description, source, source.parent, out.parent)
    command = command_of(new, out, text)
    done = Written(plan=made, folder=out, proof=proof, command=command, text=text)

    def fill(folder: Path) -> None:
        write_json(folder / CONFIG, renewed)
        save_checkpoint(state, folder / CHECKPOINT)
        write_json(folder / LINEAGE, {**lineage(source, done), "step": old.step})

    into(out, fill, "growth")
    return done


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


def lineage(source: Path, done: Written) -> dict[str, Any]:
    """What growth.json holds."""
    found = done.to_json()
    return {"from": source.resolve().name, "plan": found["plan"], "proof": found["proof"]}
