"""One run of a sweep in this process: what engines for clusters call.

With submitit, whose executor is made and configured by the caller:

    executor = submitit.AutoExecutor("logs")
    executor.update_parameters(cpus_per_task=4, timeout_min=120)
    jobs = submit(read_grid(Path("grid.toml")), Path("/shared/lr"), executor, threads=4)
    rows = [job.result() for job in jobs]

With Ray Tune, which chooses the points itself:

    tune.Tuner(
        trainable(Path("/shared/lr"), base={"recipe": "fp8", "steps": 300}),
        param_space={"lr": tune.grid_search([0.5, 1.0]), "model.width": 64},
    ).fit()

The folders are those of `unitscale sweep`, whose `--resume` reads them.
"""

import traceback
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

from unitscale.report.extra import imported
from unitscale.sweep.cpu import counting_cpu
from unitscale.sweep.grid import Grid, grid_of
from unitscale.sweep.point import Point
from unitscale.sweep.row import FAILED, Row, failed, row_of


def run_point(point: Point, out: Path, *, data: Path | None = None, threads: int = 1) -> Row:
    """Make the run of a point, or go on with it; its row. A run that failed has one too.

    Args:
        out: the folder of the sweep. data: the text; None is the built-in one.

    Raises:
        KeyboardInterrupt: stopped by a signal; the last step is in the checkpoint.
        ModelError: the model cannot be built.
    """
    import torch

    from unitscale.data import open_corpus
    from unitscale.sweep.count import count_of
    from unitscale.train.loop import train

    torch.set_num_threads(threads)
    count, folder = count_of(point.config), point.folder(out)
    try:
        with counting_cpu(folder):
            train(point.config, open_corpus(data), folder, resume=True)
        row = row_of(point, folder, count)
        assert row is not None
        return row
    except Exception as error:
        traceback.print_exc()
        return failed(point, count, f"{type(error).__name__}: {' '.join(str(error).split())}")


def submit(grid: Grid, out: Path, executor: Any, *, threads: int = 1) -> list[Any]:
    """One job of submitit for each point of a grid; `job.result()` is its row.

    Args:
        executor: of submitit: `AutoExecutor`, `LocalExecutor` or one of your own.
    """
    data = None if grid.data is None else grid.data.resolve()
    make = partial(run_point, out=out.resolve(), data=data, threads=threads)
    return list(executor.map_array(make, grid.points))


def trainable(
    out: Path,
    *,
    data: Path | None = None,
    threads: int = 1,
    base: Mapping[str, Any] = MappingProxyType({}),
) -> Callable[[dict[str, Any]], None]:
    """A function that Ray Tune calls with the values of a trial; it reports the row of its run.

    `loss` is infinite where the run diverged. A run that failed fails its trial.

    Args:
        out: an absolute path: trials run in folders of their own.
        base: fields that all trials share; options of the model are "model.NAME".

    Raises:
        ValueError: Ray is not installed, or `out` or `data` is a relative path.
    """
    imported("ray")
    for path in (out, data):
        if path is not None and not path.is_absolute():
            raise ValueError(f"{path} is a relative path, and trials run elsewhere; resolve it")

    def train_one(values: dict[str, Any]) -> None:
        row = run_point(point_of({**base, **values}), out, data=data, threads=threads)
        if row["status"] == FAILED:
            raise RuntimeError(row["reason"])
        loss = float("inf") if row["loss"] is None else row["loss"]
        imported("ray.tune").report({**row, "loss": loss})

    return train_one


def point_of(values: Mapping[str, Any]) -> Point:
    """The one point that flat values describe.

    Raises:
        ValueError, TypeError: as `grid_of`; or a value that is a list.
    """
    content = {key: value for key, value in values.items() if not key.startswith("model.")}
    options = {key.removeprefix("model."): values[key] for key in values.keys() - content.keys()}
    if options:
        content["model"] = {**content.get("model", {}), **options}
    points = grid_of(content).points
    if len(points) != 1:
        raise ValueError(f"the values make {len(points)} points; expected one: no lists")
    return points[0]
