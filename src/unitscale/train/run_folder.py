"""The files of a run: written so that they are whole or absent, whatever stops the process.

config.json             what the run computes, and on which text
log.jsonl               one record a line: the first step's measurements, steps, validations
checkpoint.safetensors  everything needed to go on after its step
checkpoints             the same, of a run of several ranks (`sharded`)
numerics.jsonl          statistics of every tensor, at the steps that were recorded
result.json             present once the run is finished
"""

import hashlib
import json
import math
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

from unitscale.data import Corpus
from unitscale.report.version import upgrade
from unitscale.train.config import TrainConfig
from unitscale.train.lock import locked
from unitscale.train.named import is_own
from unitscale.train.unbegun import made_for_this, undone_unless_begun

Record = dict[str, Any]

VERSION = 2
"""Of the files together. Version 1 had no checksums in its log and no number here."""

CONFIG, LOG, CHECKPOINT, RESULT = (
    "config.json",
    "log.jsonl",
    "checkpoint.safetensors",
    "result.json",
)
CHECKPOINTS = "checkpoints"
RECORDING = "numerics.jsonl"
COMPARISON = ("results.json", "runs")
"""What only a folder of `compare` has."""


class CheckpointError(RuntimeError):
    """A run that cannot go on: a file of it is damaged, or is of another run."""


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a temporary file beside `path`, then put it in place in one step.

    What fails leaves the old file as it was, and no temporary one.
    """
    temporary = path.with_name(path.name + ".tmp")
    try:
        write(temporary)
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)  # half a file would keep a full disk full
        if isinstance(error, OSError):
            raise naming(error, path) from error
        raise


def naming(error: OSError, path: Path) -> OSError:
    """The error with the file in its message, which that of a full disk lacks."""
    if error.errno is None or error.filename is not None:
        return error
    return OSError(error.errno, error.strerror, str(path))


def write_json(path: Path, value: Any) -> None:
    """Write strict JSON, numbers that are not finite as null."""
    text = json.dumps(without_nan(value), indent=2, allow_nan=False) + "\n"
    write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def without_nan(value: Any) -> Any:
    """`value` with NaN and infinities replaced by None, in dicts and lists as well."""
    if isinstance(value, dict):
        return {key: without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [without_nan(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def read_object(path: Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        CheckpointError: not JSON, or another kind of value.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:  # as deep as 100,000 brackets
        raise CheckpointError(f"{path} is damaged ({error}); nothing was changed") from error
    if not isinstance(found, dict):
        raise CheckpointError(
            f"{path} is damaged (it holds a {type(found).__name__} and not an object); nothing was "
            "changed"
        )
    return found


def describe(config: TrainConfig, corpus: Corpus) -> dict[str, Any]:
    """What config.json holds: the configuration and the identity of the text.

    Of a recipe of one's own, which may change between two calls, its rules as well.
    """
    own = {"recipe": own_recipe(config)} if is_own(config.recipe) else {}
    return own | {
        "version": VERSION,
        "config": config.to_json(),
        "data": corpus.name,
        "fingerprint": corpus.fingerprint,
    }


def own_recipe(config: TrainConfig) -> dict[str, str]:
    """The name and the printed rules of a recipe of one's own."""
    return {"name": config.recipe_name, "rules": str(config.numerics)}


def identity(config: TrainConfig, corpus: Corpus) -> str:
    """A short hash of the description, by which a checkpoint knows its run."""
    return identity_of(describe(config, corpus))


def identity_of(description: dict[str, Any]) -> str:
    """`identity` of what config.json holds."""
    text = json.dumps(without_nan(description), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@contextmanager
def claimed(folder: Path, config: TrainConfig, corpus: Corpus, *, resume: bool) -> Iterator[None]:
    """Make `folder` this run's own inside the context, or raise before anything in it changes.

    What fails inside the context before the first step leaves the folder as it was.

    Raises:
        InUseError: another process is writing to it.
        FileExistsError: it holds a run, and `resume` is off.
        ValueError: it holds something else than this run.
        CheckpointError: it holds a run whose configuration is damaged, or missing.
        OSError: it cannot be written.
    """
    with made_for_this(folder):
        make_folder(folder)
        with locked(folder):
            check_run(folder, config, corpus, resume=resume)
            with undone_unless_begun(folder, LOG):
                if not (folder / CONFIG).exists():
                    write_json(folder / CONFIG, describe(config, corpus))
                yield


def check_run(folder: Path, config: TrainConfig, corpus: Corpus, *, resume: bool) -> None:
    """Raise if `folder` holds what this run may not continue; changes nothing.

    Raises:
        FileExistsError, ValueError, CheckpointError: as `claimed`.
    """
    for name in COMPARISON:
        if (folder / name).exists():
            raise ValueError(
                f"{folder} holds a comparison ({name} exists); choose another folder for a run"
            )
    path = folder / CONFIG
    if not path.exists():
        for name in (CHECKPOINT, CHECKPOINTS, LOG, RESULT, RECORDING):
            if (folder / name).exists():
                raise CheckpointError(
                    f"{folder} holds {name} of a run, and not the {CONFIG} that says of which; "
                    "restore it, or choose another folder"
                )
        return
    if not resume:
        raise FileExistsError(f"{folder} holds a run already; resume it or choose another folder")
    theirs = read_object(path)
    if theirs.get("version") != VERSION:
        raise CheckpointError(
            f"{folder} holds a run of another version of unitscale (its files are of version "
            f"{theirs.get('version', 1)}, these of {VERSION}: the first had no checksums); "
            "it cannot be continued; choose another folder"
            f"{upgrade(theirs.get('version'), VERSION)}"
        )
    if difference := first_difference(theirs, describe(config, corpus)):
        raise ValueError(f"{folder} holds another run: {difference}; choose another folder")


def make_folder(folder: Path) -> None:
    """Create a folder and those above it, and make sure that files can be created in it.

    Raises:
        OSError: it cannot be created, or not be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise OSError(f"cannot write to the folder {folder}: {error.strerror}") from error


def first_difference(theirs: Any, mine: Any, name: str = "") -> str | None:
    """One line that names the first value in which two JSON objects differ."""
    if isinstance(theirs, dict) and isinstance(mine, dict):
        if unknown := sorted(key for key in theirs.keys() - mine.keys() if theirs[key] is None):
            return f"it has a {unknown[0]!r}, which is unknown"
        found = (
            first_difference(theirs.get(key), mine.get(key), key)
            for key in sorted(theirs.keys() | mine.keys())
        )
        return next(filter(None, found), None)
    return None if theirs == mine else f"its {name} is {theirs!r} and not {mine!r}"
