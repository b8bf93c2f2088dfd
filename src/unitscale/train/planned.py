"""Which runs a comparison has, and whether its folder may take them. Imports no torch."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from unitscale.data import Corpus
from unitscale.report.folder import run_name
from unitscale.train.config import TrainConfig
from unitscale.train.lock import locked
from unitscale.train.named import find_recipe
from unitscale.train.run_folder import CHECKPOINT, CONFIG, LOG, check_run, make_folder
from unitscale.train.unbegun import made_for_this, undone_unless_begun

BASELINE, CONTROL = "fp32", "fp32-units"

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
        ValueError: `unit_lr` for an existing model; two recipes of one name.
    """
    if base.existing is not None and unit_lr is not None:
        raise ValueError(
            f"--unit-lr has no meaning for {base.existing}, whose learning rate is the same with "
            "units; use --lr"
        )
    named: dict[str, str] = {}
    for recipe in recipes:
        name = find_recipe(recipe).name
        if named.setdefault(run_name(name, 0), recipe) != recipe:
            other = named[run_name(name, 0)]
            raise ValueError(
                f"{other} and {recipe} are both called {name!r}, or so alike that their folders "
                "would be one; give one another name"
            )
    return [
        replace(config, lr=unit_lr if config.is_written_unit_scaled else standard_lr)
        for config in (
            replace(base, recipe=recipe, seed=seed) for seed in seeds for recipe in recipes
        )
    ]


def with_control(base: TrainConfig, recipes: Sequence[str]) -> list[str]:
    """The recipes of a comparison, with `fp32-units` where it is needed to read the others.

    Between `fp32` and a recipe of a model written unit-scaled two things differ: the
    parametrization, and what is rounded. `fp32-units` has the one without the other. An existing
    model computes the same with units, so that `fp32` is its control.
    """
    needs = base.existing is None and BASELINE in recipes and CONTROL not in recipes
    known = map(find_recipe, recipes)
    rounding = [
        recipe for recipe in known if recipe.unit_scaled and (recipe.rounds or recipe.throughout)
    ]
    if not (needs and rounding):
        return list(recipes)
    after = list(recipes).index(BASELINE) + 1
    return [*recipes[:after], CONTROL, *recipes[after:]]


def run_folder(folder: Path, config: TrainConfig) -> Path:
    """Where a comparison in `folder` keeps one of its runs."""
    return folder / "runs" / run_name(config.recipe_name, config.seed)


@contextmanager
def claimed_comparison(
    folder: Path, configs: Sequence[TrainConfig], corpus: Corpus, *, resume: bool
) -> Iterator[None]:
    """Hold `folder` for these runs inside the context, or raise before anything in it changes.

    What fails inside the context before the first step leaves the folder as it was.

    Raises:
        InUseError: another process is writing to it.
        FileExistsError: it holds results, and `resume` is off.
        ValueError: it holds runs with another configuration, or more runs than these.
        CheckpointError: one of its runs has a damaged configuration, or none.
        OSError: it cannot be written.
    """
    with made_for_this(folder):
        make_folder(folder)
        with locked(folder):
            check_comparison(folder, configs, corpus, resume=resume)
            with undone_unless_begun(folder, LOG):
                yield


def check_comparison(
    folder: Path, configs: Sequence[TrainConfig], corpus: Corpus, *, resume: bool
) -> None:
    """Raise if `folder` cannot take these runs; changes nothing.

    Raises:
        FileExistsError, ValueError, CheckpointError: as `claimed_comparison`.
    """
    own = {run_folder(folder, config): config for config in configs}
    others = set((folder / "runs").glob("*")) - own.keys()
    for name in (CONFIG, CHECKPOINT):
        if (folder / name).exists():
            raise ValueError(
                f"{folder} holds a run of `train` ({name} exists); choose another folder for a "
                "comparison"
            )
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
