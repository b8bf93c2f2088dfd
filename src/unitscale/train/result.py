"""What a finished run was, read from its log: the row that a comparison shows."""

import math
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

from unitscale.train.config import TrainConfig
from unitscale.train.divergence import final_loss, has_diverged
from unitscale.train.run_folder import (
    LOG,
    RESULT,
    CheckpointError,
    Record,
    read_object,
    without_nan,
)
from unitscale.train.run_log import losses, read_log


@dataclass(frozen=True, kw_only=True)
class RunResult:
    """What a finished run was: the row that a comparison shows. Losses are in nats a byte.

    `coverage` is the share of multiply-adds that the recipe rounds; None where it rounds nothing.
    `full_precision` has why the others are not rounded, each reason with its share; None likewise.
    """

    recipe: str
    seed: int
    final_train_loss: float | None
    valid_loss: float | None
    diverged: bool
    steps_done: int
    tokens_per_s: float
    peak_bytes_saved_for_backward: int
    share_in_range: dict[str, float | None]
    coverage: float | None = None
    full_precision: dict[str, float] | None = None


def finished(config: TrainConfig, folder: Path) -> RunResult:
    """The result of a run that is done, from its log, if its file says the same.

    Raises:
        CheckpointError: it does not, or the log is damaged.
    """
    records = read_log(folder / LOG)
    if not losses(records):
        raise CheckpointError(
            f"{folder / LOG} has no step, and {folder / RESULT} says that the run is done; restore "
            "it, or choose another folder"
        )
    result = result_of(config, records)
    # A version before did not say why products are in full precision, neither there nor in its log.
    if {"full_precision": None} | read_object(folder / RESULT) != without_nan(asdict(result)):
        raise CheckpointError(
            f"{folder / RESULT} is damaged (its log says otherwise); nothing was changed: delete "
            "it to have it written again"
        )
    return result


def result_of(config: TrainConfig, records: list[Record]) -> RunResult:
    """The row of a run, from its log: the same whether or not it was ever resumed."""

    def logged(key: str) -> list[Any]:
        return [record[key] for record in records if key in record]

    found = losses(records)
    return RunResult(
        recipe=config.recipe_name,
        seed=config.seed,
        final_train_loss=finite(final_loss(found)),
        valid_loss=valid_loss(records),
        diverged=has_diverged(found),
        steps_done=len(found),
        tokens_per_s=median(logged("tokens_per_s")),
        peak_bytes_saved_for_backward=logged("peak_bytes_saved_for_backward")[0],
        share_in_range=logged("share_in_range")[0],
        coverage=next(iter(logged("coverage")), None),
        full_precision=next(iter(logged("full_precision")), None),
    )


def valid_loss(records: list[Record]) -> float | None:
    """The validation loss after the last step; None if there is none, or it is not finite."""
    last = records[-1]
    return finite(last.get("valid_loss")) if last["step"] == len(losses(records)) else None


def finite(value: float | None) -> float | None:
    """The value, or None if it is not a finite number."""
    return value if value is not None and math.isfinite(value) else None
