"""Which runs a comparison has, and whether its folder may take them. Imports no torch."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from unitscale.data import Corpus
from unitscale.train.config import TrainConfig
from unitscale.train.run_folder import check_run, make_folder

OUTPUTS = ("results.json", "loss.png", "report.html")


def plan_runs(
    base: TrainConfig,
    recipes: Sequence[str],
    seeds: Sequence[int],
    *,
    standard_lr: float | None = None,
    unit_lr: float | None = None,
) -> list[TrainConfig]:
    """One configuration per seed and recipe, all recipes of a seed in a row.

    Nothing differs between them but the recipe, the seed, and the learning rate that goes with the
    recipe's parametrization. An existing model has one parametrization, and so one learning rate.

    Raises:
        ValueError: `unit_lr` for an existing model.
    """
    if base.existing is not None and unit_lr is not None:
        raise ValueError(
            f"--unit-lr has no meaning for {base.existing}, whose learning rate is the same with "
            "units; use --lr"
        )
    return [
        replace(config, lr=unit_lr if config.is_written_unit_scaled else standard_lr)
        for config in (
            replace(base, recipe=recipe, seed=seed) for seed in seeds for recipe in recipes
        )
    ]


def run_folder(folder: Path, config: TrainConfig) -> Path:
    """Where a comparison in `folder` keeps one of its runs."""
    return folder / "runs" / f"{config.recipe}-seed{config.seed}"


def claim_comparison(
    folder: Path, configs: Sequence[TrainConfig], corpus: Corpus, *, resume: bool
) -> None:
    """Make sure that `folder` can take these runs, or raise before anything in it changes.

    Raises:
        FileExistsError: it holds results, and `resume` is off.
        ValueError: it holds runs with another configuration, or more runs than these.
        OSError: it cannot be written.
    """
    own = {run_folder(folder, config): config for config in configs}
    others = set((folder / "runs").glob("*")) - own.keys()
    if not resume:
        for path in (folder / "runs", *(folder / name for name in OUTPUTS)):
            if path.exists():
                raise FileExistsError(
                    f"{folder} holds a comparison already ({path.name} exists); add --resume to "
                    "continue it, or choose another folder"
                )
    elif others:
        raise ValueError(
            f"{folder} also holds the run {min(others).name}, which is not among the "
            f"{len(own)} of this comparison; name all of its recipes and seeds, or choose another "
            "folder"
        )
    for path, config in own.items():
        check_run(path, config, corpus, resume=resume)
    make_folder(folder)
