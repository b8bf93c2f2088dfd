"""Growth from a folder to a folder: of `transformers`, or a run of `unitscale train`."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import nn

from unitscale.anatomy.folder import described, loaded, random_batch
from unitscale.anatomy.rebuilt import undrawn
from unitscale.anatomy.written import Outcome, Run, changed_config, write_model, write_run
from unitscale.growth.apply import apply
from unitscale.growth.carry import growing
from unitscale.growth.plan import Plan, plan
from unitscale.growth.state import grow_optimizer
from unitscale.growth.verify import Proof, verify
from unitscale.train.config import TrainConfig

__all__ = ["Written", "grow_folder"]

LINEAGE = "growth.json"
"""Beside a grown model: the plan, the proof, and what it came from."""


@dataclass(frozen=True, kw_only=True)
class Written(Outcome):
    """What growth did to a folder.

    Attributes:
        proof: that the function was kept; None where it was only planned.
    """

    proof: Proof | None = None

    def shown(self) -> dict[str, Any]:
        """The proof."""
        return {"proof": None if self.proof is None else asdict(self.proof)}


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
    done = Written(plan=made, folder=out, proof=checked(model, grown, made))
    write_model(grown, source, done, LINEAGE)
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
    run = Run.read(source, description, "growth")
    small = run.model
    made = plan(small, **asked)
    check_run(made, run.config)
    seed = run.config.seed + 1 if run_seed is None else run_seed
    config = changed_config(run.config, made.target, steps, seed)
    if not write:
        return Written(plan=made)
    grown = apply(small, made)
    return write_run(
        run,
        grown,
        config,
        Written(plan=made, folder=out, proof=checked(small, grown, made)),
        LINEAGE,
        optimizer=lambda old, new: grow_optimizer(old, new, small=small, grown=grown, plan=made),
        passage=growing(made, small, grown),
    )


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
