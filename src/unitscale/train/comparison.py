"""The main job: one model, one text, the same batches, several recipes; nothing else differs."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from unitscale.data import Corpus
from unitscale.report import Curve, summarize
from unitscale.train.config import TrainConfig
from unitscale.train.cost import cost_of
from unitscale.train.divergence import FINAL_OVER
from unitscale.train.loop import train
from unitscale.train.named import is_own
from unitscale.train.paper import check_recipes
from unitscale.train.planned import claimed_comparison, run_folder
from unitscale.train.ranks import held_by_lead
from unitscale.train.run_folder import LOG, Record, own_recipe
from unitscale.train.run_log import losses, read_log
from unitscale.train.spread import WHOLE, Spread

OnRecord = Callable[[TrainConfig, Record], None]


def compare(
    configs: Sequence[TrainConfig],
    corpus: Corpus,
    folder: Path,
    *,
    resume: bool = False,
    on_record: OnRecord = lambda config, record: None,
    tensorboard: bool = False,
    spread: Spread = WHOLE,
) -> Iterator[dict[str, Any]]:
    """Make the runs one after the other; yield the results so far after each.

    The results have the keys of results.json: `runs`, an entry per recipe and seed, `summary`, an
    entry per recipe, `recipes`, what each costs beside its losses, and what was run on what.

    Raises:
        As `claimed_comparison` and `train`.
    """
    with held_by_lead(spread, claimed_comparison(folder, configs, corpus, resume=resume)):
        yield from compare_claimed(
            configs, corpus, folder, on_record=on_record, tensorboard=tensorboard, spread=spread
        )


def compare_claimed(
    configs: Sequence[TrainConfig],
    corpus: Corpus,
    folder: Path,
    *,
    on_record: OnRecord = lambda config, record: None,
    tensorboard: bool = False,
    spread: Spread = WHOLE,
) -> Iterator[dict[str, Any]]:
    """`compare` in a folder that the caller holds (`planned.claimed_comparison`).

    Every recipe is checked against the model before the first run.
    """
    check_recipes(configs)
    runs: list[dict[str, Any]] = []
    for config in configs:
        result = train(
            config,
            corpus,
            run_folder(folder, config),
            resume=True,  # the folder of the comparison was checked
            on_record=lambda record, config=config: on_record(config, record),  # type: ignore[misc]
            tensorboard=tensorboard,
            spread=spread,
        )
        runs.append(
            asdict(result) | {"lr": config.peak_lr, "unit_scaled": config.numerics.unit_scaled}
        )
        yield {
            "data": corpus.name,
            "model": config.model_name,
            "steps": config.steps,
            "final_train_loss_over": FINAL_OVER,
            "runs": runs,
            "summary": [
                asdict(summary)
                for summary in summarize(runs, is_existing=config.existing is not None)
            ],
            "recipes": {
                one.recipe_name: cost_of(one.numerics)
                | (own_recipe(one) if is_own(one.recipe) else {})
                for one in configs[: len(runs)]
            },
            "runs_planned": len(configs),
            "config": without(config.to_json(), "recipe", "seed", "lr"),
            "model_config": config.model_options,
            "corpus": {
                "fingerprint": corpus.fingerprint,
                "train_bytes": len(corpus.train),
                "valid_bytes": len(corpus.valid),
            },
        }


def without(values: dict[str, Any], *keys: str) -> dict[str, Any]:
    """A dict less the keys in which the runs of a comparison differ."""
    return {key: value for key, value in values.items() if key not in keys}


def loss_curves(folder: Path, configs: Sequence[TrainConfig], runs: Sequence[Any]) -> list[Curve]:
    """The training losses of the finished runs of a comparison, from their logs."""
    return [
        Curve(
            recipe=run["recipe"],
            losses=losses(read_log(run_folder(folder, config) / LOG)),
            diverged=run["diverged"],
            unit_scaled=run["unit_scaled"],
        )
        for config, run in zip(configs, runs, strict=False)
    ]
