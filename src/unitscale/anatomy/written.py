"""What growth and pruning write: a folder of `transformers`, or a run at its first step."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from unitscale.anatomy.carry import Passage, carried_state
from unitscale.anatomy.folder import START, command_of, into, read_run, save_beside, text_of
from unitscale.anatomy.planned import Planned
from unitscale.anatomy.shape import Shape
from unitscale.models.next_byte import NextByte
from unitscale.train.checkpoint import TrainState, save_checkpoint
from unitscale.train.config import TrainConfig
from unitscale.train.initial import build_optimizer
from unitscale.train.run_folder import CHECKPOINT, CONFIG, identity_of, write_json
from unitscale.train.units import apply_numerics

__all__ = ["Outcome", "Run", "changed_config", "write_model", "write_run"]


Done = TypeVar("Done", bound="Outcome")


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What was done to a folder.

    Attributes:
        plan: what was planned.
        folder: where the new model is; None where it was only planned.
        command: that trains on, of a run.
        text: the file that the command reads; None is the standard library's source.
    """

    plan: Planned
    folder: Path | None = None
    command: tuple[str, ...] = ()
    text: Path | None = None

    def shown(self) -> dict[str, Any]:
        """What showed that the model is as planned, as data."""
        return {}

    def to_json(self) -> dict[str, Any]:
        """The same as data, without the shapes of every parameter."""
        return {
            "folder": None if self.folder is None else str(self.folder),
            "plan": self.plan.to_json(),
            **self.shown(),
            "command": list(self.command),
        }

    def lineage(self, source: Path) -> dict[str, Any]:
        """What stands beside the new model, so that one knows what it came from."""
        return {"from": source.resolve().name, "plan": self.plan.to_json(), **self.shown()}


def write_model(model: nn.Module, source: Path, done: Outcome, lineage: str) -> None:
    """Write a model of `transformers` to the folder of `done`, whole or not at all.

    Args:
        source: the folder that it came from, whose other files go along.
        lineage: the name of the file that says so.
    """

    def fill(folder: Path) -> None:
        save_beside(model, source, folder)
        write_json(folder / lineage, done.lineage(source))

    assert done.folder is not None
    into(done.folder, fill, Path(lineage).stem)


@dataclass(frozen=True, kw_only=True)
class Run:
    """A run of `unitscale train` at its checkpoint, on the CPU: see `read_run`."""

    source: Path
    description: dict[str, Any]
    state: TrainState
    config: TrainConfig

    @classmethod
    def read(cls, source: Path, description: dict[str, Any], who: str) -> "Run":
        """The run in a folder; `who` asks, for the errors."""
        state, config = read_run(source, description, who)
        return cls(source=source, description=description, state=state, config=config)

    @property
    def model(self) -> Any:
        """The model of `transformers` in it."""
        assert isinstance(self.state.model, NextByte)
        return self.state.model.model


def changed_config(
    config: TrainConfig, target: Shape, steps: int | None, seed: int | None = None
) -> TrainConfig:
    """The configuration of a run of another shape; None of steps and seed is as before."""
    sizes = {"width": target.width, "depth": target.depth, "heads": target.heads}
    return replace(
        config,
        model={**config.model, **sizes},
        steps=steps or config.steps,
        seed=config.seed if seed is None else seed,
    )


def write_run(
    run: Run,
    model: nn.Module,
    config: TrainConfig,
    done: Done,
    lineage: str,
    *near: Path,
    optimizer: Callable[[torch.optim.Optimizer, torch.optim.Optimizer], None],
    passage: Passage,
) -> Done:
    """Write a run of a changed model at its first step to the folder of `done`, or nothing.

    Args:
        model: plain; it gets the recipe of the run.
        config: of the new run.
        near: where its text may be, beside the folders of both.
        optimizer: gives a new optimizer the state of the old one.
        passage: by which its units are carried over.
    Returns:
        `done` with the command that trains on, and the text that it reads.
    """
    old, out = run.state, done.folder
    assert out is not None
    state = TrainState(NextByte(model), torch.optim.SGD(model.parameters(), 0.0), old.loss_scale)
    state.optimizer = build_optimizer(config, state.model)
    optimizer(old.optimizer, state.optimizer)
    if old.units is not None:
        state.units = carried_state(old.units, passage, START)
    apply_numerics(replace(config, device="cpu", inner="eager"), state.model, state.units)
    description = {**run.description, "config": config.to_json()}
    state.run = identity_of(description)
    text = text_of(description, *near, run.source, run.source.parent, out.parent)
    done = replace(done, command=command_of(config, out, text), text=text)

    def fill(folder: Path) -> None:
        write_json(folder / CONFIG, description)
        save_checkpoint(state, folder / CHECKPOINT)
        write_json(folder / lineage, {**done.lineage(run.source), "step": old.step})

    into(out, fill, Path(lineage).stem)
    return done
