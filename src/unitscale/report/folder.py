"""The report of a folder: of a run, of a comparison, or of a recording on its own."""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from unitscale.report.html import write_html
from unitscale.report.plot import Curve
from unitscale.report.recording import Recording, read_recording, read_rows

RECORDING = "numerics.jsonl"
REPORT = "report.html"

ProductsOf = Callable[[str], Sequence[tuple[str, str, str, str]]]


def write_report(
    folder: Path, path: Path | None = None, *, products_of: ProductsOf = lambda recipe: ()
) -> Path:
    """Write report.html from what `compare`, `train` or `record.record` left; returns its path.

    Args:
        folder: a comparison (results.json), a run (config.json) or a JSONL file of `record`.
        path: where to; report.html in the folder, or beside the file, unless given.
        products_of: the three products of a recipe by its name.
    Raises:
        FileNotFoundError: none of these is there.
        ValueError: a file is damaged.
    """
    if folder.is_file():
        path = path or folder.with_name(REPORT)
        write_html([read_recording(folder)], path, title=folder.stem)
        return path
    path = path or folder / REPORT
    if (folder / "results.json").exists():
        results = read_object(folder / "results.json")
        if "runs" not in results:
            raise ValueError(f"{folder / 'results.json'} has no runs; expected that of `compare`")
        write_comparison(results, folder, path, products_of)
    elif (folder / "config.json").exists():
        write_run(folder, path, products_of)
    elif (folder / RECORDING).exists():
        write_html([read_recording(folder / RECORDING)], path, title=folder.name)
    else:
        raise FileNotFoundError(
            f"{folder} holds no run: expected results.json of `unitscale compare`, config.json of "
            f"`unitscale train`, or {RECORDING} of record.record"
        )
    return path


def write_comparison(
    results: Mapping[str, Any], folder: Path, path: Path, products_of: ProductsOf
) -> None:
    """The report of a comparison: all of its runs."""
    runs = results["runs"]
    several = len({run["seed"] for run in runs}) > 1
    curves, recordings = [], []
    for run in runs:
        own = folder / "runs" / f"{run['recipe']}-seed{run['seed']}"
        label = f"{run['recipe']} seed {run['seed']}" if several else run["recipe"]
        curves += curve_of(own, run)
        recordings += recording_of(own, label)
    write_html(
        recordings,
        path,
        title="Low-precision recipes side by side",
        curves=curves,
        results=results,
        products=products({run["recipe"]: None for run in runs}, products_of),
        configuration={k: v for k, v in results.items() if k not in ("runs", "summary")},
    )


def write_run(folder: Path, path: Path, products_of: ProductsOf) -> None:
    """The report of one run, finished or not."""
    description = read_object(folder / "config.json")
    config = description["config"]
    recipe = config["recipe"]
    result = folder / "result.json"
    outcome = read_object(result) if result.exists() else {"recipe": recipe, "diverged": False}
    model = config.get("model") or {}
    results = {
        "model": model.get("layer", "attention") if isinstance(model, Mapping) else model,
        "data": description["data"],
        "steps": config["steps"],
        "runs": [outcome] if result.exists() else [],
    }
    write_html(
        recording_of(folder, recipe),
        path,
        title=f"{recipe}: a run of {config['steps']} steps",
        curves=curve_of(folder, outcome),
        results=results,
        products=products({recipe: None}, products_of),
        configuration=description,
    )


def products(
    recipes: Mapping[str, None], products_of: ProductsOf
) -> dict[str, Sequence[tuple[str, str, str, str]]]:
    """The products of each recipe that is known."""
    return {recipe: rows for recipe in recipes if (rows := products_of(recipe))}


def curve_of(folder: Path, run: Mapping[str, Any]) -> list[Curve]:
    """The losses of a run from its log; none if it has no step yet."""
    if not (folder / "log.jsonl").exists():
        return []
    found = [row["loss"] for row in read_rows(folder / "log.jsonl") if "loss" in row]
    losses = [math.nan if loss is None else loss for loss in found]
    unit_scaled = run.get("unit_scaled", True)
    curve = Curve(
        recipe=run["recipe"], losses=losses, diverged=run["diverged"], unit_scaled=unit_scaled
    )
    return [curve] if losses else []


def recording_of(folder: Path, label: str) -> list[Recording]:
    """The recording of a run, if it was recorded."""
    path = folder / RECORDING
    return [read_recording(path, label=label)] if path.exists() else []


def read_object(path: Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        ValueError: not JSON, or no object.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is damaged ({error})") from error
    if not isinstance(found, dict):
        raise ValueError(f"{path} holds a {type(found).__name__}; expected an object")
    return found
