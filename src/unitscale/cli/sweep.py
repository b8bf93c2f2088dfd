"""`unitscale sweep`: a grid of runs, side by side on this machine, or as commands for another."""

import json as json_module
import sys
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from unitscale.cli import option
from unitscale.cli.exit import FAILED, checking_arguments, fail, running
from unitscale.cli.output import show

if TYPE_CHECKING:
    from unitscale.data import Corpus
    from unitscale.sweep import Point
    from unitscale.sweep.cores import Share
    from unitscale.sweep.grid import Grid
    from unitscale.sweep.row import Count, Row

RUN = "Run"


def sweep(
    grid: Annotated[
        Path,
        typer.Argument(
            metavar="GRID",
            parser=option.given_path,
            help="TOML file of settings of `train`: a list is swept, anything else is fixed, and "
            "[[grid]] tables unite. docs/sweeps.md has examples.",
        ),
    ],
    out: Annotated[
        Path,
        typer.Option(
            parser=option.given_path,
            metavar="FOLDER",
            help="Folder of the sweep.",
            rich_help_panel=RUN,
        ),
    ] = Path("sweep"),
    data: option.Data = None,
    workers: Annotated[
        int | None,
        typer.Option(
            help="Runs at the same time. Default: one for each core; on a GPU, one.",
            rich_help_panel=RUN,
            show_default=False,
        ),
    ] = None,
    threads: Annotated[
        int | None,
        typer.Option(
            help="CPU threads of a run. Default: the cores shared among the workers.",
            rich_help_panel=RUN,
            show_default=False,
        ),
    ] = None,
    device: Annotated[
        str | None,
        typer.Option(
            help="Where to train, unless the grid says: auto, cpu, cuda or cuda:NUMBER.",
            rich_help_panel=RUN,
            show_default="auto",
        ),
    ] = None,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume",
            help="Go on with what --out holds; the grid may have grown. Failed runs are made "
            "again.",
            rich_help_panel=RUN,
        ),
    ] = False,
    list_commands: Annotated[
        bool,
        typer.Option(
            "--list",
            help="Print a shell command for each run, and make none: for job arrays.",
            rich_help_panel=RUN,
        ),
    ] = False,
    json: option.Json = False,
) -> None:
    """Train every point of a grid, and find the best learning rate of each recipe and size.

    The folder gets runs.csv and runs.jsonl (a row a run), results.md, summary.json, lr.png and a
    folder for each run. Every point is checked before the first is trained. Stop it at any time,
    by Ctrl-C or worse: --resume goes on.
    """
    from unitscale.data import open_corpus
    from unitscale.report.extra import imported
    from unitscale.report.wording import plural
    from unitscale.sweep.folder import claimed_sweep, recorded_threads
    from unitscale.sweep.grid import read_grid

    with ExitStack() as held:
        with checking_arguments():
            found = read_grid(grid)
            points = found.points
            text = text_of(found, data)
            corpus = open_corpus(text)
            for point in points:
                config = point.config
                corpus.require(batch_size=config.batch_size, length=config.sequence_length + 1)
            share = share_for(points, workers, threads, recorded_threads(out), found, device)
            points = on_device(points, found, device)
            counts = checked_models(points)
            if not list_commands:
                imported("matplotlib")  # before anything is computed: lr.png is drawn at the end
                held.enter_context(
                    claimed_sweep(out, points, corpus, threads=share.threads, resume=resume)
                )
        if list_commands:
            list_runs(points, out, text, share.threads, json=json)
            return
        with running():
            rows = make_runs(points, counts, out, text, corpus, share, found.repeated)
            print_results(rows, out, json=json)
            broken = [row for row in rows if row["status"] == "failed"]
            if broken:
                fail(
                    f"{len(broken)} of {plural(len(rows), 'run')} failed, the first with: "
                    f"{broken[0]['reason']}; --resume makes them again",
                    code=FAILED,
                )


def text_of(grid: "Grid", data: Path | None) -> Path | None:
    """The text of a sweep, an absolute path so that its commands work from anywhere.

    Raises:
        ValueError: the grid names another than --data.
    """
    if data is not None and grid.data is not None and data.resolve() != grid.data.resolve():
        raise ValueError(f"--data is {data}, and the grid's data is {grid.data}; leave one out")
    found = data or grid.data
    return None if found is None else found.resolve()


def share_for(
    points: "tuple[Point, ...]",
    workers: int | None,
    threads: int | None,
    recorded: int | None,
    grid: "Grid",
    device: str | None,
) -> "Share":
    """How the cores are shared.

    Raises:
        ValueError: as `share_of`; or --device beside a grid that names one.
    """
    from unitscale.sweep.cores import available_cores, share_of

    if grid.names_device and device is not None:
        raise ValueError(f"--device is {device}, and the grid names a device; leave one out")
    names = {device or "auto"} if not grid.names_device else {p.config.device for p in points}
    on_gpu = any(resolved(name) != "cpu" for name in names)
    return share_of(
        available_cores(),
        runs=len(points),
        workers=workers,
        threads=threads,
        recorded=recorded,
        on_gpu=on_gpu,
    )


def resolved(device: str) -> str:
    """The device of that name; torch is imported only where it has to be asked.

    Raises:
        ValueError: there is none.
    """
    if device == "cpu":
        return device
    from unitscale.train.device import resolve

    return resolve(device)


def on_device(points: "tuple[Point, ...]", grid: "Grid", device: str | None) -> "tuple[Point, ...]":
    """The points on the device that --device names, if the grid names none."""
    from unitscale.sweep.point import Point

    if grid.names_device:
        return points
    name = resolved(device or "auto")
    return tuple(Point.of(replace(point.config, device=name)) for point in points)


def list_runs(
    points: "tuple[Point, ...]", out: Path, data: Path | None, threads: int, *, json: bool
) -> None:
    """Print a command for each run."""
    commands = [point.command(out, data=data, threads=threads) for point in points]
    if json:
        listed = zip(points, commands, strict=True)
        runs = [{"name": point.name, "command": command} for point, command in listed]
        print(json_module.dumps(runs, indent=2))
        return
    print("\n".join(commands))


def checked_models(points: "tuple[Point, ...]") -> "dict[str, Count]":
    """The parameters of every point's model, each of which is built once to see that it can be.

    Raises:
        ValueError: a model cannot be built.
    """
    from unitscale.models.existing import find_factory
    from unitscale.sweep.count import count_of
    from unitscale.train.initial import ModelError

    counts: dict[str, Count] = {}
    known: dict[str, Count] = {}
    for point in points:
        config = point.config
        shape = [config.existing, point.options, config.sequence_length, config.recipe]
        shape.append(config.lr is None)
        key = json_module.dumps(shape, sort_keys=True)
        if key not in known:
            if config.existing is not None:
                find_factory(config.existing, config.model_options)
            try:
                known[key] = count_of(config)
            except ModelError as error:
                raise ValueError(str(error)) from error
        counts[point.name] = known[key]
    return counts


def make_runs(
    points: "tuple[Point, ...]",
    counts: "dict[str, Count]",
    out: Path,
    text: Path | None,
    corpus: "Corpus",
    share: "Share",
    repeated: int,
) -> "list[Row]":
    """Make the runs, and show how far they are."""
    from unitscale.cli.progress import SweepProgress
    from unitscale.report.wording import plural
    from unitscale.sweep.run import run_claimed_sweep
    from unitscale.train.interrupt import deferred_interrupt

    note = (
        f"{plural(len(points), 'run')}, {share.workers} at a time with "
        f"{plural(share.threads, 'thread')} each"
    )
    if repeated:
        note += f"; {repeated} more are in the grid twice and made once"
    print(note, file=sys.stderr, flush=True)
    with (
        deferred_interrupt() as stop,
        SweepProgress(runs=len(points), swept=swept(points)) as progress,
    ):
        return run_claimed_sweep(
            points,
            counts,
            out,
            data=text,
            title=f"Sweep on {corpus.name}",
            share=share,
            stop=stop,
            on_row=progress.ended,
            on_step=lambda point, step: progress.at(point.name, step, point.config.steps),
        )


def swept(points: "tuple[Point, ...]") -> dict[str, str]:
    """What differs between the points and their names do not say, in words, by their names."""
    said = {"recipe", "existing", "lr", "seed", "model.layer", "model.width", "model.depth"}
    keys = {key: None for point in points for key in point.values if key not in said}
    values = {key: {json_module.dumps(p.values.get(key)) for p in points} for key in keys}
    differ = [key for key in keys if len(values[key]) > 1]
    return {
        point.name: " ".join(f"{key}={json_module.dumps(point.values.get(key))}" for key in differ)
        for point in points
    }


def print_results(rows: "list[Row]", out: Path, *, json: bool) -> None:
    """Print the best learning rates, or everything as JSON."""
    from unitscale.report import plain_table
    from unitscale.sweep.summary import best_rows, summarize
    from unitscale.train.run_folder import without_nan

    groups = summarize(rows)
    if json:
        found: dict[str, Any] = {"groups": [g.to_json() for g in groups], "runs": rows}
        print(json_module.dumps(without_nan(found), indent=2))
        return
    show(plain_table(best_rows(groups)), f"{out / 'results.md'}  {out / 'lr.png'}")
