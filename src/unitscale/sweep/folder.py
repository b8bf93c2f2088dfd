"""The folder of a sweep: whose it is, and whether these points may go on in it. Imports no torch.

sweep.json      the text, the threads of a run, and every point by name
runs/NAME/      the folder of one run, as `unitscale train` leaves it
runs.jsonl/csv  a row for each run that ended, in the order of the grid
summary.json    the loss at each learning rate, and the best ones; results.md is the same to read
lr.png          the loss over the learning rate
workers.log     what the processes that train said on stderr
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from unitscale.data import Corpus
from unitscale.report.version import upgrade
from unitscale.sweep.point import Point
from unitscale.sweep.row import CSV, JSONL
from unitscale.train.lock import locked
from unitscale.train.run_folder import (
    CHECKPOINT,
    CONFIG,
    CheckpointError,
    check_run,
    first_difference,
    make_folder,
    read_object,
    write_json,
)

VERSION = 1
SWEEP, SUMMARY, PAGE, FIGURE, WORKERS_LOG = (
    "sweep.json",
    "summary.json",
    "results.md",
    "lr.png",
    "workers.log",
)
OWN = (SWEEP, "runs", JSONL, CSV, SUMMARY, PAGE, FIGURE)


@contextmanager
def claimed_sweep(
    out: Path, points: Sequence[Point], corpus: Corpus, *, threads: int, resume: bool
) -> Iterator[None]:
    """Hold `out` for these points inside the context, or raise before anything in it changes.

    Raises:
        InUseError: another process is writing to it.
        FileExistsError: it holds a sweep, and `resume` is off.
        ValueError: it holds something else, another text, other threads, or points that are not
            among these.
        CheckpointError: a file of it is damaged.
        OSError: it cannot be written.
    """
    make_folder(out)
    with locked(out):
        check_sweep(out, points, corpus, threads=threads, resume=resume)
        write_json(out / SWEEP, describe(points, corpus, threads))
        yield


def describe(points: Sequence[Point], corpus: Corpus, threads: int) -> dict[str, Any]:
    """What sweep.json holds."""
    return {
        "version": VERSION,
        "data": corpus.name,
        "fingerprint": corpus.fingerprint,
        "threads": threads,
        "points": {point.name: point.config.to_json() for point in points},
    }


def read_sweep(out: Path) -> dict[str, Any] | None:
    """The sweep.json of a folder; None if it has none.

    Raises:
        CheckpointError: it is damaged, or of another version.
    """
    path = out / SWEEP
    if not path.exists():
        return None
    found = read_object(path)
    if found.get("version") != VERSION:
        raise CheckpointError(
            f"{path} is of version {found.get('version')!r}, and this unitscale writes {VERSION}; "
            f"choose another folder{upgrade(found.get('version'), VERSION)}"
        )
    kinds = {"points": dict, "threads": int, "fingerprint": str}
    for key, kind in kinds.items():
        if not isinstance(found.get(key), kind):
            raise CheckpointError(f"{path} is damaged (its {key} is {found.get(key)!r})")
    return found


def recorded_threads(out: Path) -> int | None:
    """The threads of the runs in a folder; None if it holds no sweep.

    Raises:
        CheckpointError: as `read_sweep`.
    """
    found = read_sweep(out)
    return None if found is None else found["threads"]


def check_sweep(
    out: Path, points: Sequence[Point], corpus: Corpus, *, threads: int, resume: bool
) -> None:
    """Raise if `out` cannot take these points; changes nothing.

    Raises:
        FileExistsError, ValueError, CheckpointError: as `claimed_sweep`.
    """
    for name in (CONFIG, CHECKPOINT):
        if (out / name).exists():
            raise ValueError(
                f"{out} holds a run of `train` ({name} exists); choose another folder for a sweep"
            )
    if (out / "results.json").exists():
        raise ValueError(f"{out} holds a comparison (results.json exists); choose another folder")
    if not resume:
        for name in OWN:
            if (out / name).exists():
                raise FileExistsError(
                    f"{out} holds a sweep already ({name} exists); add --resume to continue it, or "
                    "choose another folder"
                )
    theirs = read_sweep(out)
    own = {point.name: point for point in points}
    if theirs is not None:
        if theirs["fingerprint"] != corpus.fingerprint:
            raise ValueError(
                f"{out} holds a sweep on another text: its data is {theirs.get('data')!r} "
                f"({theirs['fingerprint']}) and not {corpus.name!r} ({corpus.fingerprint}); choose "
                "another folder"
            )
        if theirs["threads"] != threads:
            raise ValueError(
                f"{out} holds runs with {theirs['threads']} threads each and not {threads}; choose "
                "another folder"
            )
        refuse_others(out, theirs["points"], own)
    others = sorted({path.name for path in (out / "runs").glob("*")} - own.keys())
    if others:
        raise ValueError(
            f"{out} also holds the run {others[0]}, which is not in the grid; name all that it "
            "holds, or choose another folder"
        )
    for point in points:
        if point.folder(out).exists():
            check_run(point.folder(out), point.config, corpus, resume=True)


def refuse_others(out: Path, theirs: Mapping[str, Any], own: Mapping[str, Point]) -> None:
    """Raise ValueError if a folder has a point that the grid has not, and say what differs.

    A grid may grow, then only what is new is trained. One that lost a point or changed a setting
    would leave runs behind that no table shows.
    """
    gone = [name for name in theirs if name not in own]
    if not gone:
        return
    config = theirs[gone[0]]
    nearest = min(own.values(), key=lambda point: distance(config, point.config.to_json()))
    difference = first_difference(config, nearest.config.to_json())
    more = f" and {len(gone) - 1} more" if len(gone) > 1 else ""
    raise ValueError(
        f"{out} also holds the run {gone[0]}{more}, not in the grid (nearest: {difference}); a "
        "grid may grow and not change: name all that it holds, or choose another folder"
    )


def distance(one: Mapping[str, Any], other: Mapping[str, Any]) -> int:
    """In how many fields two configurations differ, options of the model counted apart."""
    flat = [
        {**config, "model": None, **{f"model.{k}": v for k, v in config.get("model", {}).items()}}
        for config in (one, other)
    ]
    keys = flat[0].keys() | flat[1].keys()
    return sum(flat[0].get(key) != flat[1].get(key) for key in keys)
