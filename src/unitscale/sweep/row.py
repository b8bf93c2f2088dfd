"""One run of a sweep as one flat row: what runs.jsonl and runs.csv hold. Imports no torch."""

import csv
import io
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unitscale.report.atomic import write_text
from unitscale.sweep.cpu import cpu_seconds
from unitscale.sweep.point import Point
from unitscale.train.divergence import EXPLOSION, RISE, WINDOW, has_exploded
from unitscale.train.result import RunResult, finished
from unitscale.train.run_folder import LOG, RESULT, Record, without_nan
from unitscale.train.run_log import losses, read_log

Row = dict[str, Any]

FINISHED, DIVERGED, FAILED = "finished", "diverged", "failed"

JSONL, CSV = "runs.jsonl", "runs.csv"

SIZE = ("width", "depth")


@dataclass(frozen=True)
class Count:
    """How many parameters a model has.

    Args:
        total: all of them, one that is used twice once.
        embedding: those of its `nn.Embedding` tables.
    """

    total: int
    embedding: int


def row_of(point: Point, folder: Path, count: Count) -> Row | None:
    """The row of a run that is done, from its folder; None if it is not done.

    The same however often the run was stopped, and whoever made it.

    Raises:
        CheckpointError: its log or its result is damaged.
    """
    if not (folder / RESULT).exists():
        return None
    result = finished(point.config, folder)
    records = read_log(folder / LOG)
    reason = why_diverged(losses(records)) if result.diverged else None
    return (
        base(point, count)
        | measured(point, result, records, cpu_seconds(folder))
        | {"reason": reason}
    )


def failed(point: Point, count: Count, reason: str) -> Row:
    """The row of a run that could not be made, and why."""
    blank = dict.fromkeys(MEASURED)
    return base(point, count) | blank | {"status": FAILED, "diverged": False, "reason": reason}


def base(point: Point, count: Count) -> Row:
    """What is known of a run before it is made."""
    config = point.config
    return {
        "name": point.name,
        "recipe": config.recipe,
        "model": config.model_name,
        **{name: point.options.get(name) for name in SIZE},
        "lr": config.peak_lr,
        "seed": config.seed,
        "n_params": count.total,
        "n_embedding_params": count.embedding,
        "config": config.to_json() | {"model": point.options},
    }


MEASURED = (
    *("n_tokens", "loss", "train_loss", "status", "diverged", "steps_done", "seconds", "cpu_s"),
    *("tokens_per_s", "bytes_saved_for_backward", "coverage"),
)


def measured(
    point: Point, result: RunResult, records: Sequence[Record], cpu_s: float | None
) -> Row:
    """What a run that is done was."""
    config = point.config
    tokens = config.batch_size * config.sequence_length
    rates = [record["tokens_per_s"] for record in records if record.get("tokens_per_s")]
    found = {
        "n_tokens": result.steps_done * tokens,
        # A run that exploded was stopped; what it would score says nothing about its size.
        "loss": None if result.diverged else result.valid_loss,
        "train_loss": result.final_train_loss,
        "status": DIVERGED if result.diverged else FINISHED,
        "diverged": result.diverged,
        "steps_done": result.steps_done,
        "seconds": round(sum(tokens / rate for rate in rates), 3),
        "cpu_s": None if cpu_s is None else round(cpu_s, 3),
        "tokens_per_s": result.tokens_per_s,
        "bytes_saved_for_backward": result.peak_bytes_saved_for_backward,
        "coverage": result.coverage,
    }
    assert tuple(found) == MEASURED
    return found


def why_diverged(found: Sequence[float]) -> str:
    """In which way the losses of a diverged run are bad."""
    blank = next((step for step, loss in enumerate(found, 1) if not math.isfinite(loss)), None)
    if blank is not None:
        return f"the loss is no number at step {blank}"
    if has_exploded(found):
        return (
            f"the mean loss of the last {WINDOW} steps was more than {EXPLOSION} nats above the "
            f"first loss at step {len(found)}, where the run was stopped"
        )
    return f"it ended more than {RISE} nats above its own best"


def write_rows(out: Path, rows: Sequence[Row]) -> None:
    """Write runs.jsonl and runs.csv, each whole or not at all."""
    lines = (json.dumps(without_nan(row), allow_nan=False) + "\n" for row in rows)
    write_text(out / JSONL, "".join(lines))
    write_text(out / CSV, as_csv(rows))


def as_csv(rows: Sequence[Row]) -> str:
    """Rows as CSV: the configuration's fields are columns, options of the model `model.NAME`.

    What is None is an empty cell; a list is written as JSON.
    """
    flat = [flattened(row) for row in rows]
    titles = list(dict.fromkeys(title for row in flat for title in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, titles, restval="", lineterminator="\n")
    writer.writeheader()
    for row in flat:
        writer.writerow({title: cell(value) for title, value in row.items()})
    return text.getvalue()


def flattened(row: Row) -> Row:
    """A row without nested values. What a column of its own holds is not repeated."""
    config = dict(row["config"])
    model = config.pop("model")
    own = {key: value for key, value in row.items() if key != "config"}
    more = {key: value for key, value in config.items() if key not in own}
    options = {f"model.{key}": value for key, value in model.items() if key not in SIZE}
    return own | more | options


def cell(value: Any) -> Any:
    """A value as a cell of CSV."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    return json.dumps(value) if isinstance(value, list | dict) else value
