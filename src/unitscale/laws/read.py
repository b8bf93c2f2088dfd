"""Rows of a law from files: a table of one's own, and what `sweep` and `compare` leave."""

import csv
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from unitscale.laws.row import Table, rows_of

SWEEP, COMPARISON = "runs.csv", "results.json"

CountParameters = Callable[[Mapping[str, Any]], tuple[int, int]]
"""From the entry of a run in results.json, with the settings of its comparison, to the parameters
of its model: all, and those in embedding tables. results.json has no such numbers."""


def read_rows(paths: Sequence[Path], *, count: CountParameters | None = None) -> Table:
    """The rows of files, together: CSV, JSONL, results.json, or folders of sweeps, comparisons.

    Args:
        count: the parameters of a run of a comparison; without it results.json is refused.
    Raises:
        ValueError: a file is no table, or a row of it is none: the message names the file.
        OSError: a file cannot be read.
    """
    found: list[Mapping[str, Any]] = []
    for given in paths:
        path = file_in(given)
        try:
            own = list(cells_of(path, count))
            rows_of(own)  # so that what is wrong with a row is said with its file
        except UnicodeDecodeError as error:
            raise ValueError(f"{path} is not UTF-8 ({error.reason}); expected a table") from error
        except (ValueError, csv.Error, RecursionError) as error:
            raise ValueError(f"{path}: {error}") from error
        if not own:
            raise ValueError(f"{path} has no row; expected one for each run")
        found += own
    return rows_of(found)


def file_in(path: Path) -> Path:
    """The file of a folder.

    Raises:
        FileNotFoundError: the folder has none, or there is nothing.
    """
    if not path.is_dir():
        return path
    for name in (SWEEP, COMPARISON):
        if (path / name).is_file():
            return path / name
    raise FileNotFoundError(
        f"{path} has no {SWEEP} and no {COMPARISON}; expected the folder of a sweep or a comparison"
    )


def cells_of(path: Path, count: CountParameters | None) -> Iterator[Mapping[str, Any]]:
    """Each row of a file by its columns.

    Raises:
        ValueError: no table of a kind that is known.
    """
    text = path.read_text(encoding="utf-8")
    if path.suffix.lower() == ".jsonl":
        for number, line in enumerate(text.splitlines(), 1):
            try:
                yield json.loads(line)
            except json.JSONDecodeError as error:
                raise ValueError(f"line {number} is not JSON ({error})") from error
    elif path.suffix.lower() == ".json":
        yield from comparison_cells(json.loads(text), count)
    else:
        lines = csv.DictReader(text.splitlines(), strict=True)
        for row in lines:
            if None in row or None in row.values():
                raise ValueError(
                    f"line {lines.line_num} has not as many cells as the first line has titles"
                )
            yield row


def comparison_cells(content: Any, count: CountParameters | None) -> Iterator[Mapping[str, Any]]:
    """The runs of a results.json.

    Raises:
        ValueError: it is none, or nobody counts its parameters.
    """
    runs = content.get("runs") if isinstance(content, Mapping) else None
    config = content.get("config") if isinstance(content, Mapping) else None
    if not isinstance(runs, list) or not isinstance(config, Mapping):
        raise ValueError("it has no runs with their config; expected the results.json of `compare`")
    for run in runs:
        if not isinstance(run, Mapping) or not {"recipe", "steps_done"} <= run.keys():
            raise ValueError("a run has no recipe or no steps_done; expected those of `compare`")
        if "n_params" in run:
            total, tables = run["n_params"], run.get("n_embedding_params", 0)
        elif count is not None:
            total, tables = count({**config, **run, "model_name": content.get("model")})
        else:
            raise ValueError(
                "it does not say how many parameters its models have; use `unitscale laws fit`, "
                "which counts them"
            )
        per_step = config.get("batch_size", 0) * config.get("sequence_length", 0)
        yield {
            "n_params": total,
            "n_embedding_params": tables,
            "n_tokens": run["steps_done"] * per_step,
            "loss": run.get("valid_loss"),
            "recipe": run["recipe"],
            "diverged": run.get("diverged", False),
            "lr": run.get("lr"),
            "seed": run.get("seed"),
            "model": content.get("model"),
        }
