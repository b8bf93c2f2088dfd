"""The report of a folder: of a run, of a comparison, or of a recording on its own."""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from unitscale.report.curve import Curve
from unitscale.report.html import write_html
from unitscale.report.parquet import SUFFIX
from unitscale.report.recording import Recording, known_recipe, read_recording, read_rows
from unitscale.report.shape import (
    CONFIG,
    DESCRIPTION,
    LOG_LINE,
    RESULTS,
    RUN,
    check,
    read_object,
)
from unitscale.report.version import check_version

RESULTS_VERSION, RUN_VERSION = 1, 2
"""The newest formats of results.json and of a run that are read here. `unitscale train` writes the
second; results.json says no number yet."""

RECORDING = "numerics.jsonl"
REPORT = "report.html"

ProductsOf = Callable[[str], Sequence[tuple[str, str, str, str]]]


def products_of(recipe: str) -> Sequence[tuple[str, str, str, str]]:
    """The three products of a recipe; none for a name of another version, or one's own."""
    found = known_recipe(recipe)
    return () if found is None else found.products()


@dataclass(frozen=True, kw_only=True)
class Contents:
    """What a folder holds, read and checked: the arguments of `write_html`.

    Args:
        results: as results.json has them; None for a recording on its own.
        configuration: what to show as such.
    """

    title: str
    recordings: Sequence[Recording]
    curves: Sequence[Curve] = ()
    results: Mapping[str, Any] | None = None
    recipes: Sequence[str] = ()
    configuration: Mapping[str, Any] | None = field(default=None)


def write_report(
    folder: Path, path: Path | None = None, *, products_of: ProductsOf = products_of
) -> Path:
    """Write report.html from what `compare`, `train` or `record.record` left; returns its path.

    Args:
        folder: a comparison (results.json), a run (config.json) or a file of `record`.
        path: where to; report.html in the folder, or beside the file, unless given.
        products_of: the three products of a recipe by its name.
    Raises:
        FileNotFoundError: none of these is there.
        ValueError: a file is damaged, or holds something else; nothing is written.
        OSError: the page cannot be written.
    """
    path = path or report_path(folder)
    write_contents(read_contents(folder), path, products_of=products_of)
    return path


def report_path(folder: Path) -> Path:
    """Where the report of a folder goes unless it is said."""
    return folder.with_name(REPORT) if folder.is_file() else folder / REPORT


def write_contents(
    contents: Contents, path: Path, *, products_of: ProductsOf = products_of
) -> None:
    """Write the page of what was read.

    Raises:
        OSError: the page cannot be written.
    """
    write_html(
        contents.recordings,
        path,
        title=contents.title,
        curves=contents.curves,
        results=contents.results,
        products={name: rows for name in contents.recipes if (rows := products_of(name))},
        configuration=contents.configuration,
    )


def read_contents(folder: Path) -> Contents:
    """What is in a folder, or in the file of a recording.

    Raises:
        FileNotFoundError, ValueError: as `write_report`.
    """
    if folder.is_file():
        return Contents(title=folder.stem, recordings=[read_whole(folder)])
    if (folder / "results.json").exists():
        return read_comparison(folder)
    if (folder / "config.json").exists():
        return read_run(folder)
    if path := recording_path(folder):
        return Contents(title=folder.name, recordings=[read_whole(path)])
    raise FileNotFoundError(
        f"{folder} holds no run: expected results.json of `unitscale compare`, config.json of "
        f"`unitscale train`, or {RECORDING} of record.record"
    )


def run_name(recipe: str, seed: int) -> str:
    """The folder of a run in that of its comparison; a person may call a recipe anything."""
    safe = re.sub(r"[^\w.()+=,-]", "_", recipe)
    return f"{safe}-seed{seed}"


def read_comparison(folder: Path) -> Contents:
    """All runs of a comparison."""
    path = folder / "results.json"
    results = read_object(path, RESULTS)
    check_version(results.get("version"), RESULTS_VERSION, str(path))
    runs = results["runs"]
    for number, run in enumerate(runs, 1):
        check(run, RUN, f"{path}: run {number}")
    several = len({run["seed"] for run in runs}) > 1
    curves: list[Curve] = []
    recordings: list[Recording] = []
    for run in runs:
        own = folder / "runs" / run_name(run["recipe"], run["seed"])
        label = f"{run['recipe']} seed {run['seed']}" if several else run["recipe"]
        curves += curve_of(own, run)
        recordings += recording_of(own, label, run["recipe"])
    return Contents(
        title="Low-precision recipes side by side",
        recordings=recordings,
        curves=curves,
        results=results,
        recipes=list(dict.fromkeys(run["recipe"] for run in runs)),
        configuration={k: v for k, v in results.items() if k not in ("runs", "summary")},
    )


def read_run(folder: Path) -> Contents:
    """One run, finished or not."""
    description = read_description(folder)
    config = description["config"]
    recipe = recipe_name(description)
    result = folder / "result.json"
    outcome = read_object(result, RUN) if result.exists() else {"recipe": recipe, "diverged": False}
    return Contents(
        title=f"{recipe}: a run of {config['steps']} step{'' if config['steps'] == 1 else 's'}",
        recordings=recording_of(folder, recipe, recipe),
        curves=curve_of(folder, outcome),
        results={
            "model": config.get("existing") or config.get("model", {}).get("layer", "attention"),
            "data": description["data"],
            "steps": config["steps"],
            "runs": [outcome] if result.exists() else [],
            "config": config,
        },
        recipes=[recipe],
        configuration=description,
    )


def recipe_name(description: Mapping[str, Any]) -> str:
    """The name of a run's recipe; the configuration says where a person's own one is."""
    own = description.get("recipe")
    if isinstance(own, Mapping) and "name" in own:
        return str(own["name"])
    return str(description["config"]["recipe"])


def read_description(folder: Path) -> dict[str, Any]:
    """The config.json of a run."""
    path = folder / "config.json"
    description = read_object(path, DESCRIPTION)
    check_version(description.get("version"), RUN_VERSION, str(path))
    check(description["config"], CONFIG, f"{path}: config")
    return description


def curve_of(folder: Path, run: Mapping[str, Any]) -> list[Curve]:
    """The losses of a run from its log; none if it has no step yet."""
    if not (folder / "log.jsonl").exists():
        return []
    found = [row["loss"] for row in read_rows(folder / "log.jsonl", LOG_LINE) if "loss" in row]
    curve = Curve(
        recipe=run["recipe"],
        losses=[math.nan if loss is None else loss for loss in found],
        diverged=run["diverged"],
        unit_scaled=run.get("unit_scaled", True),
        reported=run.get("final_train_loss"),
    )
    return [curve] if found else []


def recording_of(folder: Path, label: str, recipe: str) -> list[Recording]:
    """The recording of a run, if it was recorded."""
    path = recording_path(folder)
    return [] if path is None else [read_recording(path, label=label, recipe=recipe)]


def recording_path(folder: Path) -> Path | None:
    """The file of a recording in a folder, JSONL or Parquet; None if there is none."""
    path = folder / RECORDING
    return next((p for p in (path, path.with_suffix(SUFFIX)) if p.exists()), None)


def read_whole(path: Path, recipe: str | None = None) -> Recording:
    """The recording in a file, which holds at least one row.

    Raises:
        ValueError: it is damaged, or holds no row.
    """
    recording = read_recording(path, recipe=recipe)
    if not recording.series:
        raise ValueError(f"{path} holds no row of a recording; is it a file of record.record?")
    return recording


def find_recordings(source: Path) -> dict[str, Recording]:
    """The recordings in a file, a run's folder or a comparison's folder, by the name of the run.

    Raises:
        FileNotFoundError: there is none.
        ValueError: one is damaged or holds no row.
    """
    if source.is_file():
        return {source.stem: read_whole(source)}
    folders = [source, *sorted((source / "runs").glob("*"))]
    found = {folder: path for folder in folders if (path := recording_path(folder))}
    if not found:
        what = "was not recorded" if source.exists() else "does not exist"
        raise FileNotFoundError(f"{source} {what}; record a run with --set record_every=50")
    return {folder.name: read_whole(path, recipe_of(folder)) for folder, path in found.items()}


def recipe_of(folder: Path) -> str | None:
    """The recipe of the run in a folder; None where no run is."""
    if not (folder / "config.json").exists():
        return None
    return recipe_name(read_description(folder))
